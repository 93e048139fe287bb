"""What each gap metric means in plain words, in the order and the groups in which reports show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cs_aligner_cli.common.errors import InputError, did_you_mean


class Metric(NamedTuple):
    """One row of the report: its group and name, what it says, and where it goes as a gap closes."""

    group: str
    label: str
    meaning: str
    no_gap: str


CENTROIDS, PAIRS, CLOUDS = "Where the clouds lie", "How near pairs are", "How unlike the two distributions are"
NEIGHBOURS, SHAPES, CLASSIFIER = "Who is near whom", "The shape of each cloud", "Can a classifier tell them apart"
GROUPS = {
    CENTROIDS: "Only the two means are looked at.",
    PAIRS: "What an image has to do with its own text.",
    CLOUDS: "Divergences between all images and all texts. V takes a row with itself and with its pair, as training "
    "does, and is above 0 also without a gap; U takes different pairs only, and is not. The figure of the sweep shows "
    "D_CS at more bandwidths.",
    NEIGHBOURS: "Neighbourhoods and clusters, which decide retrieval and transfer.",
    SHAPES: "Each modality by itself: what an alignment may have squeezed.",
    CLASSIFIER: "A weak measure, near 1 almost everywhere.",
}

METRICS: dict[str, Metric] = {
    "centroid_gap": Metric(
        CENTROIDS,
        "Centroid gap",
        "Distance between the mean image and the mean text row: the usual headline number.",
        "falls to its level without a gap",
    ),
    "squared_gap_debiased": Metric(
        CENTROIDS,
        "Squared centroid gap, debiased",
        "The square of the same distance without the part that is only sampling noise: comparable across sample sizes "
        "and between stores. Without a gap it is as often below 0 as above, and printed as it is.",
        "falls to 0, and may be below",
    ),
    "centroid_share": Metric(
        CENTROIDS,
        "Centroid share of the paired distance",
        "How much of the mean squared distance within pairs the two means explain: all that a shift can take away.",
        "falls to 0",
    ),
    "paired_cosine": Metric(
        PAIRS,
        "Paired cosine",
        "Mean cosine between an image and its own text. It rises when all cosines rise, also those of strangers: read "
        "the margin.",
        "rises to 1",
    ),
    "margin": Metric(
        PAIRS,
        "Margin of pairs over strangers",
        "Mean cosine between an image and its own text, less that between an image and the texts of others. A shift of "
        "either cloud hardly moves it.",
        "rises",
    ),
    "margin_standardised": Metric(
        PAIRS,
        "Margin, standardised",
        "The margin in standard deviations of strangers, each modality's mean taken away: how far a pair stands out. "
        "It does not see a shift, nor that everything shrinks or spreads.",
        "rises",
    ),
    "residual_ratio": Metric(
        PAIRS,
        "Paired residual, in strangers'",
        "Mean squared distance within pairs over that between strangers, once each modality's own mean is taken away: "
        "0 if every image lies on its own text, 1 if pairs are no nearer than strangers.",
        "falls to 0",
    ),
    "paired_distance": Metric(
        PAIRS,
        "Paired distance",
        "Mean distance between an image and its own text: 0 if they coincide, 1.41 if they are unrelated.",
        "falls to 0",
    ),
    "alignment": Metric(
        PAIRS,
        "Alignment",
        "Mean squared distance within pairs, which the contrastive loss pulls down.",
        "falls to 0",
    ),
    "paired_residual": Metric(
        PAIRS,
        "Paired residual",
        "Alignment after each modality's own mean is taken away: the part of it that no shift can close. "
        "Alignment is this plus the squared centroid gap.",
        "falls to 0",
    ),
    "rmg": Metric(
        PAIRS,
        "Relative modality gap (RMG)",
        "Distance within pairs relative to the distance among strangers of one modality (off-diagonal variant); "
        "0.5 means that a pair is as far apart as two strangers.",
        "falls to 0",
    ),
    "mutual_information": Metric(
        PAIRS,
        "Shared information, at least (nats)",
        "InfoNCE's lower bound on what an image tells about its text, at the best of seven temperatures; it cannot "
        "exceed the log of the number of pairs. High values go with any gap: ranking pairs and joining clouds are "
        "two things.",
        "may stay as it is",
    ),
    "cs_divergence_v": Metric(
        CLOUDS,
        "CS divergence, V",
        "Cauchy-Schwarz divergence between the two clouds, diagonals kept (what training minimises); "
        "biased upwards at small bandwidths and samples.",
        "falls to its level without a gap",
    ),
    "cs_divergence_u": Metric(
        CLOUDS,
        "CS divergence, U",
        "The same divergence over different pairs only: nearly unbiased. Where there is no gap it is as often below 0 "
        "as above.",
        "falls to 0, and may be below",
    ),
    "mmd_v": Metric(
        CLOUDS,
        "Squared MMD, V",
        "Maximum mean discrepancy: the same three means of a Gaussian kernel without their logarithms.",
        "falls to its level without a gap",
    ),
    "mmd_u": Metric(
        CLOUDS,
        "Squared MMD, U",
        "The same over different pairs only: unbiased, and as often below 0 as above where there is no gap.",
        "falls to 0, and may be below",
    ),
    "energy_v": Metric(
        CLOUDS,
        "Energy distance, V",
        "MMD with the negative distance as its kernel: no bandwidth to choose.",
        "falls to its level without a gap",
    ),
    "energy_u": Metric(
        CLOUDS, "Energy distance, U", "The same over different pairs only: unbiased.", "falls to 0, and may be below"
    ),
    "sliced_wasserstein": Metric(
        CLOUDS,
        "Sliced Wasserstein distance",
        "How far mass must move along a random direction, on average over 128 of them.",
        "falls to its level without a gap",
    ),
    "frechet_covariance": Metric(
        CLOUDS,
        "Frechet distance, covariance part",
        "How unlike the two covariances are; with the squared centroid gap, which is the mean part, it makes the "
        "squared Frechet distance. Strongly biased upwards where rows are not many times the dimensions.",
        "falls to its level without a gap",
    ),
    "mutual_knn": Metric(
        NEIGHBOURS,
        "Mutual nearest neighbours",
        "Share of the 10 nearest images of an image whose texts are among the 10 nearest texts of its text. "
        "Blind to the gap; falls as the sample grows.",
        "may stay as it is",
    ),
    "neighbour_purity": Metric(
        NEIGHBOURS,
        "Modality purity of neighbours",
        "Share of the 10 nearest rows, of either modality, that are of a row's own modality: 1 if images see only "
        "images and texts only texts.",
        "falls to 0.5",
    ),
    "hubness_image": Metric(
        NEIGHBOURS,
        "Hubness, images",
        "Skewness of how often an image stands among the 10 nearest images of a text: high where a few images, hubs, "
        "are everybody's answer and the others nobody's.",
        "falls to the level of random lists",
    ),
    "hubness_text": Metric(
        NEIGHBOURS,
        "Hubness, texts",
        "The same of texts among the 10 nearest texts of an image.",
        "falls to the level of random lists",
    ),
    "linear_cka": Metric(
        NEIGHBOURS,
        "Linear CKA",
        "Do the two modalities have the same geometry, up to rotation and shift? Blind to the gap by design.",
        "may stay as it is",
    ),
    "cluster_pairs": Metric(
        NEIGHBOURS,
        "Pairs within one cluster",
        "k-means with 10 clusters over images and texts together: share of pairs whose two rows share a cluster.",
        "rises to 1",
    ),
    "cluster_ari": Metric(
        NEIGHBOURS,
        "Cluster agreement (ARI)",
        "Adjusted Rand index between the clusters of the images and those of their texts.",
        "rises to 1",
    ),
    "cluster_v_measure": Metric(
        NEIGHBOURS,
        "Cluster agreement (V-measure)",
        "The same by V-measure, which is not corrected for chance.",
        "rises to 1",
    ),
    "label_ari": Metric(
        NEIGHBOURS,
        "Clusters against labels (ARI)",
        "k-means over images and texts together, as many clusters as labels: adjusted Rand index between clusters and "
        "labels. Clusters of one modality each split every class in two.",
        "rises",
    ),
    "label_v_measure": Metric(
        NEIGHBOURS,
        "Clusters against labels (V-measure)",
        "The same by V-measure, which is not corrected for chance.",
        "rises",
    ),
    "uniformity_image": Metric(
        SHAPES,
        "Uniformity, image",
        "How evenly image rows fill the sphere: about -4 when spread out, 0 when collapsed to one point.",
        "equals the text's",
    ),
    "uniformity_text": Metric(
        SHAPES,
        "Uniformity, text",
        "How evenly text rows fill the sphere: about -4 when spread out, 0 when collapsed to one point.",
        "equals the image's",
    ),
    "uniformity_pooled": Metric(
        SHAPES,
        "Uniformity, both pooled",
        "The same over all rows together: much lower than its parts where two clouds lie apart.",
        "nears its parts",
    ),
    "conformity_image": Metric(
        SHAPES,
        "Conformity, image",
        "Mean cosine of an image with the other images: 1 where all are alike.",
        "equals the text's",
    ),
    "conformity_text": Metric(
        SHAPES, "Conformity, text", "Mean cosine of a text with the other texts.", "equals the image's"
    ),
    "effective_rank_image": Metric(
        SHAPES,
        "Effective rank, image",
        "Dimensions that centred image rows really use (the exponential of their spectrum's entropy).",
        "may stay as it is",
    ),
    "effective_rank_text": Metric(
        SHAPES, "Effective rank, text", "Dimensions that centred text rows really use.", "may stay as it is"
    ),
    "effective_rank_raw_image": Metric(
        SHAPES,
        "Effective rank, image, not centred",
        "The same of rows as they are: lower where a common mean dominates.",
        "nears the centred one",
    ),
    "effective_rank_raw_text": Metric(
        SHAPES, "Effective rank, text, not centred", "The same of text rows.", "nears the centred one"
    ),
    "linear_separability": Metric(
        CLASSIFIER,
        "Linear separability",
        "Held-out accuracy of a linear classifier that tells image rows from text rows. "
        "Near 1 almost everywhere, so a weak measure: do not rank by it.",
        "falls to 0.5 (chance)",
    ),
    "separability_dimensions": Metric(
        CLASSIFIER,
        "Dimensions it needs",
        "How many coordinates, the most telling ones first, give 99% of that accuracy (a power of two). "
        "It depends on the axes, as nothing else here does.",
        "means nothing at chance",
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
