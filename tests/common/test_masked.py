"""numpy arrays with masked entries: every function that takes arrays refuses them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from samples import random_rows

from cs_aligner_cli import CCA
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.gap import measure_gap
from cs_aligner_cli.gap.pair_scores import score_pair
from cs_aligner_cli.objectives import cs_divergence, infonce, token_cs_divergence
from cs_aligner_cli.retrieval import evaluate_retrieval

ROWS = random_rows(0, 6, 4)
MASKED = np.ma.masked_array(ROWS, ROWS > 0.5)
OWNERS = np.ma.masked_array(np.arange(6), np.arange(6) == 2)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("x", lambda: cs_divergence(MASKED, ROWS, 0.7)),
        ("y", lambda: token_cs_divergence(ROWS[None], MASKED[None], 0.7)),
        ("text", lambda: infonce(ROWS, MASKED, 10.0)),
        ("groups", lambda: infonce(ROWS, ROWS, 10.0, OWNERS)),
        ("image", lambda: measure_gap(MASKED, ROWS)),
        ("image_of_text", lambda: evaluate_retrieval(ROWS, ROWS, OWNERS, [1])),
        ("labels", lambda: measure_gap(ROWS, ROWS, labels=np.ma.masked_array([*"abcdef"], OWNERS.mask))),
        ("image", lambda: CCA().fit(MASKED, ROWS)),
        ("x", lambda: score_pair(MASKED, ROWS)),
    ],
)
def test_what_lies_under_a_mask_is_no_number(name: str, call: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=rf"^{name}: \d+ of \d+ entries are masked, expected an array without a mask"):
        call()


def test_an_array_of_which_nothing_is_masked_is_as_good_as_any() -> None:
    plain = np.ma.masked_array(ROWS, np.zeros_like(ROWS, bool))
    assert cs_divergence(plain, ROWS, 0.7).item() == cs_divergence(ROWS, ROWS, 0.7).item()
