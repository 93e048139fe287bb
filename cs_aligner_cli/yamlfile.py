"""A strict YAML reader: safe, no duplicate keys, YAML 1.2 numbers and booleans, a line number for every key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from cs_aligner_cli.errors import InputError

KeyPath: TypeAlias = tuple[str | int, ...]

# Aliases make a small file expand without bound ("billion laughs"); no honest recipe comes near this.
_MAX_NODES = 20_000


class _Loader(yaml.SafeLoader):
    """SafeLoader with the YAML 1.2 core schema: `1e-3` is a number, `on` and `yes` are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's protocol)


_INTEGER = r"[-+]?[0-9]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", _INTEGER, [*"-+0123456789"]),
    ("float", _FLOAT, [*"-+.0123456789"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass
class YamlFile:
    """The content of a YAML file: plain dicts, lists and scalars, and the line on which each key stands."""

    path: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int] = field(default_factory=dict)

    def where(self, key_path: KeyPath) -> str:
        """``file.yaml:12`` for the deepest part of ``key_path`` that the file contains."""
        for length in range(len(key_path), 0, -1):
            if line := self.lines.get(key_path[:length]):
                return f"{self.path}:{line}"
        return str(self.path)


def read_yaml(path: Path) -> YamlFile:
    """Read one YAML file whose top level is a mapping; raise InputError with file and line otherwise."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    try:
        node = _Loader(text).get_single_node()
        result = YamlFile(path, {})
        content = _Builder(result).build(node, ()) if node is not None else {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not valid YAML: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, found {_describe(content)}")
    result.data = content
    return result


def parse_scalar(text: str) -> Any:
    """The value of ``text`` as it would be read from a YAML file (numbers, booleans, null, flow lists)."""
    try:
        node = _Loader(text).get_single_node()
        return _Builder(YamlFile(Path("--set"), {})).build(node, ()) if node is not None else ""
    except yaml.YAMLError:
        return text


class _Builder:
    def __init__(self, file: YamlFile) -> None:
        self.file = file
        self.nodes = 0
        self.constructor = _Loader("")

    def build(self, node: yaml.Node, key_path: KeyPath) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise InputError(f"{self.file.path}: more than {_MAX_NODES} values; is an alias expanding without end?")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key_path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(child, (*key_path, i)) for i, child in enumerate(node.value)]
        value = self.constructor.construct_object(node)
        return _number(node.value) if node.tag.endswith((":int", ":float")) else value

    def _mapping(self, node: yaml.MappingNode, key_path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in result:
                dotted = ".".join(map(str, (*key_path, key)))
                raise InputError(f"{self.file.path}:{line}: key {dotted} was already given on line {first_line[key]}")
            first_line[key] = self.file.lines[(*key_path, key)] = line
            result[key] = self.build(value_node, (*key_path, key))
        return result


def _number(text: str) -> int | float:
    if re.fullmatch(_INTEGER, text):
        return int(text, 16) if text.startswith("0x") else int(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan").lower())


def _one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else problem


def _describe(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    return {list: "a list", str: "text", type(None): "nothing"}.get(type(value), type(value).__name__)
