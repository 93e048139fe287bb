"""Class names and prompts of a data set, as CLIP_benchmark keeps them beside its shards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.file_names import Lookalikes
from cs_aligner_cli.data.manifest_layouts import WebDatasetManifest
from cs_aligner_cli.recipe.eval_retrieval import DEFAULT_TEMPLATE

# What is written for the class name in CLIP_benchmark's templates, and in a recipe's.
_THEIRS, PLACE = "{c}", "{}"


class Classes(NamedTuple):
    """Classes in the order of their numbers: labels, no two alike, their names, and prompts with {} for the name."""

    labels: list[str]
    names: list[str]
    templates: list[str]

    def caption(self, number: int) -> str:
        """The first prompt with the name of a class."""
        return self.templates[0].replace(PLACE, self.names[number])

    def described(self) -> dict[str, Any]:
        """As the prepared data keep it."""
        return {"classes": dict(zip(self.labels, self.names, strict=True)), "templates": self.templates}


def read_classes(manifest: WebDatasetManifest) -> Classes | None:
    """The classes that a manifest names; None where it names none.

    A name that stands there twice (ImageNet's have two such) gets its number in the label. Raises InputError if a file
    cannot be read, there are fewer than 2 names, or a template has no {c}.
    """
    if manifest.classes is None:
        return None
    assert manifest.root is not None
    _refuse_other_types(manifest.root / manifest.classes)
    names = _lines(manifest.root / manifest.classes, "classes")
    while names and not names[-1]:
        names.pop()
    if len(names) < 2 or "" in names:
        problem = f"line {names.index('') + 1} is empty" if "" in names else f"names {len(names)} classes"
        raise InputError(
            f"classes: {manifest.root / manifest.classes}: {problem}; expected one class name a line, at least 2"
        )
    count = Counter(names)
    labels = [name if count[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)]
    return Classes(labels, names, _templates(manifest))


def _refuse_other_types(classes: Path) -> None:
    """CLIP_benchmark says in a file beside the class names if samples have several classes, or captions."""
    path = classes.with_name("dataset_type.txt")
    kind = "".join(_lines(path, "classes")).lower() if path.is_file() else "classification"
    if kind != "classification":
        raise InputError(
            f"classes: {path}: the set is of type {kind!r}; what is read here has one class an image (.cls)",
            "Retrieval sets have the manifest clip_benchmark." if kind == "retrieval" else "",
        )


def _templates(manifest: WebDatasetManifest) -> list[str]:
    if manifest.templates is None:
        return [DEFAULT_TEMPLATE]
    assert manifest.root is not None
    path = manifest.root / manifest.templates
    found = {number: line for number, line in enumerate(_lines(path, "templates"), 1) if line}
    if not found:
        raise InputError(f"templates: {path}: is empty; expected a prompt a line, with {_THEIRS} for the class name")
    for number, line in found.items():
        if _THEIRS not in line:
            raise InputError(f"templates: {path}:{number}: {line!r} has no {_THEIRS}, where the class name goes")
    return [line.replace(_THEIRS, PLACE) for line in found.values()]


def _lines(path: Path, key: str) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except FileNotFoundError:
        raise InputError(f"{key}: {path}: no such file{Lookalikes().hint(path.parent, path.name)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{key}: {path}: cannot be read: {error}") from None
