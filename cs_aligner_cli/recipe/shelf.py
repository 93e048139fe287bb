"""The shelf: recipes and manifests that ship with csalign, found from a wheel and from a checkout alike."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from cs_aligner_cli.common.errors import InputError, did_you_mean

Kind = Literal["recipes", "data_manifests"]
# In place of a file: what the command reads on its standard input.
STANDARD_INPUT = "-"
# Where a system has the open files of a process, as in /dev/stdin and /dev/fd/63.
_STREAMS = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
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
    """The file meant by a name of the shelf, by a path (./NAME where a file has the name of a shipped one) or by -.

    Raises InputError with the nearest name where there is neither; ``said_by`` begins its message.
    """
    if name_or_path == STANDARD_INPUT:
        return Path(STANDARD_INPUT)
    if name_or_path in names(kind):
        return folder(kind) / f"{name_or_path}.yaml"
    try:
        path = Path(name_or_path).expanduser()
        is_folder = path.is_dir()
        found = path.exists() and not is_folder  # also a pipe, as in <(command)
    except (OSError, RuntimeError):  # a name too long for a file, the home folder of nobody
        found = is_folder = False
    if found:
        return path
    word = _WORDS[kind]
    if is_folder:
        raise InputError(f"{said_by}{name_or_path}: is a folder, not a {word} file", _recipes_in(path, kind))
    near = _near_file(name_or_path) or did_you_mean(Path(name_or_path).stem, names(kind))
    near = near.replace("expected one of", "those are")
    raise InputError(f"{said_by}{name_or_path}: no such file, and no shipped {word} of that name{near}")


def _recipes_in(path: Path, kind: Kind) -> str:
    """Where the folder is a run's or a sweep's: the file in it that holds its recipe."""
    held = [path / name for name in ("recipe.yaml", "sweep.yaml") if kind == "recipes" and (path / name).is_file()]
    return f"Its recipe is {held[0]}." if held else ""


def _near_file(name_or_path: str) -> str:
    """``"; did you mean FILE?"`` for a YAML file whose name is near that of a file which is not there."""
    path = Path(name_or_path)
    try:
        beside = {found.stem: found for found in path.parent.glob("*.y*ml")} if path.suffix in (".yaml", ".yml") else {}
    except OSError:  # a folder that cannot be listed
        return ""
    near = get_close_matches(path.stem, beside, n=1, cutoff=0.6)
    return f"; did you mean {beside[near[0]]}?" if near else ""


def read_text(path: Path) -> str:
    """The UTF-8 text of a file, or of standard input; raise InputError if it cannot be read."""
    try:
        content = sys.stdin.buffer.read() if str(path) == STANDARD_INPUT else path.read_bytes()
        return content.decode("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def base_folder(path: Path) -> Path:
    """The folder that relative paths in a file count from: its own; for standard input and pipes the current one."""
    return path.parent.resolve() if path.is_file() and path.parent not in _STREAMS else Path.cwd()
