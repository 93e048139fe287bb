"""The results of a search as one HTML file that needs no network: thumbnails with captions."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from cs_aligner_cli.common.templates import load_template
from cs_aligner_cli.data.thumbnails import thumbnail

_SIDE = 220


def render_search_page(name: str, found: Mapping[str, Any], background: str | None = None) -> str:
    """Return the page of what ``stages.search`` found; every text is escaped, every photo a small JPEG inside.

    ``background`` is the colour that the encoder saw behind transparent places, None: the colours that they hide.

    A photo that is not there, or is no image, has its id in its place.
    """
    template = load_template(__package__, "page.html.j2", thumbnail=partial(_thumbnail, background=background))
    return template.render(name=name, found=found)


@cache
def _thumbnail(path: str, background: str | None) -> str:
    """A JPEG of at most 220 pixels a side as base64; empty where there is no photo."""
    jpeg = thumbnail(Path(path), _SIDE, background) if path else None
    return base64.b64encode(jpeg).decode("ascii") if jpeg else ""
