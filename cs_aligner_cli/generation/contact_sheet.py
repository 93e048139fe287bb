"""The contact sheet: rows are stores, columns are prompts, every column drawn with one seed."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont, ImageOps

from cs_aligner_cli.common.templates import load_template

_LABEL_WIDTH, _GAP, _SIDE = 150, 6, 112
_FONT_SIZE, _LINE = 11, 15
# Letters that fit above a picture, those beside a row, and the lines of a prompt that are not cut.
_ABOVE, _BESIDE, _MOST_LINES = 17, 22, 12


def sheet_png(rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str]) -> bytes:
    """The sheet as one PNG; ``rows`` are the pictures of each store, one for every prompt."""
    heads = [wrap(prompt, _ABOVE, max_lines=_MOST_LINES, placeholder=" ...") for prompt in prompts]
    above = _GAP + _LINE * max(len(lines) for lines in heads)
    size = _LABEL_WIDTH + len(prompts) * (_SIDE + _GAP), above + len(rows) * (_SIDE + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_SIZE)
    for column, lines in enumerate(heads):
        pen.text((_LABEL_WIDTH + column * (_SIDE + _GAP), 4), "\n".join(lines), fill="black", font=font)
    for row, (store, pictures) in enumerate(rows.items()):
        top = above + row * (_SIDE + _GAP)
        label = [line for part in store.replace("+", "\n+").split("\n") for line in wrap(part, _BESIDE)]
        pen.text((4, top + _SIDE // 2 - 8), "\n".join(label), fill="black", font=font)
        for column, picture in enumerate(pictures):
            sheet.paste(_small(picture), (_LABEL_WIDTH + column * (_SIDE + _GAP), top))
    return _png(sheet)


def sheet_html(rows: Mapping[str, Sequence[Image.Image]], prompts: Sequence[str], title: str) -> str:
    """The sheet as one HTML page that opens without a network; every text is escaped."""
    encoded = {store: [b64encode(_png(_small(picture))).decode() for picture in row] for store, row in rows.items()}
    return load_template(__package__, "sheet.html.j2").render(rows=encoded, prompts=prompts, title=title)


def _small(picture: Image.Image) -> Image.Image:
    """A thumbnail of the middle square, as encoders and decoders see it; small pictures are enlarged without smoothing,
    so that their pixels are seen."""
    enlarging = max(picture.size) < _SIDE
    resampling = Image.Resampling.NEAREST if enlarging else Image.Resampling.LANCZOS
    return ImageOps.fit(picture.convert("RGB"), (_SIDE, _SIDE), resampling)


def _png(picture: Image.Image) -> bytes:
    content = BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()
