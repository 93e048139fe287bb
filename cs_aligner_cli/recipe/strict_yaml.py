"""A strict YAML reader: safe, no duplicate keys, YAML 1.2 numbers and booleans, a line for every key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.shelf import read_text

KeyPath: TypeAlias = tuple[str | int, ...]

# Aliases make a small file expand without bound ("billion laughs"); no honest recipe comes near this.
_MAX_VALUES = 20_000
_MAX_DIGITS = 100
_MAX_SHOWN = 80
_TAGS = "tag:yaml.org,2002:"
_MERGE = "<<"
_INTEGER = r"[-+]?[0-9]+|0x[0-9a-fA-F]+|0o[0-7]+"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
_DIGITS = "0123456789"
# The core schema of YAML 1.2 (tag, pattern, first characters): `1e-3` is a number, `on` and `yes` are text.
_CORE_SCHEMA = (
    ("bool", r"true|True|TRUE|false|False|FALSE", [*"tTfF"]),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", _INTEGER, [*"-+", *_DIGITS]),
    ("float", _FLOAT, [*"-+.", *_DIGITS]),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's way)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or YAML 1.2 would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, _pattern, _first in _CORE_SCHEMA:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAGS + _tag, re.compile(rf"^(?:{_pattern})$"), _first)


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


def plain(content: Any) -> Any:
    """A copy of what a program hands over, as YAML would have it: tuples and arrays as lists, numpy's numbers plain."""
    if isinstance(content, Mapping):
        return {key: plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    return content.tolist() if hasattr(content, "tolist") else content


def read_yaml(path: Path) -> YamlFile:
    """Read one YAML file whose top level is a mapping; raise InputError with file and line otherwise."""
    text = read_text(path)
    file = YamlFile(path, {})
    try:
        content = _build(text, file)
    except yaml.YAMLError as error:
        raise InputError(_not_yaml(path, error)) from None
    if content is not None and not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else shown(content)
        raise InputError(f"{path}: expected keys and values (key: value), found {found}")
    file.data = content or {}
    return file


def parse_value(text: str, name: str) -> Any:
    """The value of ``text`` as a YAML file would give it; what is no number, list and so on stays as it is.

    ``name`` says in messages where the text comes from.
    """
    try:
        value = _build(text, YamlFile(Path(name), {}))
    except yaml.YAMLError:
        return text.strip()
    text = text.strip()
    is_plain_text = isinstance(value, str) and text[:1] not in ("'", '"')
    only_a_comment = value is None and text[:1] in ("", "#")
    return text if is_plain_text or only_a_comment else value


def dump_yaml(data: Any) -> str:
    """``data`` as YAML that read_yaml, and any YAML 1.1 reader, gives back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def shown(value: Any) -> str:
    """A value as a message shows it: as YAML would spell it, on one line, cut where it is long."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list):
        text = f"[{', '.join(map(shown, value))}]"
    elif isinstance(value, str):
        text = '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in value) + '"'
    else:
        text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _build(text: str, file: YamlFile) -> Any:
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _Builder(file).build(node, ())
    except RecursionError:
        raise InputError(f"{file.path}: is nested too deeply, or an alias contains itself") from None


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:  # Python itself refuses to print integers of thousands of digits
        raise ValueError
    return int(text, {"0x": 16, "0o": 8}.get(text[:2], 10))


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int": _integer,
    "float": _float,
    "bool": _boolean,
    "null": lambda text: None,
}


class _Builder:
    """Builds plain values from PyYAML's nodes and notes the line of every key in ``file``."""

    def __init__(self, file: YamlFile) -> None:
        self.file = file
        self.values = 0

    def build(self, node: yaml.Node, key_path: KeyPath) -> Any:
        self.values += 1
        if self.values > _MAX_VALUES:
            self._fail(node, f"more than {_MAX_VALUES} values: do aliases multiply each other?")
        kind = node.tag.removeprefix(_TAGS)
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node, key_path)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._item(child, (*key_path, i)) for i, child in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or kind not in _SCALARS:
            self._fail(node, f"the tag {node.tag} is not allowed here")
        try:
            return _SCALARS[kind](node.value)
        except (KeyError, ValueError):
            self._fail(node, f"cannot be read as {kind}: {shown(node.value)}")

    def _item(self, node: yaml.Node, key_path: KeyPath) -> Any:
        self.file.lines[key_path] = node.start_mark.line + 1
        return self.build(node, key_path)

    def _mapping(self, node: yaml.MappingNode, key_path: KeyPath) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._fail(key_node, "a key must be plain text")
            key = str(key_node.value)
            if key in first_line:
                dotted = ".".join(map(str, (*key_path, key)))
                self._fail(key_node, f"the key {dotted} was already given on line {first_line[key]}")
            first_line[key] = key_node.start_mark.line + 1
            if key == _MERGE and key_node.style is None:  # in quotes it is a key like any other
                merged = self._merged(value_node, key_path)
            else:
                own[key] = self._item(value_node, (*key_path, key))
        self.file.lines |= {(*key_path, key): first_line[key] for key in own}
        return {**merged, **own}

    def _merged(self, node: yaml.Node, key_path: KeyPath) -> dict[str, Any]:
        """What ``<<: *anchor`` or ``<<: [*first, *second]`` brings in; earlier mappings win."""
        result: dict[str, Any] = {}
        for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(part, yaml.MappingNode):
                self._fail(part, "<< takes the alias of a mapping, or a list of such")
            result = {**self.build(part, key_path), **result}
        return result

    def _fail(self, node: yaml.Node, message: str) -> NoReturn:
        raise InputError(f"{self.file.path}:{node.start_mark.line + 1}: {message}")


def _not_yaml(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = " ".join((getattr(error, "problem", None) or str(error)).split())
    if problem.startswith("but "):
        problem = f"{getattr(error, 'context', '')}, {problem}"
    if mark is None:
        return f"{path}: is not valid YAML: {problem}"
    spaces = " (use spaces)" if "'\\t'" in problem else ""
    return f"{path}:{mark.line + 1}: is not valid YAML: {problem}{spaces} (column {mark.column + 1})"
