"""What each gap metric means in plain words, in the order in which reports show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cs_aligner_cli.errors import InputError, did_you_mean


class Metric(NamedTuple):
    """One row of the report: its name, what it says, and where it goes as a gap closes."""

    label: str
    meaning: str
    no_gap: str


METRICS: dict[str, Metric] = {
    "centroid_gap": Metric(
        "Centroid gap",
        "Distance between the mean image and the mean text row: the usual headline number.",
        "falls to 0, in practice to its null floor",
    ),
    "centroid_gap_debiased": Metric(
        "Centroid gap, debiased",
        "The same distance without the part that is only sampling noise; comparable across sample sizes.",
        "falls to 0",
    ),
    "paired_distance": Metric(
        "Paired distance",
        "Mean distance between an image and its own text: 0 if they coincide, 1.41 if they are unrelated.",
        "falls to 0",
    ),
    "paired_cosine": Metric(
        "Paired cosine",
        "Mean cosine between an image and its own text. A gap closed while this stays put is no alignment.",
        "rises to 1",
    ),
    "rmg": Metric(
        "Relative modality gap (RMG)",
        "Distance within pairs relative to the distance among strangers of one modality; "
        "0.5 means that a pair is as far apart as two strangers.",
        "falls to 0",
    ),
    "alignment": Metric(
        "Alignment",
        "Mean squared distance within pairs, which the contrastive loss pulls down.",
        "falls to 0",
    ),
    "uniformity_image": Metric(
        "Uniformity, image",
        "How evenly image rows fill the sphere: about -4 when spread out, 0 when collapsed to one point.",
        "equals the text's",
    ),
    "uniformity_text": Metric(
        "Uniformity, text",
        "How evenly text rows fill the sphere: about -4 when spread out, 0 when collapsed to one point.",
        "equals the image's",
    ),
    "cs_divergence_v": Metric(
        "CS divergence, V",
        "Cauchy-Schwarz divergence between the two clouds, diagonals kept (what training minimises); "
        "biased upwards at small bandwidths and samples.",
        "falls to 0, in practice to its null floor",
    ),
    "cs_divergence_u": Metric(
        "CS divergence, U",
        "The same divergence without the diagonals: hardly biased, and may be slightly negative.",
        "falls to 0",
    ),
    "cs_divergence_fall": Metric(
        "CS divergence, V: gain from twice the landmarks",
        "There are too many pairs to take all of them, so V comes from 1,024 landmark rows, and is too low by about "
        "this much: so much it gained over 512 of them.",
        "falls to 0",
    ),
    "mutual_information": Metric(
        "Shared information, at least (nats)",
        "InfoNCE's lower bound on what an image tells about its text, at the best of seven temperatures; it cannot "
        "exceed the log of the number of pairs. High values go with any gap: ranking pairs and joining clouds are "
        "two things.",
        "may stay as it is",
    ),
    "linear_separability": Metric(
        "Linear separability",
        "Held-out accuracy of a linear classifier that tells image rows from text rows. "
        "Near 1 almost everywhere, so a weak measure: do not rank by it.",
        "falls to 0.5 (chance)",
    ),
}


def describe(key: str) -> Metric:
    """Return the entry of a metric key, with its bandwidth in the label: ``cs_divergence_v@0.5``.

    Raises InputError if the key is not one that ``measure_gap`` produces.
    """
    name, _, bandwidth = key.partition("@")
    if name not in METRICS:
        raise InputError(f"unknown gap metric {key!r}{did_you_mean(name, list(METRICS))}")
    metric = METRICS[name]
    return metric._replace(label=f"{metric.label}, bandwidth {bandwidth}") if bandwidth else metric


def in_report_order(keys: Iterable[str]) -> list[str]:
    """Return metric keys in the order of METRICS, bandwidths from narrow to wide; ``pairs`` is no metric.

    Raises InputError on a key that ``measure_gap`` does not produce.
    """
    order = list(METRICS)

    def rank(key: str) -> tuple[int, float]:
        describe(key)
        name, _, bandwidth = key.partition("@")
        return order.index(name), float(bandwidth or 0)

    return sorted((key for key in keys if key != "pairs"), key=rank)
