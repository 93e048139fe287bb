"""An image that is repeated for each of its captions: what measures must not be told to take it so."""

from __future__ import annotations

import numpy as np
import pytest

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.gap import measure_gap
from cs_aligner_cli.gap.baselines import fit_baseline
from cs_aligner_cli.gap.metrics import measure_headline


def images_and_captions(seed: int, images: int = 40, captions: int = 5):
    """Images (M, 12) and their captions (M, C, 12) without a gap: all are one signal, and noise."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(images, 12))
    return signal + 0.6 * rng.normal(size=signal.shape), signal[:, None] + 0.6 * rng.normal(size=(images, captions, 12))


def test_repeated_images_are_told_a_gap_that_is_none_and_one_caption_each_is_not() -> None:
    once, repeated = [], []
    for seed in range(40):
        image, text = images_and_captions(seed)
        once.append(measure_headline(image, text[:, 0]).tests["centroid_gap"] < 0.05)
        found = measure_headline(np.repeat(image, 5, axis=0), text.reshape(-1, 12))
        repeated.append(found.tests["centroid_gap"] < 0.05)
    assert np.mean(once) < 0.15
    assert np.mean(repeated) > 0.5


def test_the_hint_is_one_caption_for_what_measures_and_all_for_what_fits() -> None:
    image, text = images_and_captions(0)
    captions = text.reshape(-1, 12)
    with pytest.raises(InputError, match="of an image with several captions take one"):
        measure_gap(image, captions)
    with pytest.raises(InputError, match="repeat an image that has several captions"):
        fit_baseline("cca", image, captions)
