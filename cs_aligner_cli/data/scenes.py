"""Captioned pictures drawn by the program: coloured shapes, and varied words for how they lie."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise, product
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
MAX_CAPTIONS = 20  # every scene can be told in at least so many different ways


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
SCENES_THAT_EXIST = sum(comb(GRID**2, n) * perm(len(KINDS), n) * len(SIZES) ** n for n in OBJECTS)

# The first of each is the usual word.
WORDS: dict[str, tuple[str, ...]] = {
    "turquoise": ("turquoise", "teal"),
    "purple": ("purple", "violet"),
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "diamond": ("diamond", "rhombus"),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "small": ("small", "little", "tiny"),
    "medium": ("", "medium sized"),
    "large": ("large", "big"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "higher than"),
    "below": ("below", "under", "lower than"),
    "beside": ("next to", "beside"),
}
PLACES = (
    ("in the top left corner", "at the top left"),
    ("at the top", "at the top in the middle"),
    ("in the top right corner", "at the top right"),
    ("on the left", "on the left side"),
    ("in the middle", "in the centre"),
    ("on the right", "on the right side"),
    ("in the bottom left corner", "at the bottom left"),
    ("at the bottom", "at the bottom in the middle"),
    ("in the bottom right corner", "at the bottom right"),
)
LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
OPENINGS = ("", "", "there is ", "here is ", "we see ", "a picture of ", "the picture shows ")


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
    """What is in a picture: two to four things in reading order, no two of the same colour and shape."""

    things: tuple[Thing, ...]
    background: str
    trim: str

    @property
    def signature(self) -> str:
        """What makes a scene itself: its things and their cells, whatever the jitter and the background."""
        return "; ".join(f"{t.cell} {t.size} {t.colour} {t.shape}" for t in self.things)


def make_scenes(counts: Mapping[str, int], seed: int) -> dict[str, list[Scene]]:
    """Draw ``counts[split]`` scenes for each split, all with different signatures.

    The signature's hash decides which of the splits a scene belongs to. So for the same split names none
    leaks from one split into another, whatever the seeds, and a split keeps its scenes when the counts of the
    others change.

    Raises:
        InputError: a count below 1, or above the split's share of the scenes that exist.
    """
    share = SCENES_THAT_EXIST // max(len(counts), 1)
    for split, count in counts.items():
        if not 1 <= count <= share:
            raise InputError(f"scenes: split {split!r} asks for {count} scenes; expected 1 to {share}")
    names = sorted(counts)
    return {split: _make_split(names, split, counts[split], seed) for split in counts}


def _make_split(names: Sequence[str], split: str, count: int, seed: int) -> list[Scene]:
    rng = random.Random(f"scenes {seed} {split}")
    scenes: dict[str, Scene] = {}
    while len(scenes) < count:
        scene = _sample(rng)
        if names[crc32(scene.signature.encode()) % len(names)] == split:
            scenes.setdefault(scene.signature, scene)
    return list(scenes.values())


def _sample(rng: random.Random) -> Scene:
    number = rng.choice(OBJECTS)
    cells = sorted(rng.sample(range(GRID**2), number))
    things = [_place(rng, *kind, cell) for kind, cell in zip(rng.sample(KINDS, number), cells, strict=True)]
    return Scene(tuple(things), rng.choice(tuple(BACKGROUNDS)), rng.choice(tuple(TRIMS)))


def _place(rng: random.Random, colour: str, shape: str, cell: int) -> Thing:
    size = rng.choice(tuple(SIZES))
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


def captions(scene: Scene, count: int = 5) -> list[str]:
    """Return ``count`` different captions of a scene, always the same ones; fewer are the first of more.

    In every five, two name all things, two name at least two of them, and one tells less.

    Raises:
        InputError: ``count`` is not within 1 and 20.
    """
    if not 1 <= count <= MAX_CAPTIONS:
        raise InputError(f"scenes: {count} captions of each picture asked for; expected 1 to {MAX_CAPTIONS}")
    rng = random.Random(repr(scene))
    full, pair, less = (cycle(rng.sample(group, len(group))) for group in (FULL, PAIR, LESS))
    texts: dict[str, None] = {}
    for templates in cycle((full, pair, full, pair, less)):
        texts[next(templates)(_Speaker(scene, rng))] = None
        if len(texts) == count:
            break
    return list(texts)


class _Speaker:
    """The words of one caption: within it a thing keeps its name, from one caption to the next they vary."""

    def __init__(self, scene: Scene, rng: random.Random) -> None:
        self.scene, self.rng = scene, rng
        self.things = rng.sample(scene.things, len(scene.things))
        self.names = {t: f"{self.word(t.colour)} {self.word(t.shape)}" for t in scene.things}
        self.number = NUMBERS[len(scene.things)]

    def word(self, name: str) -> str:
        usual, *rarer = WORDS.get(name, (name,))
        return self.rng.choice((usual, usual, *rarer))

    def a(self, thing: Thing) -> str:
        size = self.word(thing.size) if self.rng.random() < 0.7 else ""
        noun = f"{size} {self.names[thing]}".strip()
        return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"

    def the(self, thing: Thing) -> str:
        return f"the {self.names[thing]}"

    def place(self, thing: Thing) -> str:
        return self.rng.choice(PLACES[thing.cell])

    def opening(self) -> str:
        return self.rng.choice(OPENINGS)

    def setting(self, chance: float = 1.0) -> str:
        """Return the background, and half the time the trim too; with probability ``1 - chance`` nothing."""
        if self.rng.random() >= chance:
            return ""
        trim = self.rng.choice(("", TRIMS[self.scene.trim]))
        return f" {self.rng.choice(('on', 'against'))} a {self.scene.background} background{trim}"

    def relation(self, one: Thing, other: Thing) -> str:
        """Return words for where one thing lies from the other; of two axes either or both may be told."""
        (row, column), (other_row, other_column) = divmod(one.cell, GRID), divmod(other.cell, GRID)
        across = "" if column == other_column else "left" if column < other_column else "right"
        along = "" if row == other_row else "above" if row < other_row else "below"
        if across and along:
            return self.rng.choice((self.word(across), self.word(along), f"{along} and to the {across} of"))
        near = not along and abs(column - other_column) == 1
        return self.word("beside" if near and self.rng.random() < 0.3 else across or along)

    def pair(self) -> str:
        one, other = self.things[:2]
        return f"{self.a(one)} {self.relation(one, other)} {self.a(other)}"

    def chain(self) -> str:
        links = [f"{self.a(t)} {self.relation(t, o)} {self.the(o)}" for o, t in pairwise(self.things[1:])]
        more = f", with {_join(links)}" if links else self.setting(0.4)
        return f"{self.opening()}{self.pair()}{more}"

    def listing(self) -> str:
        things = _join([self.a(thing) for thing in self.things])
        if self.rng.random() < 0.5:
            return f"{self.number} shapes{self.setting(0.6)}: {things}"
        return f"{self.opening()}{things}{self.setting(0.6)}"

    def places(self) -> str:
        return self.opening() + _join([f"{self.a(thing)} {self.place(thing)}" for thing in self.things])

    def relating(self) -> str:
        return f"{self.opening()}{self.pair()}{self.setting(0.4)}"

    def stating(self) -> str:
        one, other = self.things[:2]
        verb = self.rng.choice(("is", "lies"))
        return f"{self.the(one)} {verb} {self.relation(one, other)} {self.the(other)}"

    def between(self) -> str:
        """Tell three things in a line, or relate two where there is no line."""
        at = {thing.cell: thing for thing in self.things}
        for line in LINES:
            if all(cell in at for cell in line):
                end, middle, other = (at[cell] for cell in line)
                return f"{self.opening()}{self.a(middle)} between {self.a(end)} and {self.a(other)}"
        return self.relating()

    def counting(self) -> str:
        one, other, *rest = self.things
        pair = f"{self.a(one)} and {self.a(other)}"
        if not rest:
            return f"only {pair}{self.setting()}"
        more = f"{NUMBERS[len(rest)]} {self.rng.choice(('more', 'other'))} shape{'s' if rest[1:] else ''}"
        return f"{self.opening()}{pair} with {more}{self.setting(0.4)}"

    def locating(self) -> str:
        thing = self.things[0]
        return f"{self.opening()}{self.a(thing)} {self.place(thing)}{self.setting(0.6)}"

    def picking(self) -> str:
        return f"one of the {self.number} shapes{self.setting(0.6)} is {self.a(self.things[0])}"

    def palette(self) -> str:
        colours = dict.fromkeys(self.names[thing].split()[0] for thing in self.things)
        return f"{self.number} shapes in {_join(list(colours))}{self.setting()}"


Template = Callable[[_Speaker], str]
FULL: tuple[Template, ...] = (_Speaker.chain, _Speaker.listing, _Speaker.places)
PAIR: tuple[Template, ...] = (_Speaker.relating, _Speaker.stating, _Speaker.between, _Speaker.counting)
LESS: tuple[Template, ...] = (_Speaker.locating, _Speaker.picking, _Speaker.palette)


def _join(parts: Sequence[str]) -> str:
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]
