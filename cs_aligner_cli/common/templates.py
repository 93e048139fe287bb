"""The templates of pages, beside the modules that fill them."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Template


def read_resource(package: str, name: str) -> str:
    """The text of a file that lies in a package of csalign."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def load_template(package: str, name: str, **filters: Any) -> Template:
    """A template in which every value is escaped and one that is missing is an error."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters)
    return environment.from_string(read_resource(package, name))
