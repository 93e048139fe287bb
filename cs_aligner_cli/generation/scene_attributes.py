"""What a picture of one drawn shape shows, read back from its pixels: background, colour, shape and cell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from cs_aligner_cli.common.types import Floats32
from cs_aligner_cli.data.scene_captions import PLACES, WORDS
from cs_aligner_cli.data.scenes import (
    BACKGROUNDS,
    CELL,
    COLOURS,
    GRID,
    SHAPES,
    SIZES,
    TRIM_COLOUR,
    TRIM_WIDTH,
    Scene,
    Thing,
    draw,
)

ATTRIBUTES = ("background", "colour", "shape", "cell")
# Pictures are read at this side, whatever theirs.
_SIDE = 64
# Fewer pixels than these are no shape; the smallest, a small star, has some 35.
_LEAST_PIXELS = 6
_GROUNDS, _COLOURS, _TRIM = (
    np.array(colours, np.float32) for colours in ([*BACKGROUNDS.values()], [*COLOURS.values()], [TRIM_COLOUR])
)


# Pixels, of a picture of ``_SIDE``, that a trim may cover in part: up to three beyond its edge, where it is blurred.
_FRAME, _BAND = (round(TRIM_WIDTH[trim] * _SIDE) + 3 for trim in ("frame", "band"))


def scene_attributes(scene: Scene) -> dict[str, str]:
    """The attributes of a scene of one thing, as text."""
    (thing,) = scene.things
    return {"background": scene.background, "colour": thing.colour, "shape": thing.shape, "cell": str(thing.cell)}


def read_attributes(picture: Image.Image) -> dict[str, str]:
    """What a picture shows, by ``ATTRIBUTES``; "none" for what cannot be seen because there is no shape.

    The background is the known one that most pixels are nearest to. The shape's colour is the known one that, together
    with background and trim (and what lies between these two where a trim may end), leaves the least unexplained of all
    pixels; its mask is how far each pixel lies on the way
    from the one to the other; and shape and place are those of the drawn outline, of all shapes, sizes and places, that
    overlaps the mask best.
    """
    small = picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small, np.float32).reshape(-1, 3)
    to_ground, to_colour, to_trim = (_squares(pixels, known) for known in (_GROUNDS, _COLOURS, _TRIM))
    near = to_ground.min(axis=1) <= np.minimum(to_colour.min(axis=1), to_trim[:, 0])
    if not near.any():
        return dict.fromkeys(ATTRIBUTES, "none")
    ground = int(np.bincount(to_ground.argmin(axis=1)[near], minlength=len(_GROUNDS)).argmax())
    found = {"background": [*BACKGROUNDS][ground]}
    to_other = np.minimum(to_ground[:, ground, None], to_trim)
    edge = _trim_may_end()
    to_other[edge, 0] = _off_way(pixels[edge], _GROUNDS[ground], _TRIM[0])[1]
    colour = int(np.minimum(to_colour, to_other).sum(axis=0).argmin())
    if (to_colour[:, colour] < to_other[:, 0]).sum() < _LEAST_PIXELS:
        return {**found, "colour": "none", "shape": "none", "cell": "none"}
    shape, x, y = _best_outline(_mask(np.asarray(small, np.float32), _GROUNDS[ground], _COLOURS[colour]))
    column, row = (int(np.clip((at - 0.5) / CELL + GRID / 2, 0, GRID - 1)) for at in (x, y))
    return {**found, "colour": [*COLOURS][colour], "shape": shape, "cell": str(row * GRID + column)}


def _squares(pixels: Floats32, known: Floats32) -> Floats32:
    """(pixels, colours) squared distances."""
    squares: Floats32 = np.square(pixels).sum(axis=1)[:, None] - 2 * pixels @ known.T + np.square(known).sum(axis=1)
    return squares


def _off_way(pixels: Floats32, start: Floats32, end: Floats32) -> tuple[Floats32, Floats32]:
    """(...) how far pixels (..., 3) lie on the way from one colour to another, 0 to 1, and how far off it, squared."""
    axis = end - start
    share = np.clip((pixels - start) @ axis / np.square(axis).sum(), 0, 1)
    return share, np.square(pixels - start - share[..., None] * axis).sum(axis=-1)


@cache
def _trim_may_end() -> npt.NDArray[np.bool_]:
    """(pixels,) where a frame or a band may cover a pixel in part: grey on white would pass for a shape's pink."""
    edge = np.ones((_SIDE, _SIDE), bool)
    edge[_FRAME:-_BAND, _FRAME:-_FRAME] = False
    return edge.ravel()


def _mask(pixels: Floats32, ground: Floats32, colour: Floats32) -> Floats32:
    """(side, side) how far each pixel lies on the way from the background to the shape's colour, 0 to 1."""
    share, off_way = _off_way(pixels, ground, colour)
    to_trim = np.square(pixels - _TRIM).sum(axis=-1)
    return np.where(off_way < to_trim, share, 0).astype(np.float32)


def _best_outline(mask: Floats32) -> tuple[str, float, float]:
    """The shape and the centre, in picture widths, of the outline with the best overlap with a mask (side, side).

    The overlap is a.b / (a.a + b.b - a.b), which for masks of 0 and 1 is intersection over union.
    """
    names, spectra, areas = _outlines()
    overlap = np.fft.irfft2(np.fft.rfft2(mask)[None] * spectra, s=mask.shape)
    ratio = overlap / (areas[:, None, None] + np.square(mask).sum() - overlap)
    best, dy, dx = np.unravel_index(int(ratio.argmax()), ratio.shape)
    # The outlines are drawn in the middle; a shift of more than half the picture is one to the other side.
    x, y = ((int(shift) + _SIDE // 2) % _SIDE / _SIDE for shift in (dx, dy))
    return names[int(best)], x, y


@cache
def _outlines() -> tuple[list[str], npt.NDArray[np.complex64], Floats32]:
    """Names, conjugate spectra and squared areas of all shapes in all sizes, drawn in the middle."""
    white, blue = np.array(BACKGROUNDS["white"]), np.array(COLOURS["blue"])
    names, masks = [], []
    for shape in SHAPES:
        for size in SIZES:
            pixels = np.asarray(draw(Scene((Thing(shape, "blue", size, 4, 0.5, 0.5),), "white", "plain"), _SIDE))
            masks.append((white - pixels.astype(np.float32)) @ (white - blue) / np.square(white - blue).sum())
            names.append(shape)
    stack = np.array(masks, np.float32)
    spectra = np.fft.rfft2(stack).conj().astype(np.complex64)
    return names, spectra, np.square(stack).sum(axis=(1, 2))


def stated_attributes(caption: str, truth: dict[str, str]) -> set[str]:
    """Those of a scene's attributes that one of its captions states, so that a text can be right about them."""
    stated = set()
    if f" {truth['background']} background" in caption:
        stated.add("background")
    for attribute in ("colour", "shape"):
        if any(_says(caption, word) for word in WORDS.get(truth[attribute], (truth[attribute],))):
            stated.add(attribute)
    if any(_says(caption, words) for words in PLACES[int(truth["cell"])]):
        stated.add("cell")
    return stated


def _says(caption: str, words: str) -> bool:
    return re.search(rf"\b{re.escape(words)}\b", caption) is not None


def attribute_accuracy(
    shown: Sequence[dict[str, str]], truths: Sequence[dict[str, str]], captions: Sequence[str] | None = None
) -> dict[str, float]:
    """The share of pictures that show each attribute as it is, the "mean" of these shares, and "all" of them at once.

    NaN where none counts.

    With ``captions`` only the attributes that a picture's caption states count: "all" then of the stated ones.
    """
    counted = [stated_attributes(text, truth) for text, truth in zip(captions, truths, strict=True)] if captions else []
    right: dict[str, list[bool]] = {name: [] for name in (*ATTRIBUTES, "all")}
    for i, (seen, truth) in enumerate(zip(shown, truths, strict=True)):
        names = [name for name in ATTRIBUTES if not captions or name in counted[i]]
        for name in names:
            right[name].append(seen[name] == truth[name])
        if names:
            right["all"].append(all(seen[name] == truth[name] for name in names))
    shares = {name: float(np.mean(values)) if values else float("nan") for name, values in right.items()}
    return {**shares, "mean": float(np.mean([shares[name] for name in ATTRIBUTES]))}
