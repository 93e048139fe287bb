"""What stands beside each figure: a title, how to read it, and what it shows in words for those who do not see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cs_aligner_cli.report.evidence import recall_in_run


class Caption(NamedTuple):
    """What stands over a figure, and under it."""

    title: str
    text: str


_CAPTIONS = {
    "projection": Caption(
        "Where the two clouds lie",
        "Each point is an image or a text, placed on the two directions in which the rows of its store (both "
        "modalities together) vary most; lines join some of the pairs. Two separate clouds are a gap. Mixed "
        "clouds with short lines are aligned; mixed clouds with long lines only overlap. Every panel has its "
        "own directions but the same scale, and low percentages mean that most of the spread lies outside "
        "the picture.",
    ),
    "projection_tsne": Caption(
        "Who is beside whom: t-SNE",
        "The same pairs, placed by t-SNE so that near rows stay near; both modalities are fitted together. Islands of "
        "one colour are neighbourhoods of one modality; mixed islands with short lines hold pairs side by side. Axes, "
        "sizes of islands and distances between them mean nothing: for those look at the figure before.",
    ),
    "projection_umap": Caption(
        "Who is beside whom: UMAP",
        "The same pairs, placed by UMAP so that near rows stay near; both modalities are fitted together. Islands of "
        "one colour are neighbourhoods of one modality; mixed islands with short lines hold pairs side by side. Axes, "
        "sizes of islands and distances between them mean nothing: for those look at the figure before.",
    ),
    "cosine_histograms": Caption(
        "How similar pairs and strangers are",
        "The green area is the cosine between an image and its own text, the grey line between an image and "
        "another's text: the less the two overlap, the better pairs can be found. A gap shows as a grey line "
        "far to the left of the orange and blue ones: strangers of the other modality are then less alike "
        "than strangers of one's own.",
    ),
    "divergence_curve": Caption(
        "The divergence at every bandwidth",
        "A narrow kernel compares fine structure; a wide one sees only the centroids, where the divergence "
        "becomes the squared gap over the squared bandwidth. The band around V is its 95% interval. The grey area is "
        "what V reads without a gap: 95% of the values that it takes once members of random pairs have changed places "
        "(sign flips). Where V lies in it, no gap can be told. U leaves a row and its pair out of the means and has no "
        "such bias: without a gap it is as often below 0 as above. Where its line is "
        "missing it is 0 or less, and no divergence was found. MMD takes the same three kernel means without "
        "logarithms, and so fades where kernels are narrow.",
    ),
    "spectra": Caption(
        "How many dimensions are used",
        "The singular values of each modality's centred rows, largest first, as shares of their sum. A flat line that "
        "drops late uses many dimensions; a steep one lives in few. An alignment that squeezes a modality shows as a "
        "line steeper than before.",
    ),
    "training": Caption(
        "What training did",
        "Every term of the loss (before its weight), the weight, the norm of the divergence's gradient in norms of "
        "the pairwise term's, the temperature and validation R@1, over the steps. A ratio near 0 means that the "
        "divergence hardly moved anything; above 1 it led.",
    ),
    "conflict": Caption(
        "Why InfoNCE leaves a gap, and what CS gives back",
        "InfoNCE pulls every pair together, which closes the gap (below 0), and pushes every image from the texts of "
        "others, which opens it again (above 0). The solid line is what is left of the two. Once pairs are ranked at a "
        "low temperature, both fade, near or far, and the gap stays; the CS divergence (bandwidth 0.7071) still closes "
        "it. The axis is linear between -0.1 and 0.1. conflict.csv has all temperatures, bandwidths and weights, the "
        "share of a pair in its own softmax (saturation), and the same for the distance of pairs.",
    ),
    "gap_against_recall": Caption(
        "What closing the gap cost",
        "One mark per store: further left is a smaller gap, further up a better R@1; the bars are 95% intervals. "
        "Squares are closed forms: nothing is trained for them beyond the store that they start from. The arrow "
        "goes from the control to the aligned store. In the grey area no gap can be told of the store it is named "
        "after (95% of its sign flips read less). An alignment that helps moves left without falling, and is worth its "
        "training where no square lies up and to the left of it.",
    ),
    "gap_against_pictures": Caption(
        "What closing the gap bought",
        "Left: pictures that a decoder of image embeddings drew from each store's texts, over the store's gap. The "
        "dashed line is what it draws from the image's own embedding, the dotted one from another image's, blind to "
        "the prompt. Right: R@1 of the same stores. A smaller gap pays where marks to the left stand higher; how much "
        "of it is the gap's doing only stores that differ in nothing else can say.",
    ),
}


def caption(name: str) -> Caption:
    """The caption of a figure; of one that is not the report's own, its name."""
    return _CAPTIONS.get(name, Caption(name.replace("_", " ").capitalize(), ""))


def in_words(name: str, report: Mapping[str, Any], titles: Sequence[str] = ()) -> str:
    """What a figure shows, store by store, in the report's numbers; its title where there is nothing to say.

    ``titles`` of its panels: where those are stores', of these stores alone.
    """
    tell = _WORDS.get(name.partition("_")[0] if name.startswith("projection") else name)
    title = caption(name).title
    stores = [store for store in report["stores"] if store in titles] or report["stores"]
    said = [f"{store}: {words}" for store in stores if tell and (words := tell(report, store))]
    return f"{title}. {'; '.join(said)}." if said else title


def _tradeoff(report: Mapping[str, Any], store: str) -> str:
    gap, recall = report["stores"][store].get("centroid_gap"), recall_in_run(report, store)
    return "" if gap is None or recall is None else f"gap {gap:.3f}, R@1 {recall:.1f} percent"


def _bought(report: Mapping[str, Any], store: str) -> str:
    pictures = report.get("pictures", {})
    if store not in pictures.get("stores", ()):
        return ""
    return f"{_tradeoff(report, store)}, {pictures['title']} {pictures['stores'][store]:.1f}"


def _clouds(report: Mapping[str, Any], store: str) -> str:
    gap = report["stores"][store].get("centroid_gap")
    return "" if gap is None else f"the two clouds' means are {gap:.3f} apart"


def _cosines(report: Mapping[str, Any], store: str) -> str:
    values = report["stores"][store]
    if "paired_cosine" not in values or "margin" not in values:
        return ""
    pairs = values["paired_cosine"]
    return f"mean cosine of pairs {pairs:.2f}, of strangers {pairs - values['margin']:.2f}"


def _divergence(report: Mapping[str, Any], store: str) -> str:
    rows = report.get("sweep", {}).get(store, ())
    ends = [(f"{r['bandwidth']:.2g}", r["cs_divergence_v"], r["cs_divergence_v_band"]) for r in (*rows[:1], *rows[-1:])]
    return ", ".join(f"V {value:.3g} at bandwidth {width} (no gap: {band:.3g})" for width, value, band in ends)


def _ranks(report: Mapping[str, Any], store: str) -> str:
    values = report["stores"][store]
    if "effective_rank_image" not in values or "effective_rank_text" not in values:
        return ""
    return f"images use {values['effective_rank_image']:.0f} dimensions, texts {values['effective_rank_text']:.0f}"


def _conflict(report: Mapping[str, Any], store: str) -> str:
    rows = report.get("conflict", {}).get(store, ())
    if not rows:
        return ""
    coldest = min(rows, key=lambda row: row["temperature"])
    both = coldest["gap_rate_pull"] + coldest["gap_rate_push"]
    return (
        f"at temperature {coldest['temperature']:g} InfoNCE changes the gap at a rate of {both:.2g}, "
        f"CS of weight {coldest['weight']:g} at {coldest['gap_rate_divergence']:.2g}"
    )


_WORDS = {
    "gap_against_recall": _tradeoff,
    "gap_against_pictures": _bought,
    "projection": _clouds,
    "cosine_histograms": _cosines,
    "divergence_curve": _divergence,
    "spectra": _ranks,
    "conflict": _conflict,
}
