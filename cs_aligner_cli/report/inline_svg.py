"""A figure's SVG as a part of the page: its paper, ink and lines take the colours of the page's scheme."""

from __future__ import annotations

import re
from html import escape

# Paper, ink, frames, grids and shades as matplotlib writes them, and the page's own colours for them.
_COLOURS = {"#ffffff": "card", "#000000": "ink", "#666666": "soft", "#dddddd": "line", "#c4c4c4": "shade"}
_FONT = re.compile(r"font: ([^'\"]*?)'DejaVu Sans'[^;\"]*")
_ID, _USED = re.compile(r' id="([^"]*)"'), re.compile(r'(?:url\(#|href="#)([^)"]*)')


def anchor(name: str) -> str:
    """A figure's name as an id: letters, digits and hyphens."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


def inline_svg(svg: bytes, name: str, words: str) -> str:
    """The ``<svg>`` element of a matplotlib SVG, with ``words`` as what a reader who does not see it hears.

    Ids that nothing refers to are left out, the others begin with ``name``: two figures may stand in one page.
    """
    name, text = anchor(name), svg.decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    text = _FONT.sub(r"font: \1var(--sans)", text).replace("xlink:href=", "href=")
    used = set(_USED.findall(text))
    text = _ID.sub(lambda found: f' id="{name}-{found[1]}"' if found[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r"\n\s*", "\n", text)
    opening, rest = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    return f'<svg {box[0] if box else ""} role="img" aria-label="{escape(words)}">{rest}'
