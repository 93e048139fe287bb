"""The results of a search as one HTML file that needs no network: thumbnails with captions."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from cs_aligner_cli.data.images import BadImageError, read_image

_SIDE = 220


def render_search_page(name: str, found: Mapping[str, Any]) -> str:
    """Return the page of what ``stages.search`` found; every text is escaped, every photo a small JPEG inside.

    A photo that is not there, or is no image, has its id in its place.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thumbnail"] = _thumbnail
    template = files("cs_aligner_cli.search").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(name=name, found=found)


@cache
def _thumbnail(path: str) -> str:
    """A JPEG of at most 220 pixels a side as base64; empty where there is no photo."""
    if not path:
        return ""
    try:
        image, _ = read_image(Path(path))
    except BadImageError:
        return ""
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    content = BytesIO()
    image.save(content, "JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode("ascii")
