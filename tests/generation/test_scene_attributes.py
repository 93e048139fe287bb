"""What pictures of one shape show, read back from their pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from cs_aligner_cli.data.scene_captions import captions
from cs_aligner_cli.data.scenes import Scene, Thing, draw, make_scenes
from cs_aligner_cli.generation.scene_attributes import (
    ATTRIBUTES,
    attribute_accuracy,
    read_attributes,
    scene_attributes,
    stated_attributes,
)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return make_scenes({"train": 150}, seed=3, objects=(1,))["train"]


def noisy(picture: Image.Image, seed: int) -> Image.Image:
    pixels = np.asarray(picture) + np.random.default_rng(seed).normal(0, 20, (*picture.size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def test_drawn_pictures_are_read_right(scenes):
    truths = [scene_attributes(scene) for scene in scenes]
    found = attribute_accuracy([read_attributes(draw(scene, 64)) for scene in scenes], truths)
    assert min(found.values()) >= 0.98, found
    found = attribute_accuracy([read_attributes(noisy(draw(s, 64), i)) for i, s in enumerate(scenes)], truths)
    assert min(found.values()) >= 0.95, found


def test_pictures_of_another_size_are_read_too(scenes):
    truths = [scene_attributes(scene) for scene in scenes[:40]]
    found = attribute_accuracy([read_attributes(draw(scene, 200)) for scene in scenes[:40]], truths)
    assert min(found.values()) >= 0.95, found


def test_the_blurred_edge_of_a_frame_is_no_pink_shape():
    scenes = [s for s in make_scenes({"t": 300}, 3, (1,), ("medium", "large"))["t"] if s.trim != "plain"][:60]
    blurred = [draw(scene, 64).filter(ImageFilter.GaussianBlur(1)) for scene in scenes]
    found = attribute_accuracy([read_attributes(picture) for picture in blurred], [*map(scene_attributes, scenes)])
    assert min(found.values()) == 1, found


def test_noise_and_an_empty_ground_show_no_shape():
    empty = read_attributes(Image.new("RGB", (64, 64), (16, 16, 18)))
    assert empty == {"background": "black", "colour": "none", "shape": "none", "cell": "none"}
    assert read_attributes(Image.new("RGB", (64, 64), (214, 32, 38))) == dict.fromkeys(ATTRIBUTES, "none")
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)) for i in range(20)]
    truths = [scene_attributes(scene) for scene in make_scenes({"t": 20}, 0, (1,))["t"]]
    assert attribute_accuracy([read_attributes(p) for p in pictures], truths)["all"] == 0


def test_only_what_a_caption_states_counts():
    truth = {"background": "pale blue", "colour": "purple", "shape": "cross", "cell": "1"}
    assert stated_attributes("a violet plus sign at the top on a pale blue background", truth) == set(ATTRIBUTES)
    assert stated_attributes("something purple at the top in the middle", truth) == {"colour", "cell"}
    assert stated_attributes("a heart on a pale green background", truth) == set()
    wrong = {**truth, "shape": "ring"}
    found = attribute_accuracy([wrong, truth], [truth, truth], ["something purple at the top", "a cross"])
    assert found["colour"] == found["cell"] == found["all"] == found["shape"] == 1
    assert np.isnan(found["background"]) and np.isnan(found["mean"])
    found = attribute_accuracy([wrong, truth], [truth, truth])
    assert found["all"] == 0.5 and found["mean"] == 0.875


def test_full_captions_state_everything(scenes):
    assert all(stated_attributes(captions(scene)[0], scene_attributes(scene)) == {*ATTRIBUTES} for scene in scenes)


def test_a_small_star_is_seen():
    thing = Thing("star", "yellow", "small", 8, 0.82, 0.8)
    truth = {"background": "white", "colour": "yellow", "shape": "star", "cell": "8"}
    assert read_attributes(draw(Scene((thing,), "white", "band"), 64)) == truth
