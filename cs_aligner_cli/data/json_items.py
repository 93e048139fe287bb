"""Objects in JSON files of any size, one at a time, whose keys are checked as they are read."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.data.delimited import format_of
from cs_aligner_cli.data.file_names import Lookalikes
from cs_aligner_cli.data.json_tables import json_lines

_BOM = b"\xef\xbb\xbf"
_START = 4096
# A word that Python's and numpy's writers put where JSON has no value for it.
_NO_JSON = re.compile(rb"(?<=[:\[,])\s*(NaN|-?Infinity)\b")


def json_items(path: Path, key: str, console: Console) -> Iterator[Any]:
    """The items of the list under a top-level key ("": of the list that is the whole file), one at a time.

    Raises InputError if the file is missing, is no JSON, or holds no such list.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file{Lookalikes().hint(path.parent, path.name)}")
    total, advanced, empty = max(1, path.stat().st_size >> 20), 0, True
    try:
        with open_json(path) as file, console.progress(f"reading {path.name} (MiB)", total) as advance:
            for item in ijson.items(file, f"{key}.item" if key else "item", use_float=True):
                empty = False
                yield item
                if (read := file.tell() >> 20) > advanced:
                    advance(read - advanced)
                    advanced = read
        if empty:
            _require_list(path, key)
    except (ijson.JSONError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {json_reason(path, error)}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def listed_items(path: Path, console: Console) -> Iterator[tuple[str, Any]]:
    """(place, item) of a list that is the whole file ("[0]"), or of JSON lines ("line 1"), whatever its suffix.

    Raises InputError as ``json_items``, and for a line that is no object.
    """
    if not _holds_lines(path):
        yield from ((f"[{i}]", item) for i, item in enumerate(json_items(path, "", console)))
        return
    try:
        for number, item in json_lines(path):
            yield f"line {number}", item
    except UnicodeDecodeError as error:
        found = f"{path}: is not UTF-8 text (it holds the byte {error.object[error.start]:#x})"
        raise InputError(found, "JSON is UTF-8: save it as UTF-8.") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as JSON lines: {str(error).splitlines()[0]}") from None


def _holds_lines(path: Path) -> bool:
    """Whether the suffix says that a file holds JSON lines, or its first line is an object."""
    if not path.is_file() or format_of(path) in (".jsonl", ".jsonlines"):
        return path.is_file()
    with open_json(path) as file:
        if file.read(_START).lstrip()[:1] != b"{":  # a list may be one line of gigabytes
            return False
    try:
        return next(json_lines(path), None) is not None
    except UnicodeDecodeError:
        return True
    except (ValueError, OSError):
        return False


def open_json(path: Path) -> BinaryIO:
    """A JSON file, open after its byte order mark."""
    file = path.open("rb")
    if file.read(len(_BOM)) != _BOM:
        file.seek(0)
    return file


def json_reason(path: Path, error: Exception) -> str:
    """Why a file is no JSON: its first NaN, where it has one, else what the reader said."""
    with path.open("rb") as file:
        start = file.read(4)
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            return "it is UTF-16, where JSON is UTF-8: save it as UTF-8"
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if found := _NO_JSON.search(line):
                return f"line {number} holds {found[1].decode()}, for which JSON has no value: write null"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _require_list(path: Path, key: str) -> None:
    """Raise InputError unless the file holds a list, if an empty one, where it should."""
    there: list[str] = []
    with open_json(path) as file:
        for prefix, event, value in ijson.parse(file, use_float=True):
            if prefix == key and event == "start_array":
                return
            if prefix == "" and event == "map_key":
                there.append(value)
    wanted = f"an object with a list {key!r}" if key else "a list"
    raise InputError(f"{path}: expected {wanted}{did_you_mean(key, there) if key else ''}")


class Place:
    """An object in a JSON file, whose keys are checked as they are read; InputError names file, place and key."""

    def __init__(self, path: Path, place: str, value: Any) -> None:
        self.path, self.place, self.value = path, place, value
        if not isinstance(value, dict):
            raise InputError(f"{path}: {place}: expected an object with keys, found {named(value)}")

    def text(self, key: str, default: str | None = None) -> str:
        """The text under a key, ``default`` where it is absent or null; without a default it must be there."""
        value = self._get(key, default)
        if value is None and default is not None:  # as programs write that there is none
            return default
        if not isinstance(value, str):
            raise InputError(f"{self.path}: {self.place}.{key}: expected text, found {named(value)}")
        return _whole(value)

    def name(self, key: str) -> str:
        """The text under a key that must be there and say something."""
        if not (text := self.text(key)).strip():
            raise InputError(f"{self.path}: {self.place}.{key}: is empty")
        return text

    def caption(self, key: str) -> str | None:
        """The text under a key that must be there; None where it is null."""
        return None if self._get(key) is None else self.text(key)

    def key(self, key: str) -> int | str:
        """The number or name under a key; a whole number may be written as 1.0."""
        value = self._get(key)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise InputError(
                f"{self.path}: {self.place}.{key}: expected a whole number or a name, found {named(value)}"
            )
        return value

    def items(self, key: str) -> list[Any]:
        """The list under a key."""
        value = self._get(key)
        if not isinstance(value, list):
            raise InputError(f"{self.path}: {self.place}.{key}: expected a list, found {named(value)}")
        return value

    def _get(self, key: str, default: Any = None) -> Any:
        if key not in self.value and default is None:
            raise InputError(f"{self.path}: {self.place}: no key {key!r}{did_you_mean(key, list(self.value))}")
        return self.value.get(key, default)


def named(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value)) or (str(value) if isinstance(value, float) else "a number")


def _whole(text: str) -> str:
    """Text that can be stored: half a surrogate pair, which JSON may spell, is no character."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text
