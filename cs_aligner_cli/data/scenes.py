"""Pictures drawn by the program: coloured shapes on plain grounds, a few to a picture."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from math import comb, cos, perm, pi, sin
from zlib import crc32

from PIL import Image, ImageDraw

from cs_aligner_cli.common.errors import InputError

Point = tuple[float, float]
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "red": (214, 32, 38),
    "orange": (250, 130, 16),
    "yellow": (248, 214, 20),
    "green": (34, 150, 58),
    "turquoise": (32, 200, 200),
    "blue": (36, 78, 222),
    "purple": (126, 44, 168),
    "pink": (250, 126, 190),
}
BACKGROUNDS: dict[str, Colour] = {
    "white": (252, 252, 252),
    "grey": (182, 182, 182),
    "black": (16, 16, 18),
    "beige": (238, 226, 202),
    "pale blue": (204, 220, 240),
    "pale green": (212, 234, 208),
}
TRIMS: dict[str, str] = {
    "plain": "",
    "frame": " inside a grey frame",
    "band": " with a grey band along the bottom",
}
TRIM_COLOUR: Colour = (104, 104, 110)
TRIM_WIDTH = {"plain": 0.0, "frame": 0.03, "band": 0.1}

GRID = 3
CELL = 0.31  # three cells and a margin on either side make the unit square
SIZES: dict[str, float] = {"small": 0.07, "medium": 0.105, "large": 0.14}  # radius in picture widths
MAX_JITTER = 0.05  # small enough that centres in different columns (or rows) stay clearly apart
OBJECTS = (2, 3, 4)
SUPERSAMPLE = 4


def _radial(count: int, radii: Sequence[float], turn: float = 0.0) -> list[Point]:
    """Return ``count`` points around the origin, clockwise from the top (turned), radii in rotation."""
    angles = [2 * pi * (i / count + turn) for i in range(count)]
    return [(r * sin(t), -r * cos(t)) for t, r in zip(angles, cycle(radii), strict=False)]


def _heart(count: int) -> list[Point]:
    angles = [2 * pi * i / count for i in range(count)]
    heights = [13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t) for t in angles]
    return [(sin(t) ** 3, -(h + 2.5) / 16) for t, h in zip(angles, heights, strict=True)]


SHAPES: dict[str, list[Point]] = {  # outlines around the origin, y down, nowhere beyond the unit square
    "circle": _radial(40, [0.95]),
    "square": [(-0.83, -0.83), (0.83, -0.83), (0.83, 0.83), (-0.83, 0.83)],
    "triangle": [(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)],
    "star": _radial(10, [1.0, 0.42]),
    "diamond": [(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)],
    "ring": [*_radial(40, [1.0]), (0.0, -1.0), (0.0, -0.55), *reversed(_radial(40, [0.55]))],
    "cross": _radial(12, [1.0, 1.0, 0.37], turn=-1 / 24),
    "heart": _heart(36),
}
KINDS = tuple(product(COLOURS, SHAPES))


@dataclass(frozen=True)
class Thing:
    """One shape of a scene; ``x`` and ``y`` are its centre in picture widths from the top left corner."""

    shape: str
    colour: str
    size: str
    cell: int  # 0 to 8, row by row
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """What is in a picture: one to four things in reading order, no two of the same colour and shape."""

    things: tuple[Thing, ...]
    background: str
    trim: str

    @property
    def signature(self) -> str:
        """What makes a scene itself: its things and their cells, whatever the jitter and the background.

        A thing alone is told apart by its background and trim too: there are only 1,728 such things in cells.
        """
        ground = [f"{self.background} {self.trim}"] if len(self.things) == 1 else []
        return "; ".join([*(f"{t.cell} {t.size} {t.colour} {t.shape}" for t in self.things), *ground])


def scenes_that_exist(objects: Sequence[int] = OBJECTS, sizes: Sequence[str] = tuple(SIZES)) -> int:
    """How many different scenes have one of these numbers of things, of these sizes."""
    grounds = {1: len(BACKGROUNDS) * len(TRIMS)}
    return sum(comb(GRID**2, n) * perm(len(KINDS), n) * len({*sizes}) ** n * grounds.get(n, 1) for n in {*objects})


def make_scenes(
    counts: Mapping[str, int], seed: int, objects: Sequence[int] = OBJECTS, sizes: Sequence[str] = tuple(SIZES)
) -> dict[str, list[Scene]]:
    """Draw ``counts[split]`` scenes for each split, all with different signatures, of ``objects`` things each, which
    have one of ``sizes``.

    The signature's hash decides which of the splits a scene belongs to. So for the same split names none
    leaks from one split into another, whatever the seeds, and a split keeps its scenes when the counts of the
    others change.

    Raises:
        InputError: a count below 1, or above the split's share of the scenes that exist.
    """
    # A hash deals the scenes out to the splits, not quite evenly; and the last few would take long to find.
    share = scenes_that_exist(objects, sizes) // max(len(counts), 1) * 9 // 10
    for split, count in counts.items():
        if not 1 <= count <= share:
            raise InputError(f"scenes: split {split!r} asks for {count} scenes; expected 1 to {share}")
    names = sorted(counts)
    return {split: _make_split(names, split, counts[split], seed, objects, sizes) for split in counts}


def _make_split(
    names: Sequence[str], split: str, count: int, seed: int, objects: Sequence[int], sizes: Sequence[str]
) -> list[Scene]:
    rng = random.Random(f"scenes {seed} {split}")
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = _sample(rng, objects, sizes)
        if names[crc32(scene.signature.encode()) % len(names)] == split:
            scenes.setdefault(scene.signature, scene)
    return list(scenes.values())


def _sample(rng: random.Random, objects: Sequence[int], sizes: Sequence[str]) -> Scene:
    number = rng.choice(objects)
    cells = sorted(rng.sample(range(GRID**2), number))
    things = [_place(rng, *kind, cell, sizes) for kind, cell in zip(rng.sample(KINDS, number), cells, strict=True)]
    return Scene(tuple(things), rng.choice(tuple(BACKGROUNDS)), rng.choice(tuple(TRIMS)))


def _place(rng: random.Random, colour: str, shape: str, cell: int, sizes: Sequence[str]) -> Thing:
    size = rng.choice(sizes)
    jitter = min(MAX_JITTER, CELL / 2 - SIZES[size])
    x, y = (0.5 + CELL * (step - 1) + rng.uniform(-jitter, jitter) for step in (cell % GRID, cell // GRID))
    return Thing(shape, colour, size, cell, round(x, 4), round(y, 4))


def draw(scene: Scene, size: int) -> Image.Image:
    """Return the picture of a scene: RGB, ``size`` by ``size`` pixels, anti-aliased."""
    side = size * SUPERSAMPLE
    picture = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    pen = ImageDraw.Draw(picture)
    edge = round(TRIM_WIDTH[scene.trim] * side)
    if scene.trim == "frame":
        pen.rectangle((0, 0, side - 1, side - 1), outline=TRIM_COLOUR, width=edge)
    elif scene.trim == "band":
        pen.rectangle((0, side - edge, side, side), fill=TRIM_COLOUR)
    for thing in scene.things:
        x, y, radius = thing.x * side, thing.y * side, SIZES[thing.size] * side
        outline = [(x + radius * u, y + radius * v) for u, v in SHAPES[thing.shape]]
        pen.polygon(outline, fill=COLOURS[thing.colour])
    return picture.reduce(SUPERSAMPLE)
