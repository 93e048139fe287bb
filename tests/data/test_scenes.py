"""The drawn data set: the same from the same seed, without leaks, and told truly."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.scene_captions import captions
from cs_aligner_cli.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    TRIM_COLOUR,
    Scene,
    Thing,
    draw,
    make_scenes,
)

# The words are listed here a second time, so that a slip in the module's own tables is seen.
SIZE_WORDS = {"small": "small", "little": "small", "tiny": "small", "medium sized": "medium"}
SIZE_WORDS |= {"large": "large", "big": "large"}
COLOUR_WORDS = {name: name for name in COLOURS} | {"teal": "turquoise", "violet": "purple"}
SHAPE_WORDS = {name: name for name in SHAPES} | {"disc": "circle", "box": "square", "rhombus": "diamond"}
SHAPE_WORDS |= {"hoop": "ring", "plus sign": "cross"}
NUMBER_WORDS = {"one": 1, "two": 2, "three": 3, "four": 4}
RELATIONS = {
    "to the left of": "left",
    "left of": "left",
    "to the right of": "right",
    "right of": "right",
    "above": "above",
    "higher than": "above",
    "below": "below",
    "under": "below",
    "lower than": "below",
    "next to": "beside",
    "beside": "beside",
    "above and to the left of": "above left",
    "above and to the right of": "above right",
    "below and to the left of": "below left",
    "below and to the right of": "below right",
}
PLACES = {
    "in the top left corner": "top left",
    "at the top left": "top left",
    "in the top right corner": "top right",
    "at the top right": "top right",
    "in the bottom left corner": "bottom left",
    "at the bottom left": "bottom left",
    "in the bottom right corner": "bottom right",
    "at the bottom right": "bottom right",
    "at the top in the middle": "top",
    "at the top": "top",
    "at the bottom in the middle": "bottom",
    "at the bottom": "bottom",
    "on the left side": "left",
    "on the left": "left",
    "on the right side": "right",
    "on the right": "right",
    "in the middle": "",
    "in the centre": "",
}
CLEAR = 0.15  # picture widths that two centres must lie apart before a caption may order them


def any_of(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


THING = rf"(?:an?|the) (?:(?:{any_of(SIZE_WORDS)}) )?(?:{any_of(COLOUR_WORDS)}) (?:{any_of(SHAPE_WORDS)})\b"
MENTION = re.compile(rf"(?:an?|the) ({any_of(SIZE_WORDS)})? ?({any_of(COLOUR_WORDS)}) ({any_of(SHAPE_WORDS)})\b")
RELATION = re.compile(rf"({THING}) (?:is |lies )?({any_of(RELATIONS)}) (?=({THING}))")
BETWEEN = re.compile(rf"({THING}) between ({THING}) and ({THING})")
RELATING_WORD = re.compile(r"\b(?:(?:left|right) of|above|higher|below|under|lower|next|beside|between)\b")
PLACE = re.compile(rf"({THING}) ({any_of(PLACES)})\b")


def find(scene: Scene, phrase: str) -> Thing:
    """Return the one thing of the scene that the phrase names; its size must be as said."""
    size, colour, shape = MENTION.fullmatch(phrase).groups()
    kind = (COLOUR_WORDS[colour], SHAPE_WORDS[shape])
    (thing,) = (t for t in scene.things if (t.colour, t.shape) == kind)
    assert size is None or SIZE_WORDS[size] == thing.size, phrase
    return thing


def captioned(scenes: list[Scene]) -> list[tuple[Scene, str]]:
    return [(scene, text) for scene in scenes for text in captions(scene)]


def mentioned(scene: Scene, text: str) -> set[Thing]:
    return {find(scene, match[0]) for match in MENTION.finditer(text)}


def holds(relation: str, one: Thing, other: Thing) -> bool:
    dx, dy = other.x - one.x, other.y - one.y
    checks = {"left": dx > CLEAR, "right": -dx > CLEAR, "above": dy > CLEAR, "below": -dy > CLEAR}
    if relation == "beside":
        return CLEAR < abs(dx) < 0.45 and abs(dy) < CLEAR
    return all(checks[word] for word in relation.split())


def is_at(place: str, thing: Thing) -> bool:
    row = "top" if thing.y < 1 / 3 else "bottom" if thing.y > 2 / 3 else ""
    column = "left" if thing.x < 1 / 3 else "right" if thing.x > 2 / 3 else ""
    return place == f"{row} {column}".strip()


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Scene]]:
    return make_scenes({"train": 300, "val": 50, "test": 50}, seed=0)


def fingerprint(seed: int) -> int:
    """Hash pixels and captions of one small data set."""
    value = 0
    for split, scenes in make_scenes({"train": 5, "test": 3}, seed).items():
        for scene in scenes:
            value = crc32(draw(scene, 32).tobytes() + repr((split, captions(scene))).encode(), value)
    return value


def test_one_seed_gives_one_data_set_in_any_process():
    here = fingerprint(7)
    assert here == fingerprint(7)
    assert here != fingerprint(8)
    elsewhere = subprocess.run(
        [sys.executable, "-c", "import test_scenes; print(test_scenes.fingerprint(7))"],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONHASHSEED": "99"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(elsewhere.stdout) == here


def test_counts_are_honoured_and_every_scene_is_unique(splits):
    assert {split: len(scenes) for split, scenes in splits.items()} == {"train": 300, "val": 50, "test": 50}
    signatures = [scene.signature for scenes in splits.values() for scene in scenes]
    assert len(set(signatures)) == len(signatures)


@pytest.fixture
def small_world(monkeypatch) -> int:
    """Leave only so many scenes that every draw is likely to repeat an earlier one; return their number."""
    monkeypatch.setattr("cs_aligner_cli.data.scenes.KINDS", (("red", "star"), ("blue", "ring")))
    return 36 * 2 * 9  # pairs of cells, orders of the kinds, pairs of sizes


def test_a_repeated_draw_is_rejected(small_world):
    count = small_world * 9 // 10
    scenes = make_scenes({"train": count}, seed=0, objects=(2,))["train"]
    assert len({scene.signature for scene in scenes}) == count


def test_no_scene_leaks_into_another_split_under_any_seed(small_world):
    seen: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for seed in range(5):
        for split, scenes in make_scenes(dict.fromkeys(seen, small_world // 6), seed, (2,)).items():
            seen[split] |= {scene.signature for scene in scenes}
    assert len(seen["train"] | seen["val"] | seen["test"]) == sum(map(len, seen.values()))


def test_a_split_keeps_its_scenes_when_other_counts_change(splits):
    other = make_scenes({"test": 80, "train": 10, "val": 1}, seed=0)
    assert other["test"][:50] == splits["test"]
    assert other["train"] == splits["train"][:10]


def test_scenes_are_varied(splits):
    things = [thing for scene in splits["train"] for thing in scene.things]
    assert {(t.colour, t.shape) for t in things} == {(c, s) for c in COLOURS for s in SHAPES}
    assert {(t.size, t.cell) for t in things} == {(size, cell) for size in SIZES for cell in range(9)}
    assert {len(scene.things) for scene in splits["train"]} == {2, 3, 4}
    assert len({(scene.background, scene.trim) for scene in splits["train"]}) == 18


@pytest.mark.parametrize("count", [0, -3, 10**12])
def test_impossible_counts_are_refused(count):
    with pytest.raises(InputError, match=rf"split 'val' asks for {count} scenes; expected 1 to \d+"):
        make_scenes({"train": 5, "val": count}, seed=0)


@pytest.mark.parametrize("count", [0, 21])
def test_impossible_numbers_of_captions_are_refused(splits, count):
    with pytest.raises(InputError, match=f"{count} captions of each picture asked for; expected 1 to 20"):
        captions(splits["val"][0], count)


def test_captions_are_distinct_plain_and_informative(splits):
    for scene in splits["train"]:
        texts = captions(scene)
        assert len(set(texts)) == 5
        assert all(re.fullmatch(r"[a-z]+(?:[,:]? [a-z]+)*", text) for text in texts), texts
        named = [len(mentioned(scene, text)) for text in texts]
        assert sum(n >= 2 for n in named) >= 4
        assert sum(n == len(scene.things) for n in named) >= 2
        assert min(named) < 2


def test_fewer_captions_are_the_first_of_more(splits):
    for scene in splits["val"]:
        texts = captions(scene, 20)
        assert len(set(texts)) == 20
        assert captions(scene, 3) == texts[:3]


def test_relations_in_captions_are_true(splits):
    seen: set[str] = set()
    for scene, text in captioned(splits["train"]):
        relations = RELATION.findall(text)
        for one, words, other in relations:
            assert holds(RELATIONS[words], find(scene, one), find(scene, other)), (text, scene)
        betweens = BETWEEN.findall(text)
        for names in betweens:
            middle, end, other = (find(scene, name) for name in names)
            assert abs(middle.x - (end.x + other.x) / 2) < CLEAR, (text, scene)
            assert abs(middle.y - (end.y + other.y) / 2) < CLEAR, (text, scene)
        # nothing escapes the checks above: no word of relation is left outside what they parsed
        assert not RELATING_WORD.search(BETWEEN.sub("", RELATION.sub("", text))), text
        seen |= {words for _, words, _ in relations} | ({"between"} if betweens else set())
    assert seen == RELATIONS.keys() | {"between"}


def test_places_in_captions_are_true(splits):
    seen: set[str] = set()
    for scene, text in captioned(splits["train"]):
        for one, words in PLACE.findall(text):
            assert is_at(PLACES[words], find(scene, one)), (text, scene)
            seen.add(words)
        assert not re.search(r"\b(?:at|left|right|top|middle|centre)\b", RELATION.sub("", PLACE.sub("", text))), text
    assert seen == PLACES.keys()


def test_numbers_colours_and_settings_in_captions_are_true(splits):
    trims = {"frame": "inside a grey frame", "band": "with a grey band along the bottom"}
    for scene, text in captioned(splits["train"]):
        if match := re.search(r"(?!more|other)\b(\w+) shapes?\b", text):
            assert NUMBER_WORDS[match[1]] == len(scene.things), text
        if match := re.search(r"(\w+) (?:more|other) shapes?\b", text):
            assert NUMBER_WORDS[match[1]] == len(scene.things) - len(mentioned(scene, text)), text
        if match := re.search(r"shapes in ([a-z, ]+?) (?:on|against) a", text):
            said = {COLOUR_WORDS[word] for word in re.split(", | and ", match[1])}
            assert said == {thing.colour for thing in scene.things}, text
        if match := re.search(r"(?:on|against) a ([a-z ]+) background", text):
            assert match[1] == scene.background, text
        assert all(scene.trim == trim for trim, words in trims.items() if words in text), text
        assert len(scene.things) == 2 or not text.startswith("only"), text


def test_every_thing_is_drawn_in_its_colour_where_it_lies(splits):
    side = 96
    for scene in splits["train"][:150]:
        picture = draw(scene, side)
        assert (picture.mode, picture.size) == ("RGB", (side, side))
        pixels = np.asarray(picture).astype(int)
        for thing in scene.things:
            x, y = int(thing.x * side), int(thing.y * side)
            if thing.shape == "ring":
                x += round(0.78 * SIZES[thing.size] * side)
            assert abs(pixels[y, x] - COLOURS[thing.colour]).max() <= 2, thing


def test_background_and_trim_are_drawn(splits):
    for scene in splits["val"]:
        pixels = np.asarray(draw(scene, 64))
        inside = BACKGROUNDS[scene.background]
        assert tuple(pixels[0, 32]) == (TRIM_COLOUR if scene.trim == "frame" else inside)
        assert tuple(pixels[63, 32]) == (inside if scene.trim == "plain" else TRIM_COLOUR)


def test_things_stay_inside_and_apart(splits):
    for scene in splits["train"]:
        for i, thing in enumerate(scene.things):
            radius = SIZES[thing.size]
            assert all(radius + 0.03 < centre < 0.97 - radius for centre in (thing.x, thing.y))
            for other in scene.things[:i]:
                offsets = abs(thing.x - other.x), abs(thing.y - other.y)
                assert max(offsets) >= radius + SIZES[other.size] - 1e-3
                # along each axis two centres are either level or clearly not
                assert all(offset < 0.11 or offset > 0.2 for offset in offsets)


def test_shapes_do_not_look_alike():
    looks = {}
    for shape in SHAPES:
        scene = Scene((Thing(shape, "blue", "large", 4, 0.5, 0.5),), "white", "plain")
        looks[shape] = np.asarray(draw(scene, 64)).astype(float) / 255
    smallest = min(abs(looks[a] - looks[b]).sum() for a in SHAPES for b in SHAPES if a < b)
    assert smallest > 0.1 * abs(looks["square"] - 1).sum()


def test_larger_pictures_show_the_same_scene(splits):
    scene = splits["val"][0]
    small, large = draw(scene, 64), draw(scene, 192).reduce(3)
    assert abs(np.asarray(small).astype(int) - np.asarray(large).astype(int)).mean() < 2


@pytest.fixture(scope="module")
def alone() -> list[Scene]:
    return make_scenes({"train": 300, "test": 20}, seed=0, objects=(1,))["train"]


def test_scenes_of_one_thing_are_varied_and_unique(alone):
    assert {len(scene.things) for scene in alone} == {1}
    assert len({scene.signature for scene in alone}) == len(alone)
    assert {scene.things[0].cell for scene in alone} == set(range(9))
    assert {scene.things[0].shape for scene in alone} == SHAPES.keys()
    with pytest.raises(InputError, match=r"expected 1 to 13996$"):  # 31,104 exist; nine tenths of half of them
        make_scenes({"train": 20_000, "test": 1}, seed=0, objects=(1,))


def test_sizes_are_those_that_are_named():
    made = make_scenes({"train": 90, "test": 20}, 0, (1,), ("medium", "large"))
    assert {scene.things[0].size for scenes in made.values() for scene in scenes} == {"medium", "large"}
    with pytest.raises(InputError, match=r"expected 1 to 9331$"):  # 20,736 exist
        make_scenes({"train": 20_000, "test": 1}, 0, (1,), ("medium", "large"))
    assert make_scenes({"t": 9}, 0) == make_scenes({"t": 9}, 0, sizes=tuple(SIZES))
    with pytest.raises(InputError, match=r"expected 1 to 4665$"):  # one size named twice is one size
        make_scenes({"train": 20_000, "test": 1}, 0, (1,), ("large", "large"))


def test_captions_of_one_thing_are_distinct_and_true(alone):
    for scene in alone:
        (thing,) = scene.things
        texts = captions(scene, 20)
        assert len(set(texts)) == 20
        assert captions(scene, 3) == texts[:3]
        for text in texts:
            assert re.fullmatch(r"[a-z]+(?:[,:]? [a-z]+)*", text), text
            assert not (named := MENTION.search(text)) or find(scene, named[0]) == thing
            place = re.search(rf" ({any_of(PLACES)})\b", text.split(" background")[-1] if ": " in text else text)
            assert not place or is_at(PLACES[place[1]], thing), (text, scene)
            ground = re.search(r"(?:on|against) a ([a-z ]+) background", text)
            assert not ground or ground[1] == scene.background, text
        full = [
            MENTION.search(text) is not None
            and f"a {scene.background} background" in text
            and any(re.search(rf"\b{words}\b", text) for words, at in PLACES.items() if is_at(at, thing))
            for text in texts[:5]
        ]
        assert full[0], texts
        assert sum(full) >= 2, texts
