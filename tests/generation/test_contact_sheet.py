"""The contact sheet as a picture: what stands on it is whole."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from cs_aligner_cli.generation.contact_sheet import sheet_png


def _drawn(prompt: str, store: str = "aligned") -> Image.Image:
    return Image.open(io.BytesIO(sheet_png({store: [Image.new("RGB", (48, 48), "red")]}, [prompt])))


def test_a_long_prompt_stands_whole_above_its_picture_and_a_long_name_beside_it() -> None:
    short, long = _drawn("a star"), _drawn("one shape on a pale green background: a large turquoise star in the centre")
    assert short.width == long.width and short.height < long.height
    for sheet in (short, long, _drawn("a star", "a_name_that_is_longer_than_its_column:aligned")):
        red = (np.asarray(sheet) == (255, 0, 0)).all(axis=2)
        assert red.sum() == 112 * 112, "letters over the picture"
        assert (np.asarray(sheet)[red.any(axis=1).argmax() - 2] == 255).all()


def test_a_wide_photo_is_cut_and_not_squeezed() -> None:
    photo = Image.new("RGB", (300, 150), "blue")
    photo.paste((255, 0, 0), (75, 0, 225, 150))  # the middle square
    for size in ((300, 150), (30, 15)):
        sheet = Image.open(io.BytesIO(sheet_png({"a": [photo.resize(size, Image.Resampling.BOX)]}, ["a star"])))
        assert (np.asarray(sheet)[-100:-20, -100:-20] == (255, 0, 0)).all()
        assert (np.asarray(sheet)[-60, 160:-10] == (255, 0, 0)).mean() > 0.9
