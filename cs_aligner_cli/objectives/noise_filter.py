"""The noise filter: pairs that are far less alike than the others of a step are no pairs in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from cs_aligner_cli.objectives.clouds import Clouds, Edge, Pairs


def likely_pairs(image: Tensor, text: Tensor, deviations: float) -> Tensor:
    """Return (P,) bool: the pairs whose cosine is at least the mean of all less ``deviations`` standard deviations.

    image and text (P, d) are unit rows, row by row a pair. It is COTS' adaptive momentum filter (Lu et al., CVPR 2022,
    arXiv 2204.07441), whose threshold follows the distribution of similarities, on the towers as they are. The two
    most similar pairs always stay, so that there is something to contrast; where a row is not finite, all do.
    """
    cosines = (image * text).sum(dim=1)
    limit = cosines.mean() - deviations * cosines.std(correction=0)
    return ~(cosines < limit) | (cosines >= cosines.topk(min(2, len(cosines))).values[-1])


def without_noise(clouds: Clouds, edges: Sequence[Edge], deviations: float) -> tuple[Clouds, int, int]:
    """Return the clouds without the unlikely pairs of every edge, how many those are, and of how many pairs.

    Their rows stay, as rows that are in no pair: clouds are what they were, to divergences and to what else sees
    unpaired items.
    """
    pairs, left, judged = dict(clouds.pairs), 0, 0
    for edge in edges:
        x, y, groups = clouds.whole.pair(edge)
        kept = likely_pairs(x.detach(), y.detach(), deviations).nonzero().squeeze(1)
        first, second, _ = clouds.pairs[edge]
        pairs[edge] = Pairs(
            kept if first is None else first[kept],
            kept if second is None else second[kept],
            None if groups is None else groups[kept],
        )
        left, judged = left + len(x) - len(kept), judged + len(x)
    return replace(clouds, pairs=pairs), left, judged
