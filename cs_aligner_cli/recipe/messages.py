"""From pydantic's errors to one report to act on: key path, what was given, the nearest valid name."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, ValidationError, ValidationInfo
from pydantic_core import ErrorDetails

from cs_aligner_cli.common.errors import InputError, did_you_mean, listed
from cs_aligner_cli.recipe.shelf import base_folder
from cs_aligner_cli.recipe.strict_yaml import KeyPath, YamlFile, shown
from cs_aligner_cli.recipe.synonyms import NOTES, SYNONYMS, plain

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$"


class Strict(BaseModel):
    """Base of every recipe and manifest section: frozen, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


# In the JSON Schema: a section without a kind is one of the default kind, and matches no other.
KIND_IS_NEEDED: dict[str, Any] = {"required": ["kind"]}


class CommandLineText(str):
    """Text given with --set: its relative paths are meant from the current folder, as in any command."""


def resolve_path(text: str, info: ValidationInfo, prefix: str = "") -> Path:
    """The absolute path meant by ``text``, relative to the current folder with --set, else to its file's."""
    context = info.context or {}
    base = Path.cwd() if isinstance(text, CommandLineText) else context.get("base", Path.cwd())
    path = text.removeprefix(prefix)
    if not path:
        raise ValueError("expected a path")
    try:
        return Path(base, Path(path).expanduser()).resolve()
    except RuntimeError:
        raise ValueError("the home folder of that user is not known") from None


def _path(value: Any, info: ValidationInfo) -> Any:
    return resolve_path(value, info) if isinstance(value, str) else value


FilePath = Annotated[Path, BeforeValidator(_path)]


def by_kind(default: str) -> Discriminator:
    """Tell the members of a union apart by their key ``kind``; where it is left out, ``default`` is meant."""

    def kind_of(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", None)

    return Discriminator(kind_of)


# The tag of the member of a union that is written as a plain value, where the others are sections.
PLAIN = "plain"


def plain_or_kind(default: str) -> Discriminator:
    """As ``by_kind``, but a value that is no section is the member with the tag PLAIN."""

    def form_of(value: Any) -> Any:
        return by_kind(default).discriminator(value) if isinstance(value, dict | BaseModel) else PLAIN  # type: ignore[operator]

    return Discriminator(form_of)


M = TypeVar("M", bound=Strict)
# What was given with --set: key path to raw text.
Overrides: TypeAlias = Mapping[KeyPath, str]


def validate(model: type[M], file: YamlFile, overrides: Overrides | None = None, given_by: str = "--set") -> M:
    """Return ``file`` as a ``model``; raise one InputError that lists every problem otherwise.

    ``overrides`` are the --set that ``file.data`` already holds: where the schema wants text but YAML read a
    number (``--set name=2024``), the raw text is what the user meant; "" is no text. ``given_by`` names their origin.
    """
    overrides = overrides or {}
    try:
        return model.model_validate(file.data, context={"base": base_folder(file.path)})
    except ValidationError as error:
        errors = error.errors(include_url=False)
    meant_as_text = {
        path: overrides[path]
        for error in errors
        if error["type"] in _TEXT_WANTED and overrides.get(path := _locate(model, error["loc"]).path)
    }
    if meant_as_text:
        for path, raw in meant_as_text.items():
            set_value(file.data, path, CommandLineText(raw))
        return validate(model, file, overrides, given_by)
    problems = list(dict.fromkeys(_problems(model, file, errors, overrides, given_by)))
    if len(problems) == 1:
        raise InputError(problems[0])
    raise InputError(f"{file.path} has {len(problems)} problems:\n" + "\n".join(f"  {p}" for p in problems))


def set_value(data: dict[str, Any], path: KeyPath, value: Any, given_by: str = "--set") -> None:
    """Set the value at a key path, making absent sections; InputError if a value is in the way of one.

    A kind takes the place of a plain value: weight.kind=relative of weight: 1.0.
    """
    for depth, key in enumerate(path[:-1], 1):
        chooses_kind = path[depth:] == ("kind",) and not isinstance(data.get(str(key)), dict | list)
        if data.get(str(key)) is None or chooses_kind:
            data[str(key)] = {}
        if not isinstance(data[str(key)], dict):
            above = f"{_dotted(path[:depth])} is {shown(data[str(key)])}"
            raise InputError(f"{given_by} {_dotted(path)}: {above} here, and has no keys of its own")
        data = data[str(key)]
    data[str(path[-1])] = value


def _problems(
    model: type[BaseModel], file: YamlFile, errors: Sequence[ErrorDetails], overrides: Overrides, given_by: str
) -> Iterator[str]:
    """One message per problem. Where ``kind`` is misspelt, the section's other keys cannot be judged."""
    spots = [_locate(model, error["loc"]) for error in errors]
    kindless = {s.path[:-1] for s in spots if s.unknown and s.rivals and _misspelt_kind(str(s.path[-1]))}
    for error, spot in zip(errors, spots, strict=True):
        if spot.path[:-1] in kindless and not _misspelt_kind(str(spot.path[-1])):
            continue
        path, text = _message(model, error, spot)
        key = f"{_dotted(path)}: " if path else ""  # checks of the whole file name the keys that they are about
        named = _named(spot, text) if error["type"] == "value_error" else path
        given = named in file.lines or any(named[: len(p)] == p for p in overrides)
        place = _place(file, named if given else path, error["input"], overrides, given_by)
        yield f"{file.where(named) if place == str(file.path) else place}: {key}{text}"


def _named(spot: _Spot, text: str) -> KeyPath:
    """The key that a check of a whole section begins with; the section's own where it names none."""
    parts = re.split(r"[^\w.]", text, maxsplit=1)[0].split(".")
    known = any(parts[0] in section.model_fields for section in section_models(spot.annotation))
    return (*spot.path, *(int(part) if part.isdigit() else part for part in parts)) if known else spot.path


def _misspelt_kind(key: str) -> bool:
    return bool(get_close_matches(key, ["kind"], cutoff=0.6))


def _place(file: YamlFile, path: KeyPath, given: Any, overrides: Overrides, given_by: str) -> str:
    """Where the value was given: by an override (at it, above it, or inside a section that is wrong), or a line."""
    by_set = any(path[: len(p)] == p or (p[: len(path)] == path and isinstance(given, dict)) for p in overrides)
    return given_by if by_set else file.where(path)


def _dotted(path: KeyPath) -> str:
    return ".".join(map(str, path))


def _message(root: type[BaseModel], error: ErrorDetails, spot: _Spot) -> tuple[KeyPath, str]:
    """The key path that a problem is about, and what is wrong there."""
    kind, given = error["type"], error["input"]
    sections = list(section_models(spot.annotation))
    if kind == "missing":
        return spot.path, "this key is required, and is missing"
    if spot.unknown:
        return spot.path, f"unknown key{_advice(root, spot)}"
    if kind.startswith("union_tag") and isinstance(given, dict):
        kinds = [name for section in sections for name in _kinds(section)]
        return (*spot.path, "kind"), f"got {shown(given['kind'])}{_choice(given['kind'], kinds)}"
    # Checks of a whole section speak for themselves; so do those of ours that follow a value.
    if kind == "value_error":
        text = str(error["msg"]).removeprefix("Value error, ")
        return spot.path, text if isinstance(given, dict) else f"got {shown(given)}; {text}"
    if kind == "literal_error":
        return spot.path, f"got {shown(given)}{_choice(given, literals(spot.annotation))}"
    return spot.path, f"got {shown(given)}; expected {_expected(error, spot, sections)}"


def _choice(given: Any, valid: Sequence[str]) -> str:
    near = did_you_mean(str(given), valid)
    return f"; expected one of: {listed(valid)}" + (near if "did you mean" in near else "")


_TEXT_WANTED = ("string_type", "is_instance_of", "path_type")
_EXPECTED = {
    "string_type": "text",
    "is_instance_of": "a path",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list, as in [1, 5]",
    "dict_type": "a section",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "at least {min_length} value(s)",
}


def _expected(error: ErrorDetails, spot: _Spot, sections: Sequence[type[BaseModel]]) -> str:
    kind, given = error["type"], error["input"]
    if kind == "string_pattern_mismatch" and error["ctx"]["pattern"] == NAME_PATTERN:
        return "only letters, digits, _ - and . (and no . at the start)"
    if sections and not isinstance(given, dict):
        text = f"a section with keys such as {', '.join(list(sections[0].model_fields)[:4])}"
    else:
        ours = _EXPECTED.get(kind)
        text = ours.format(**_rounded(error.get("ctx", {}))) if ours else str(error["msg"])
    if kind in _TEXT_WANTED and isinstance(given, int | float):
        text += " (put it in quotes)"
    if kind.startswith("int_") and isinstance(given, float) and given.is_integer():
        text += f" (write {int(given)})"
    wrong_type = kind.endswith("_type") or kind in ("is_instance_of", "union_tag_not_found")
    return f"{text}, or null" if wrong_type and _nullable(spot.annotation) else text


def _rounded(context: Mapping[str, Any]) -> dict[str, Any]:
    return {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}


def _advice(root: type[BaseModel], spot: _Spot) -> str:
    """What to write for an unknown key: its nearest neighbour, the same name elsewhere, or all names."""
    parent, key = spot.path[:-1], str(spot.path[-1])
    owners = [_kinds(section)[0] for section in spot.rivals if key in section.model_fields]
    if owners:
        own = _kinds(spot.section)[0]
        return f" of kind {own}; it belongs to kind {' or '.join(owners)}"
    known = list(spot.section.model_fields)
    paths = key_paths(root)
    if synonym := _of_synonym(spot, paths):
        return synonym
    names = {path: path.rsplit(".", 1)[-1] for path in paths}
    elsewhere = [path for path in paths if names[path] == key]
    near = get_close_matches(key, known, n=1, cutoff=0.8 if elsewhere else 0.6)
    beside = [_dotted((*parent, name)) for name in near]
    if not beside and not elsewhere:
        near_names = get_close_matches(key, list(names.values()), n=1, cutoff=0.8)
        elsewhere = [path for path in paths if names[path] in near_names]
    elsewhere.sort(key=lambda path: _shared(path.split("."), parent), reverse=True)
    suggestions = [*beside, *elsewhere[: 3 - len(beside)]]
    return f"; did you mean {' or '.join(suggestions)}?" if suggestions else did_you_mean(key, known)


def _of_synonym(spot: _Spot, paths: Sequence[str]) -> str:
    """The key that an unknown one goes by in papers or other tools, "" where it is no such name."""
    name = plain(str(spot.path[-1]))
    meant, note = SYNONYMS.get(name, ""), NOTES.get(name, "")
    if not meant:
        return ""
    if (last := meant.rsplit(".", 1)[-1]) in spot.section.model_fields:
        return f"; did you mean {_dotted((*spot.path[:-1], last))}{note}?"
    found = [path for path in paths if f".{path}".endswith(f".{meant}")]
    found.sort(key=lambda path: _shared(path.split("."), spot.path[:-1]), reverse=True)
    return f"; did you mean {found[0]}{note}?" if found else ""


def _shared(path: Sequence[str], other: KeyPath) -> int:
    """How many first parts two key paths have in common."""
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(path, other, strict=False))))


class _Spot(typing.NamedTuple):
    """What the schema says about one of pydantic's error locations.

    ``path`` is the key path as a user writes it, ``annotation`` what the schema wants there (None: nothing);
    ``section`` is the model around it, and ``rivals`` are the models that another ``kind`` would have chosen.
    """

    path: KeyPath
    annotation: Any
    section: type[BaseModel]
    rivals: tuple[type[BaseModel], ...]

    @property
    def unknown(self) -> bool:
        """Whether the schema has no such key."""
        return self.annotation is None


def _locate(root: type[BaseModel], loc: tuple[int | str, ...]) -> _Spot:
    """Follow a location through the schema, passing over what is no key: union tags and members."""
    spot = _Spot((), root, root, ())
    rivals: tuple[type[BaseModel], ...] = ()
    for part in loc:
        if part in (PLAIN, "[key]"):  # the latter where a free mapping's key is wrong itself
            continue
        sections = tuple(section_models(spot.annotation))
        tagged = [section for section in sections if part in _kinds(section)]
        if tagged and (len(sections) > 1 or part not in sections[0].model_fields):
            spot, rivals = spot._replace(annotation=tagged[0]), sections
        elif sections:
            info = sections[0].model_fields.get(str(part))
            spot = _Spot((*spot.path, part), info.annotation if info else None, sections[0], rivals)
            rivals = ()
        elif items := _item_annotation(spot.annotation):
            spot = spot._replace(path=(*spot.path, part), annotation=items)
    return spot


def _item_annotation(annotation: Any) -> Any:
    """What stands inside a list or dict annotation (or one that may be null), None for others."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if typing.get_origin(candidate) in (list, dict):
            return typing.get_args(candidate)[-1]
    return None


def section_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model class inside an annotation (Annotated, Optional and unions opened)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from section_models(argument)


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    return tuple(literals(model.model_fields["kind"].annotation)) if "kind" in model.model_fields else ()


def literals(annotation: Any) -> list[str]:
    """The words that a value may be, wherever they stand in its annotation."""
    if typing.get_origin(annotation) is typing.Literal:
        return [str(argument) for argument in typing.get_args(annotation)]
    return [literal for argument in typing.get_args(annotation) for literal in literals(argument)]


def _nullable(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def key_paths(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key path of ``model``, sections included."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        keys += [key for section in section_models(info.annotation) for key in key_paths(section, f"{prefix}{name}.")]
    return list(dict.fromkeys(keys))
