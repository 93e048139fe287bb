"""What a shell may offer behind --set: the keys that take a value, and the values of those that take only a few."""

from __future__ import annotations

from pydantic import BaseModel

from cs_aligner_cli.recipe.messages import literals, section_models


def settable_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key that takes a plain value, in any kind of its sections."""
    keys: list[str] = []
    for name, info in model.model_fields.items():
        sections = list(section_models(info.annotation))
        if not sections or isinstance(info.default, int | float | str):
            keys.append(prefix + name)
        keys += [key for section in sections for key in settable_keys(section, f"{prefix}{name}.")]
    return list(dict.fromkeys(keys))


def choices(model: type[BaseModel], key: str) -> list[str]:
    """The values of a dotted key that has only a few, in any kind of its sections; none where it takes any."""
    *parents, last = key.split(".")
    sections = [model]
    for part in parents:
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = [inner for info in fields for inner in section_models(info.annotation)]
    wanted = [section.model_fields[last].annotation for section in sections if last in section.model_fields]
    found = [["true", "false"] if annotation is bool else literals(annotation) for annotation in wanted]
    return list(dict.fromkeys(value for values in found for value in values))
