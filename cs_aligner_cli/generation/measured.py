"""What is measured of a store's pictures: distances to the real ones, agreement with the prompts, what scenes show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats32
from cs_aligner_cli.generation.agreement import RANKS, clip_score, prompt_retrieval, row_cosines
from cs_aligner_cli.generation.coverage import precision_recall
from cs_aligner_cli.generation.frechet import frechet_distance, frechet_floor
from cs_aligner_cli.generation.kernel_distances import cmmd, kid
from cs_aligner_cli.generation.scene_attributes import ATTRIBUTES, attribute_accuracy, read_attributes

_NEIGHBOURS = 3


@dataclass(frozen=True, eq=False)
class Subject:
    """What the pictures of every store are measured against.

    ``prompts`` (N) and ``texts`` (N, dim), their embeddings in the judging store, None where it shares no space with
    the images; ``real`` (M, e): features of the real pictures by the name of their space; ``truths`` (N): what each
    picture of a drawn scene should show, None for other data; ``wanted``: the metrics that are taken.
    """

    prompts: Sequence[str]
    texts: Floats32 | None
    real: Mapping[str, Floats32]
    truths: Sequence[dict[str, str]] | None
    wanted: Sequence[str]


def measure_pictures(
    subject: Subject, features: Mapping[str, Floats32], conditions: Floats32, pictures: Callable[[int], Image.Image]
) -> dict[str, float]:
    """Every metric of one store's N pictures by name; ``features`` (N, e) by space, the image encoder's first.

    Distances bear the name of their space, as in ``frechet@encoder``.
    """
    found: dict[str, float] = {}
    for space, generated in features.items():
        found |= _distances(subject, space, generated)
    own = next(iter(features.values()))
    if "condition_cosine" in subject.wanted:
        found["condition_cosine"] = float(row_cosines(own, conditions).mean())
    if subject.texts is not None:
        if "clip_score" in subject.wanted:
            found["clip_score"] = clip_score(own, subject.texts)
        if "prompt_retrieval" in subject.wanted:
            found |= prompt_retrieval(own, subject.texts, subject.prompts)
    if subject.truths is not None:
        shown = [read_attributes(pictures(i)) for i in range(len(own))]
        found |= _named("", attribute_accuracy(shown, subject.truths))
        found |= _named("stated_", attribute_accuracy(shown, subject.truths, subject.prompts))
    return found


def _named(prefix: str, accuracies: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}accuracy_{name}": value for name, value in accuracies.items() if not np.isnan(value)}


def _distances(subject: Subject, space: str, generated: Floats32) -> dict[str, float]:
    real, wanted = subject.real[space], subject.wanted
    found: dict[str, float] = {}
    if "frechet" in wanted:
        parts = frechet_distance(generated, real)
        found[f"frechet@{space}"] = parts["distance"]
        found |= {f"frechet_{name}@{space}": parts[name] for name in ("mean_part", "covariance_part")}
    if "kid" in wanted:
        found[f"kid@{space}"] = kid(generated, real)
    if "cmmd" in wanted:
        found[f"cmmd@{space}"] = cmmd(generated, real)
        found[f"cmmd_biased@{space}"] = cmmd(generated, real, unbiased=False)
    if "coverage" in wanted and min(len(generated), len(real)) > _NEIGHBOURS:
        found |= {f"{name}@{space}": value for name, value in precision_recall(generated, real, _NEIGHBOURS).items()}
    return found


def left_out(subject: Subject, pictures: int, found_floors: Mapping[str, float]) -> list[str]:
    """Notes on the wanted metrics, and on the ``floors`` found, that so few pictures, prompts or texts cannot have."""
    notes, wanted = [], subject.wanted
    if subject.texts is None and {"clip_score", "prompt_retrieval"} & {*wanted}:
        notes.append("no CLIP score and no retrieval: the judge's texts share no space with images")
    fewest = min(pictures, *(len(rows) for rows in subject.real.values()))
    if "coverage" in wanted and fewest <= _NEIGHBOURS:
        notes.append(f"no precision and recall: they take more than {_NEIGHBOURS} pictures, drawn and real")
    unlike = len({*subject.prompts})
    if "prompt_retrieval" in wanted and subject.texts is not None and unlike < RANKS[-1]:
        notes.append(f"no prompt_R@{RANKS[-1]}: there are {unlike} unlike prompts")
    if any(math.isnan(floor) for floor in found_floors.values()):
        notes.append("no Frechet distance between two halves of the real pictures: they are too few")
    return notes


def floors(subject: Subject, seed: int) -> dict[str, float]:
    """The Frechet distance between two halves of the real pictures, by space: what no difference reads."""
    if "frechet" not in subject.wanted:
        return {}
    return {f"frechet@{space}": frechet_floor(rows, seed) for space, rows in subject.real.items()}


def refuse_attributes(wanted: Sequence[str] | None) -> None:
    """Raise InputError where attributes are asked of data that have none to read."""
    if wanted and "attributes" in wanted:
        raise InputError(
            f"generate.metrics.which: attributes ({', '.join(ATTRIBUTES)}) are read of drawn scenes of one shape only",
            "Use data.manifest: scenes_alone, or leave attributes out.",
        )
