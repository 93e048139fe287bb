"""Keys that are younger than outputs that people keep, and one rule for them.

At the value of ``LATER_KEYS`` such a key changes nothing, so it is no part of what an output is made from, nor of what
an experiment is: outputs of before the key was there stay fresh, and sweeps of then go on. Who adds a key adds it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel

LATER_KEYS: dict[str, Any] = {
    "embed.jpeg": "exact",
    "encoders.*.layers": None,
    "eval_retrieval.rerank": None,
    "generate.beside": [],
    "gap_report.formats": ["png"],
    "train.last_batch": "drop",
    "train.matching": None,
    "train.matching.micro_batch_size": None,
    "train.mixup": None,
    "train.self_training": None,
    "train.start_moments": None,
    "train.objective.agreement": None,
    "train.objective.levels": [],
    "train.objective.memory_momentum": None,
    "train.objective.noise_filter": None,
    "train.objective.pairwise.unpaired_negatives": False,
    "train.objective.pseudo_pairs": None,
    "train.objective.structure": None,
    "train.objective.teacher": None,
    "train.objective.token_exchange": None,
}


def without_later_keys(sections: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    """Sections of a recipe as JSON (those below the key ``at``), less the later keys that change nothing."""
    kept = {}
    for name, value in sections.items():
        key = f"{at}.{name}" if at else name
        if not any(fnmatchcase(key, later) and value == unused for later, unused in LATER_KEYS.items()):
            kept[name] = without_later_keys(value, key) if isinstance(value, Mapping) else value
    return kept


def parts(key: str, section: BaseModel, **which: Any) -> dict[str, Any]:
    """What a section of the recipe adds to what an output is made from; ``which`` as model_dump's include, exclude."""
    return without_later_keys(section.model_dump(mode="json", **which), key)
