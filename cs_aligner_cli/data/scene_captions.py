"""Captions of drawn scenes: varied words for what is in a picture and how it lies."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import cycle, pairwise

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.scenes import GRID, TRIMS, Scene, Thing

MAX_CAPTIONS = 20  # every scene can be told in at least so many different ways

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


def captions(scene: Scene, count: int = 5) -> list[str]:
    """Return ``count`` different captions of a scene, always the same ones; fewer are the first of more.

    In every five, two name all things, two name at least two of them, and one tells less. Where there is one thing
    alone, the first two say colour, shape, place and background.

    Raises:
        InputError: ``count`` is not within 1 and 20.
    """
    if not 1 <= count <= MAX_CAPTIONS:
        raise InputError(f"scenes: {count} captions of each picture asked for; expected 1 to {MAX_CAPTIONS}")
    rng = random.Random(repr(scene))
    groups = (FULL, PAIR, LESS) if len(scene.things) > 1 else (FULL_ALONE, PART_ALONE, LESS_ALONE)
    full, pair, less = (cycle(rng.sample(group, len(group))) for group in groups)
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

    def placed(self) -> str:
        thing = self.things[0]
        return f"{self.opening()}{self.a(thing)} {self.place(thing)}{self.setting()}"

    def introduced(self) -> str:
        thing = self.things[0]
        return f"one shape{self.setting()}: {self.a(thing)} {self.place(thing)}"

    def grounded(self) -> str:
        return f"{self.opening()}{self.a(self.things[0])}{self.setting()}"

    def coloured(self) -> str:
        thing = self.things[0]
        return f"{self.opening()}something {self.word(thing.colour)} {self.place(thing)}{self.setting(0.6)}"

    def shaped(self) -> str:
        thing = self.things[0]
        return f"{self.opening()}a {self.word(thing.shape)} {self.place(thing)}{self.setting(0.6)}"


Template = Callable[[_Speaker], str]
FULL: tuple[Template, ...] = (_Speaker.chain, _Speaker.listing, _Speaker.places)
PAIR: tuple[Template, ...] = (_Speaker.relating, _Speaker.stating, _Speaker.between, _Speaker.counting)
LESS: tuple[Template, ...] = (_Speaker.locating, _Speaker.picking, _Speaker.palette)
FULL_ALONE: tuple[Template, ...] = (_Speaker.placed, _Speaker.introduced)
PART_ALONE: tuple[Template, ...] = (_Speaker.locating, _Speaker.grounded)
LESS_ALONE: tuple[Template, ...] = (_Speaker.coloured, _Speaker.shaped)


def _join(parts: Sequence[str]) -> str:
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]
