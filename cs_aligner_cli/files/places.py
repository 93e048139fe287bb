"""Where the files from outside lie that an output was made from: of no matter for what it is, so no part of it.

A recipe names them by absolute paths. What an output is fresh by holds their names, sizes and times, but no path, so
that runs and data may be moved; the paths stand beside it, so that another folder of the same name is noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# What stands for a path where paths are of no matter.
A_PATH = "(a path)"
_LOCAL = "local-dir:"
_ROOT = "root"
# By the section of the recipe, the keys in it that name files from outside whose sizes and times are compared.
_NAMED = {
    "data": ("manifest", "root"),
    "encoders": ("model", "pretrained", "checkpoint"),
    "zero_shot": ("classes", "labels"),
    "eval_retrieval": ("relevance", "corpus"),
    "gap_report": ("photos",),
    "generate": ("model", "weights", "pretrained", "checkpoint"),
}


def without_paths(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of a recipe with ``A_PATH`` for every absolute path of files from outside.

    The data's root is left out: a manifest may state it as well.
    """
    return {section: _replaced(value, _NAMED.get(section, ()), "") for section, value in recipe.items()}


def places(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Those paths, by their key."""
    return {
        key: path for section, value in recipe.items() for key, path in _found(value, _NAMED.get(section, ()), section)
    }


def by_name(value: Any) -> Any:
    """Any part of a recipe with the last name of every absolute path in place of the path, and without roots of data:
    the same wherever the files lie."""
    if isinstance(value, Mapping):
        return {key: by_name(part) for key, part in value.items() if key != _ROOT or _is_name(part)}
    if isinstance(value, list):
        return [by_name(part) for part in value]
    path = _path(value)
    return value if path is None else value.replace(path, Path(path).name)


def all_places(value: Any, key: str = "") -> dict[str, str]:
    """By key, every absolute path in a recipe."""
    if isinstance(value, Mapping):
        parts: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        path = _path(value)
        return {} if path is None else {key: path}
    return {k: path for name, part in parts for k, path in all_places(part, f"{key}.{name}".lstrip(".")).items()}


def moved(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Which path of ``now`` holds other files than that of the same key before, in words; "" where none does."""
    for key in {**now, **{key: "" for key in before if "." in key[1:]}}:
        was, place = before.get(key) or (before.get(_ROOT) if key.endswith(f".{_ROOT}") else None), now.get(key)
        if was != place and (was is None or place is None or not same_place(was, place)):
            return f"{key} was {was or 'not set'} and is now {place or 'not set'}"
    return ""


def same_place(one: str, other: str) -> bool:
    """Whether files have been moved or copied from one path to another: they are gone from it, or equal in all names,
    sizes and times."""
    return one == other or not Path(one).exists() or [*_stamps(Path(one))] == [*_stamps(Path(other))]


def file_stamps(paths: Iterable[str | Path], root: Path | None = None) -> str:
    """A digest of names, sizes and modification times, as make would look at them; a file may be absent.

    The name is the path below ``root``, so that files may be moved together; of a file elsewhere its last part.
    """
    digest, below = hashlib.sha256(), f"{root}{os.sep}"
    for path in sorted(map(str, paths)):
        name = path.removeprefix(below) if root is not None and path.startswith(below) else os.path.basename(path)  # noqa: PTH119
        try:
            status = os.stat(path)  # noqa: PTH116 (a million Path objects take longer than their stamps)
            stamp = f"{status.st_size} {status.st_mtime_ns}"
        except (OSError, ValueError):
            stamp = "absent"
        digest.update(f"{name}\0{stamp}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


def below(root: Path, path: Path) -> str:
    """A path as it is written where it may move with its root: relative to it, or absolute if it lies elsewhere."""
    return str(path).removeprefix(f"{root}{os.sep}")


def _replaced(value: Any, names: tuple[str, ...], key: str) -> Any:
    if isinstance(value, dict):
        kept = {k: part for k, part in value.items() if k != _ROOT or _ROOT not in names or _is_name(part)}
        return {k: _replaced(part, names, k) for k, part in kept.items()}
    if isinstance(value, list):
        return [_replaced(part, names, key) for part in value]
    path = _path(value) if key in names else None
    return value if path is None else value.replace(path, A_PATH)


def _found(value: Any, names: tuple[str, ...], key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for inner, part in value.items():
            yield from _found(part, names, f"{key}.{inner}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _found(part, names, f"{key}.{number}")
    elif key.rsplit(".", 1)[-1] in names and (path := _path(value)):
        yield key, path


def _is_name(root: Any) -> bool:
    """Whether a root is no folder: the name of a data set of a hub."""
    return root is not None and _path(root) is None


def _path(value: Any) -> str | None:
    """The absolute path in a value, as in local-dir:/PATH."""
    path = value.removeprefix(_LOCAL) if isinstance(value, str) else ""
    return path if Path(path).is_absolute() else None


def _stamps(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name below ``path``, size and time of every file of a folder, or of the one file."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    for file in files:
        status = file.stat() if file.exists() else None
        name = file.relative_to(path).as_posix()
        yield (name, status.st_size, status.st_mtime_ns) if status else (name, -1, -1)


def aside_of(path: Path) -> Path:
    """Where a file is written before it appears at ``path``; it is there between two writes only after a kill."""
    return path.with_name(f".{path.name}.tmp")
