"""What prepare found of a data set, in sentences: whoever reads later numbers must know it, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cs_aligner_cli.common.counted import counted


def data_findings(summary: Mapping[str, Any], lengths: Mapping[str, Any] | None) -> list[str]:
    """All that was dropped, cut, leaked, unmatched or repeated, a sentence each; [] of flawless data.

    ``summary`` is that of the prepared data set's record; ``lengths`` are the captions' ("limit", "truncated"), if they
    were measured.
    """
    found = [*summary["notes"], *_left_out(summary), *_unmatched(summary), *_repeated(summary), *_leaks(summary)]
    if lengths and lengths["truncated"]:
        found.append(cut_captions(lengths["truncated"], lengths["limit"]))
    return list(dict.fromkeys([*found, *(f"unlike the manifest: {text}" for text in summary["unlike_manifest"])]))


def cut_captions(truncated: int, limit: int) -> str:
    """That captions lose their end."""
    lose = "loses its" if truncated == 1 else "lose their"
    longer = f"{counted(truncated, 'captions', 'are')} longer"
    return f"{longer} than the {limit} tokens that the text tower reads, and {lose} end"


def leak(what: str, contents: int) -> str:
    """That contents stand in several splits."""
    return f"{counted(contents, f'contents of {what}', 'stand')} in several splits: a leak"


def repeated_texts(split: str, captions: int, texts: int) -> str:
    """That captions of a split are word for word those of other images."""
    return (
        f"split {split}: {captions} captions, {texts} different texts: equal captions of other images count as wrong"
        " answers, and as negatives in training, unless data.groups is text"
    )


def _left_out(summary: Mapping[str, Any]) -> Iterator[str]:
    bad = summary["bad"]
    for kind, count in bad.items():
        if kind != "first" and count:
            first = next((item for item in bad["first"] if item["kind"] == kind.removesuffix("s")), None)
            example = f", as {first['item']}: {first['reason']}" if first else ""
            yield f"{count} bad {kind if count > 1 else kind.removesuffix('s')} left out{example}"
    yield from (f"skipped: {counted(count, what)}" for what, count in summary["skipped"].items() if count)


def _unmatched(summary: Mapping[str, Any]) -> Iterator[str]:
    for split, alone in summary["without_partner"].items():
        counts = summary["splits"][split]
        for what, other in (("images", "captions"), ("captions", "images")):
            # A split in which nothing is paired is one of unpaired items.
            if 0 < alone[what] < counts[what]:
                yield f"split {split}: {counted(alone[what], what, 'have', of=counts[what])} no {other}"


def _repeated(summary: Mapping[str, Any]) -> Iterator[str]:
    for split, texts in summary.get("different_texts", {}).items():
        yield repeated_texts(split, summary["splits"][split]["captions"], texts)
    yield from (f"{what}: {found['repeats']}" for what, found in summary["duplicates"].items() if found["repeats"])


def _leaks(summary: Mapping[str, Any]) -> Iterator[str]:
    for what, found in summary["duplicates"].items():
        if found["contents_in_several_splits"]:
            yield leak(what, found["contents_in_several_splits"])
    near = summary["near_duplicates"]
    for split, count in ((near.get("images") or {}).get("images") or {}).items():
        yield f"{counted(count, f'images of split {split}', 'look')} like one of another split"
    for split, count in near.get("captions", {}).items():
        yield f"{counted(count, f'captions of split {split}', 'say')} what one of another split says"
