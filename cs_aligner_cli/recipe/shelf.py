"""The shelf: recipes and manifests that ship with csalign, found from a wheel and from a checkout alike."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cs_aligner_cli.common.errors import InputError, did_you_mean

Kind = Literal["recipes", "data_manifests"]
RECIPE_SCHEMA = "recipe.schema.json"
_WORDS: dict[Kind, str] = {"recipes": "recipe", "data_manifests": "manifest"}


def folder(kind: Kind) -> Path:
    """The folder of the shipped files: inside the package in a wheel, at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_shelf" / kind
    return installed if installed.is_dir() else package.parent / kind


def names(kind: Kind) -> list[str]:
    """Names of the shipped files, without suffix, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def find(kind: Kind, name_or_path: str, said_by: str = "") -> Path:
    """The file meant by a name of the shelf or by a path (./NAME where a file has the name of a shipped one).

    Raises InputError with the nearest name where there is neither; ``said_by`` begins its message.
    """
    if name_or_path in names(kind):
        return folder(kind) / f"{name_or_path}.yaml"
    try:
        path = Path(name_or_path).expanduser()
        found, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError):  # a name too long for a file, the home folder of nobody
        found = is_folder = False
    if found:
        return path
    word = _WORDS[kind]
    if is_folder:
        raise InputError(f"{said_by}{name_or_path}: is a folder, not a {word} file")
    near = did_you_mean(Path(name_or_path).stem, names(kind)).replace("expected one of", "those are")
    raise InputError(f"{said_by}{name_or_path}: no such file, and no shipped {word} of that name{near}")
