"""The shelf: recipes and manifests that ship with csalign, found from a wheel and from a checkout alike."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cs_aligner_cli.errors import InputError, did_you_mean

Kind = Literal["recipes", "data_manifests"]


def folder(kind: Kind) -> Path:
    """The folder of the shipped files: inside the package in a wheel, at the repository's top in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_shelf" / kind
    return installed if installed.is_dir() else package.parent / kind


def names(kind: Kind) -> list[str]:
    """Names of the shipped files, without suffix, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def find(kind: Kind, name_or_path: str, base: Path | None = None) -> Path:
    """The file meant by a shelf name or by a path (relative to ``base``, by default the current folder).

    An existing file wins; a bare name without suffix is looked up on the shelf. Raises InputError with the nearest
    name where neither exists.
    """
    path = (base or Path.cwd()) / Path(name_or_path).expanduser()
    if path.is_file():
        return path
    shipped = folder(kind) / f"{name_or_path}.yaml"
    if Path(name_or_path).name == name_or_path and shipped.is_file():
        return shipped
    what = "recipe" if kind == "recipes" else "manifest"
    raise InputError(
        f"{name_or_path}: no such {what} file, and no {what} of that name on the shelf"
        f"{did_you_mean(Path(name_or_path).stem, names(kind))}"
    )
