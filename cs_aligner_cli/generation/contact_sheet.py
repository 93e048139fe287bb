"""The contact sheet: rows are stores, columns are prompts, every column drawn with one seed."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from io import BytesIO
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

_LABEL_WIDTH, _PROMPT_HEIGHT, _GAP = 150, 78, 6
_SIDE = 112
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #1c1c1e; background: #fff; }
table { border-collapse: collapse; } th, td { padding: 3px; text-align: left; vertical-align: bottom; }
thead th { font-weight: normal; font-size: 12px; max-width: 112px; } tbody th { white-space: nowrap; }
td img { display: block; width: 112px; height: 112px; }
div { overflow-x: auto; }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #1c1c1e; } }
"""


def sheet_png(rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str]) -> bytes:
    """The sheet as one PNG; ``rows`` are the pictures of each store, one for every prompt."""
    width = _LABEL_WIDTH + len(prompts) * (_SIDE + _GAP)
    sheet = Image.new("RGB", (width, _PROMPT_HEIGHT + len(rows) * (_SIDE + _GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, prompt in enumerate(prompts):
        lines = wrap(prompt, 17)[:5]
        pen.text((_LABEL_WIDTH + column * (_SIDE + _GAP), 4), "\n".join(lines), fill="black", font=font)
    for row, (store, pictures) in enumerate(rows.items()):
        top = _PROMPT_HEIGHT + row * (_SIDE + _GAP)
        pen.text((4, top + _SIDE // 2 - 8), "\n+".join(store.split("+")), fill="black", font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(_small(picture), (_LABEL_WIDTH + column * (_SIDE + _GAP), top))
    return _png(sheet)


def sheet_html(rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str], title: str) -> str:
    """The sheet as one HTML page that opens without a network."""
    heads = "".join(f'<th scope="col">{escape(prompt)}</th>' for prompt in prompts)
    body = []
    for store, pictures in rows.items():
        cells = "".join(
            f'<td><img alt="{escape(store)}: {escape(prompt)}" src="data:image/png;base64,'
            f'{b64encode(_png(_small(picture))).decode()}"></td>'
            for picture, prompt in zip(pictures, prompts, strict=True)
        )
        body.append(f'<tr><th scope="row">{escape(store)}</th>{cells}</tr>')
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1><p>Rows are what the decoder was fed; the"
        f" pictures of a column have one prompt and one seed.</p><div><table><thead><tr><td></td>{heads}</tr>"
        "</thead><tbody>"
        f"{''.join(body)}</tbody></table></div></body></html>\n"
    )


def _small(picture: Image.Image) -> Image.Image:
    """A square thumbnail; small pictures are enlarged without smoothing, so that their pixels are seen."""
    square = picture.convert("RGB")
    enlarging = max(square.size) < _SIDE
    return square.resize((_SIDE, _SIDE), Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS)


def _png(picture: Image.Image) -> bytes:
    content = BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
