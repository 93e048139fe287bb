"""Writes docs/recipe.md from the recipe's schema (make docs), so that the page tells what the code does."""

from __future__ import annotations

import json
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cs_aligner_cli.recipe.messages import section_models
from cs_aligner_cli.recipe.recipe import Recipe

PAGE = Path(__file__).with_name("recipe.md")
_INTRODUCTION = """# The recipe, key by key

One YAML file drives every stage. Only `name` is required; state what differs from the defaults. Paths are relative to
the recipe file; paths given with `--set` are relative to the current folder. `csalign recipe validate FILE` lists every
problem at once, and `csalign recipe schema` prints the JSON Schema that editors use for completion.

This page is written by `make docs` from the schema.
"""
_TABLE = "\n| key | default | allowed | meaning |\n|---|---|---|---|"
_BOUNDS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= "}
_LIKE_IMAGE = ("encoders.text", "train.text", "train.further")


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([_INTRODUCTION, "## The top level", *_section(Recipe, "", set())]) + "\n"


def _section(model: type[BaseModel], prefix: str, described: set[tuple[str, type[BaseModel]]]) -> Iterator[str]:
    """The table of one section's own keys, then its sub-sections; ``told`` are those that were described already."""
    inner = {name: list(_sections_in(info.annotation)) for name, info in model.model_fields.items()}
    values = [name for name, models in inner.items() if not isinstance(model.model_fields[name].default, BaseModel)]
    if values:
        yield _TABLE
        yield from (_row(prefix + name, model.model_fields[name]) for name in values)
    for name, models in inner.items():
        key = prefix + name
        if key in _LIKE_IMAGE:
            whose = "The keys of each are" if name == "further" else "Its keys are"
            yield f"\n## `{key}`\n\n{model.model_fields[name].description} {whose} those of `{prefix}image`."
            continue
        for member in models:
            if (key, member) in described:
                continue
            described.add((key, member))
            kind = f", kind `{member.model_fields['kind'].default}`" if len(models) > 1 else ""
            each = "" if member in section_models(model.model_fields[name].annotation) else ", each of them"
            yield f"\n## `{key}`{kind}{each}\n\n{member.__doc__}"
            yield from _section(member, key + ".", described)


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a value is, or that its list or mapping holds."""
    yield from section_models(annotation)
    if typing.get_origin(annotation) in (list, dict):
        yield from section_models(typing.get_args(annotation)[-1])


def _row(key: str, info: FieldInfo) -> str:
    cells = [f"`{key}`", _default(info.default), ", ".join(_allowed(info)), str(info.description)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, float):
        return f"`{value:.6g}`"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _allowed(info: FieldInfo) -> list[str]:
    found = _literals(info.annotation)
    for constraint in (*info.metadata, *_inner_constraints(info.annotation)):
        for part in (constraint, *getattr(constraint, "metadata", ())):
            for name, sign in _BOUNDS.items():
                if (bound := getattr(part, name, None)) is not None:
                    found.append(f"{sign}{bound:,}")
    return list(dict.fromkeys(found))


def _inner_constraints(annotation: Any) -> Iterator[Any]:
    """What is asked of the values inside a union or list."""
    for argument in typing.get_args(annotation):
        yield from getattr(argument, "__metadata__", ())
        yield from _inner_constraints(argument)


def _literals(annotation: Any) -> list[str]:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return [str(argument) for argument in arguments]
    return [literal for argument in arguments for literal in _literals(argument)]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stderr.write(f"{PAGE.name} written\n")
