"""From pydantic's errors to one report a user can act on: full key path, what was given, the nearest valid name."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, ValidationError, ValidationInfo

from cs_aligner_cli.errors import InputError, did_you_mean
from cs_aligner_cli.yamlfile import KeyPath, YamlFile


class Strict(BaseModel):
    """Base of every recipe and manifest section: frozen, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False)


class CommandLineText(str):
    """A value given with --set: its relative paths are meant from the current folder, as in any shell command."""


def resolve_path(text: str, info: ValidationInfo, prefix: str = "") -> Path:
    """The absolute path meant by ``text``: from the current folder with --set, else from the stating file's folder."""
    base = Path.cwd() if isinstance(text, CommandLineText) else (info.context or {}).get("base", Path.cwd())
    return Path(base, Path(text.removeprefix(prefix)).expanduser()).resolve()


def _path(value: Any, info: ValidationInfo) -> Any:
    return resolve_path(value, info) if isinstance(value, str) else value


FilePath = Annotated[Path, BeforeValidator(_path)]



def by_kind(default: str) -> Discriminator:
    """Tell the members of a union apart by their key ``kind``; where it is left out, ``default`` is meant."""

    def kind_of(value: Any) -> Any:
        return value.get("kind", default) if isinstance(value, dict) else getattr(value, "kind", None)

    return Discriminator(kind_of)


M = TypeVar("M", bound=Strict)


def validate(model: type[M], file: YamlFile, overrides: dict[KeyPath, str] | None = None) -> M:
    """Return ``file`` as a ``model``; raise one InputError that lists every problem otherwise.

    ``overrides`` maps the key paths that came from --set to their raw text: where the schema wants text but YAML
    read a number (``--set name=2024``), the raw text is what the user meant.
    """
    context = {"base": file.path.parent.resolve()}
    data = file.data
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        text_wanted = {
            path: raw
            for path, raw in (overrides or {}).items()
            if any(e["type"] == "string_type" and _real_path(e["loc"], data) == path for e in error.errors())
        }
        for path, raw in text_wanted.items():
            set_value(data, path, CommandLineText(raw))
        if text_wanted:
            return validate(model, file)
        problems = [_problem(model, file, dict(e), overrides or {}) for e in error.errors()]
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    raise InputError(f"{file.path} has {count}:\n" + "\n".join(f"  {p}" for p in dict.fromkeys(problems)))


def set_value(data: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set the value at a dotted key path, making the mappings on the way."""
    *parents, last = path
    for key in parents:
        if not isinstance(data.get(key), dict):  # type: ignore[call-overload]
            data[key] = {}  # type: ignore[index]
        data = data[key]  # type: ignore[index]
    data[last] = value  # type: ignore[index]


def _problem(model: type[BaseModel], file: YamlFile, error: dict[str, Any], overrides: dict[KeyPath, str]) -> str:
    path = _real_path(error["loc"], file.data)
    dotted = ".".join(map(str, path)) or "(top level)"
    place = "--set" if any(path[: len(p)] == p for p in overrides) else file.where(path)
    kind, given = error["type"], error["input"]
    if kind == "extra_forbidden":
        known = sorted({name for m in _models_at(model, error["loc"][:-1]) for name in m.model_fields})
        return f"{place}: {dotted}: unknown key{_nearest_key(model, str(path[-1]), known, path[:-1])}"
    if kind == "missing":
        return f"{place}: {dotted}: this key is missing"
    if kind == "union_tag_invalid":
        kinds = sorted(k for m in _models_at(model, error["loc"]) for k in _kinds(m))
        return f"{place}: {dotted}.kind: got {error['ctx']['tag']!r}{did_you_mean(error['ctx']['tag'], kinds)}"
    if kind == "literal_error":
        allowed = [s.strip(" '\"") for s in error["ctx"]["expected"].replace(" or ", ",").split(",")]
        return f"{place}: {dotted}: got {given!r}{did_you_mean(str(given), allowed)}"
    message = error["msg"].removeprefix("Value error, ")
    # Checks of a whole section speak for themselves; repeating the section's content would bury the message.
    shown = "" if isinstance(given, dict | BaseModel) else f"got {given!r}: "
    return f"{place}: {dotted}: {shown}{message[0].lower()}{message[1:]}"


def _nearest_key(model: type[BaseModel], key: str, known: list[str], parent: KeyPath) -> str:
    prefix = "".join(f"{p}." for p in parent)
    near = did_you_mean(key, known)
    if "did you mean" in near:
        return near.replace("did you mean ", f"did you mean {prefix}")
    elsewhere = [path for path in leaf_keys(model) if path.rsplit(".", 1)[-1] == key]
    return f"; did you mean {elsewhere[0]}?" if elsewhere else near


def _real_path(loc: tuple[int | str, ...], data: Any) -> KeyPath:
    """Drop from pydantic's location what is no key of the file: union tags and validator names."""
    path: list[str | int] = []
    for i, part in enumerate(loc):
        if isinstance(data, dict) and part in data:
            path.append(part)
            data = data[part]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
        elif isinstance(data, dict) and i == len(loc) - 1:
            path.append(part)
    return tuple(path)


def section_models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model class inside an annotation (Annotated, Optional and unions opened)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (Annotated, typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from section_models(argument)


def _models_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """The model classes that may stand at a pydantic location; a union's tag narrows them to one."""
    candidates = [model]
    for part in loc:
        inner = [m for c in candidates if part in c.model_fields for m in section_models(c.model_fields[str(part)].annotation)]
        candidates = inner or [c for c in candidates if part in _kinds(c)] or candidates
    return candidates


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    return typing.get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def leaf_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key path that leads to a value in ``model``."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        inner = list(section_models(info.annotation))
        keys += [k for m in inner for k in leaf_keys(m, f"{prefix}{name}.")] if inner else [prefix + name]
    return list(dict.fromkeys(keys))
