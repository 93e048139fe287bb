"""Names of files: which are images or texts, which a system left behind, and what one that is not there may mean."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# All that data.images decodes, and HEIC, which it decodes with the extra heic, or refuses by name.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".mpo"),
    *(".avif", ".avifs", ".heic", ".heif", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
)
TEXT_SUFFIXES = (".txt", ".text", ".caption", ".cap")
_LEFT_BEHIND = ("thumbs.db", "desktop.ini", "__macosx")
_ADDRESS = re.compile(r"(?:^|/)(?:https?|ftp|s3|gs|hf|file):/")
# A folder of more files is not listed for a hint.
_LISTED = 200_000


def is_system_file(name: str) -> bool:
    """Whether a path has a hidden part (``._a.jpg``, ``.DS_Store``) or one that a system leaves (``Thumbs.db``)."""
    parts = PurePosixPath(name).parts
    return any((part.startswith(".") and part != "..") or part.lower() in _LEFT_BEHIND for part in parts)


def has_suffix(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a name ends in one of the suffixes, in any case."""
    return name.lower().endswith(suffixes)


class Lookalikes:
    """Where files are that a path nearly names: other slashes, other case, other suffix, other Unicode form."""

    def __init__(self) -> None:
        self._listed: dict[Path, dict[str, str]] = {}

    def hint(self, root: Path, locator: str) -> str:
        """What to say of a file that is not there: "; did you mean sub/0.jpg?", or "" where nothing is near."""
        if _ADDRESS.search(locator):
            return "; it is an address on the net: fetch the images first (img2dataset does)"
        if target := _link(root / locator):
            return f"; it is a link to {target}, which is not there"
        for candidate in dict.fromkeys(_respelt(locator)):
            if candidate != locator and _is_file(root / candidate):
                return f"; did you mean {candidate}?"
        for candidate in dict.fromkeys([locator, *_respelt(locator)]):
            if found := self._similar(root / candidate):
                return f"; did you mean {(PurePosixPath(candidate).parent / found)}?"
        above = (root / locator).parent
        missing = next((parent for parent in (above, *above.parents) if _is_folder(parent.parent)), None)
        return f"; there is no folder {missing}" if missing is not None and not _is_folder(above) else ""

    def _similar(self, path: Path) -> str | None:
        folder = path.parent
        if folder not in self._listed:
            self._listed[folder] = _names_by_key(folder)
        names = self._listed[folder]
        return names.get(_key(path.name)) or names.get(_key(path.name, keep_suffix=False))


def _respelt(locator: str) -> Iterator[str]:
    """The ways in which a path is written elsewhere."""
    for text in (locator, locator.replace("\\", "/")):
        for form in ("NFC", "NFD"):
            yield unicodedata.normalize(form, text)
        yield "/".join(part.strip() for part in text.split("/"))
        parts = PurePosixPath(text).parts
        for i in range(len(parts) - 1):  # a folder that image_dir has named already
            yield str(PurePosixPath(*parts[:i], *parts[i + 1 :]))


def _names_by_key(folder: Path) -> dict[str, str]:
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except (OSError, ValueError):
        return {}
    if len(names) > _LISTED:
        return {}
    bare = {_key(name, keep_suffix=False): name for name in reversed(names) if has_suffix(name, IMAGE_SUFFIXES)}
    return bare | {_key(name): name for name in reversed(names)}


def _key(name: str, keep_suffix: bool = True) -> str:
    name = unicodedata.normalize("NFC", name).strip().casefold()
    stem, dot, suffix = name.rpartition(".")
    return name if keep_suffix or not dot or f".{suffix}" not in IMAGE_SUFFIXES else stem.strip()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _link(path: Path) -> str:
    """What a symbolic link names; "" where there is none."""
    try:
        return os.readlink(path)  # noqa: PTH115 (as the link spells it)
    except (OSError, ValueError):
        return ""


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
