"""Later keys: each is in the schema, and at its default it leaves outputs and experiments what they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import pytest

from cs_aligner_cli.experiments.plan import experiment_id
from cs_aligner_cli.recipe.later import LATER_KEYS, without_later_keys
from cs_aligner_cli.recipe.recipe import Recipe

OPEN_CLIP = {"kind": "open_clip", "model": "ViT-B-32", "pretrained": "openai"}
DEFAULTS = Recipe.model_validate({"name": "x", "encoders": {"image": OPEN_CLIP}, "train": {}, "generate": {}})
_TOKENS = {"reads": "tokens"}
WITH_HEAD = Recipe.model_validate(
    {"name": "x", "encoders": {"image": OPEN_CLIP}, "train": {"image": _TOKENS, "text": _TOKENS, "matching": {}}}
)


def _values(sections: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in sections.items():
        yield f"{at}{name}", value
        if isinstance(value, Mapping):
            yield from _values(value, f"{at}{name}.")


@pytest.mark.parametrize("later", LATER_KEYS)
def test_a_later_key_is_one_of_the_schema_and_its_default_is_left_out(later: str) -> None:
    written = (WITH_HEAD if later.startswith("train.matching.") else DEFAULTS).model_dump(mode="json")
    found = [value for key, value in _values(written) if fnmatchcase(key, later)]
    assert found and all(value == LATER_KEYS[later] for value in found)
    assert not any(fnmatchcase(key, later) for key, _ in _values(without_later_keys(written)))
    assert without_later_keys(written, "elsewhere") == written


def test_an_experiment_is_the_same_before_and_after_the_keys_were_there() -> None:
    now = DEFAULTS.model_dump(mode="json")
    assert experiment_id(without_later_keys(now)) == experiment_id(now)
    changed = DEFAULTS.model_dump(mode="json")
    changed["train"]["last_batch"] = "keep"
    assert experiment_id(changed) != experiment_id(now)
