"""Which members of a shard belong together: by their names, wherever in the shard they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cs_aligner_cli.common.errors import listed
from cs_aligner_cli.data.file_names import IMAGE_SUFFIXES, TEXT_SUFFIXES
from cs_aligner_cli.data.tarfiles import Member

IMAGE, TEXT, JSON, CLASS = "image", "text", "json", "class"
_SUFFIXES = {
    **dict.fromkeys(IMAGE_SUFFIXES, IMAGE),
    ".img": IMAGE,
    **dict.fromkeys(TEXT_SUFFIXES, TEXT),
    ".json": JSON,
    ".cls": CLASS,
}


@dataclass
class Sample:
    """The members of one name: at most one image, text, JSON and class; ``suffixes`` are of all members."""

    key: str
    parts: dict[str, Member] = field(default_factory=dict)
    suffixes: list[str] = field(default_factory=list)


@dataclass
class Odd:
    """What belongs to no sample: bad names with the reason, and counts of what is left out; ``unclear`` are names whose
    images and captions stay apart, since nothing says which of several belong together."""

    bad: list[tuple[str, str]] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


def role_of(name: str) -> str | None:
    """What a member is by its last suffix, in any case: image, text, json, class, or None."""
    return _SUFFIXES.get(_parted(name)[1])


def grouped(
    members: Iterable[Member], image_suffix: str | None = None, caption_suffix: str | None = None
) -> tuple[list[Sample], Odd]:
    """The samples of a shard, in the order of their first members.

    Members whose names differ in their last suffix alone are one sample, adjacent or not, so that names may hold dots.
    What lacks an image or a caption then is joined as webdataset does, by the name up to its first dot (x.input.jpg
    and x.outputs.txt), where that leaves no choice, and no whole sample (x.1.jpg, x.1.txt) shows that names hold dots.
    Suffixes that are named decide by themselves.
    """
    stated = {_dotted(image_suffix): IMAGE, _dotted(caption_suffix): TEXT}
    stated.pop("", None)
    odd = Odd()
    runs: dict[str, list[Sample]] = {}
    for member in members:
        stem, suffix, role = _judged(member.name, stated)
        found = runs.setdefault(stem, [Sample(stem)])
        if suffix in found[-1].suffixes:
            found.append(Sample(stem))
        found[-1].suffixes.append(suffix)
        if role is not None and found[-1].parts.setdefault(role, member) is not member:
            odd.skipped[f"further members of a sample ({suffix})"] += 1
    samples = [sample for found in runs.values() for sample in _alike(found, odd)]
    return _joined(samples, odd), odd


def _alike(found: Sequence[Sample], odd: Odd) -> Sequence[Sample]:
    """A name that stands in a shard several times must have the same members each time."""
    if len({frozenset(sample.suffixes) for sample in found}) == 1:
        return found
    odd.bad.append((found[0].key, f"is there {len(found)} times, each time with other members: which belong together?"))
    return ()


def _joined(samples: Sequence[Sample], odd: Odd) -> list[Sample]:
    """Samples in which images and captions that stand alone are joined by webdataset's key."""
    alone: dict[str, list[Sample]] = {}
    whole = {sample.key for sample in samples if _whole(sample)}
    dotted = {_first_part(key) for key in whole}
    for sample in samples:
        if not _whole(sample):
            alone.setdefault(_first_part(sample.key), []).append(sample)
    into: dict[int, Sample | None] = {}
    for key, group in alone.items():
        images = sum(IMAGE in sample.parts for sample in group)
        roles = Counter(role for sample in group for role in sample.parts if role != CLASS)
        if key in whole:  # beside x.jpg and x.txt stands x.depth.png
            for sample in (sample for sample in group if sample.key != key):
                into[id(sample)] = None
                for suffix in sample.suffixes:
                    odd.skipped[f"further members of a sample ({sample.key.removeprefix(key)}{suffix})"] += 1
        elif key in dotted or len(group) == 1:
            continue
        elif max(roles.values(), default=0) > 1:
            if images and roles.keys() - {IMAGE}:
                suffixes = [sample.key.removeprefix(key) + suffix for sample in group for suffix in sample.suffixes]
                odd.unclear.append(f"{key} ({listed(suffixes)})")
        else:
            parts = {role: member for sample in group for role, member in sample.parts.items()}
            into |= {id(sample): None for sample in group[1:]}
            into[id(group[0])] = Sample(key, parts, [suffix for sample in group for suffix in sample.suffixes])
    return [found for sample in samples if (found := into.get(id(sample), sample)) is not None]


def _whole(sample: Sample) -> bool:
    return IMAGE in sample.parts and len(sample.parts.keys() - {CLASS}) > 1


def _judged(name: str, stated: dict[str, str]) -> tuple[str, str, str | None]:
    """The stem, suffix and role of a member."""
    for suffix, role in stated.items():
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], suffix, role
    stem, suffix = _parted(name)
    by_suffix = _SUFFIXES.get(suffix)
    return stem, suffix, None if by_suffix in stated.values() else by_suffix


def _parted(name: str) -> tuple[str, str]:
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.rpartition(".")
    return (folder + slash + stem, (dot + suffix).lower()) if dot else (name, "")


def _first_part(stem: str) -> str:
    folder, slash, last = stem.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _dotted(suffix: str | None) -> str:
    return "." + suffix.lower().lstrip(".") if suffix else ""
