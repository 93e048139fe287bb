"""Retrieval in both directions with several true answers per query: recall at k and ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.arrays import ArrayLike, as_rows, l2_normalize, same_width
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.retrieval.index import build_index, search
from cs_aligner_cli.retrieval.scores import dense_scores, finite_rows, query_blocks

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class QueryRanks:
    """The queries of one direction, as rows of their own array, and the rank of each: both (Q,) int64."""

    queries: Ints
    ranks: Ints


def evaluate_retrieval(
    image: ArrayLike,
    text: ArrayLike,
    image_of_text: npt.NDArray[np.integer] | Tensor,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, float | int]]:
    """Evaluate image-to-text ("i2t") and text-to-image ("t2i") retrieval by cosine similarity.

    image (M, d) and text (N, d) are floating-point and L2-normalised inside; a zero row has cosine 0 with
    all. ``image_of_text`` (N,) integers: the row of each text's image, or -1 for a text without one, which is
    no query but stays in the gallery; likewise an image without text.

    Returns per direction "R@k" for every k in ks (the fraction of queries with any true answer among the k
    best), "median_rank" and "mean_rank" (1 is best; of a query's best true answer) and "queries". Equal
    scores rank by smaller row; see ``search``.

    Raises InputError if shapes do not fit together, a row is not finite, ``image_of_text`` points outside, no
    text has an image, or a k is below 1 or above the size of a gallery.
    """
    galleries = {"images": len(image), "texts": len(text)}
    if not ks or min(ks) < 1:
        raise InputError(f"ks: expected numbers of at least 1, got {list(ks)}")
    for name, size in galleries.items():
        if max(ks) > size:
            raise InputError(f"k = {max(ks)} but the gallery holds {size} {name}")
    directions = true_ranks(image, text, image_of_text, listed=max(ks))
    return {name: _summary(direction.ranks, ks) for name, direction in directions.items()}


def _summary(ranks: Ints, ks: Sequence[int]) -> dict[str, float | int]:
    return {
        **{f"R@{k}": float(np.mean(ranks <= k)) for k in ks},
        "median_rank": float(np.median(ranks)),
        "mean_rank": float(np.mean(ranks)),
        "queries": len(ranks),
    }


def true_ranks(
    image: ArrayLike,
    text: ArrayLike,
    image_of_text: npt.NDArray[np.integer] | Tensor,
    listed: int = 10,
) -> dict[str, QueryRanks]:
    """Return every query's rank of its best true answer, 1 for the top, under the keys "i2t" and "t2i".

    Arguments and errors as in ``evaluate_retrieval``. ``listed`` is how many rows FAISS lists per query
    before the rank is counted out over the whole gallery: a matter of speed, not of the result.
    """
    image_rows = finite_rows(l2_normalize(as_rows(image, "image")), "image")
    text_rows = finite_rows(l2_normalize(as_rows(text, "text")), "text")
    same_width(image_rows, text_rows)
    owners = _owners(image_of_text, len(image_rows), len(text_rows))
    captioned = np.unique(owners[owners >= 0])
    paired = np.flatnonzero(owners >= 0)
    images = np.arange(len(image_rows))
    return {
        "i2t": QueryRanks(captioned, _ranks(image_rows[captioned], captioned, text_rows, owners, listed)),
        "t2i": QueryRanks(paired, _ranks(text_rows[paired], owners[paired], image_rows, images, listed)),
    }


def _owners(image_of_text: npt.NDArray[np.integer] | Tensor, images: int, texts: int) -> Ints:
    given = image_of_text.cpu().numpy() if isinstance(image_of_text, Tensor) else np.asarray(image_of_text)
    if given.shape != (texts,) or not np.issubdtype(given.dtype, np.integer):
        raise InputError(
            f"image_of_text: expected {texts} integers, one per text; got shape {given.shape}, {given.dtype}"
        )
    owners = given.astype(np.int64)
    outside = np.flatnonzero((owners < -1) | (owners >= images))
    if len(outside):
        raise InputError(
            f"image_of_text[{outside[0]}] = {owners[outside[0]]}, expected 0 to {images - 1}, "
            "or -1 for a text without image"
        )
    if (owners < 0).all():
        raise InputError("image_of_text: no text has an image, so there is nothing to retrieve")
    return owners


def _ranks(queries: Tensor, wanted: Ints, gallery: Tensor, labels: Ints, listed: int) -> Ints:
    """Ranks (Q,) of each query's best gallery row whose label (N,) is the query's wanted label (Q,)."""
    listed = min(listed, len(gallery))
    ids = search(build_index(gallery), queries, listed)[1]
    hits = labels[ids] == wanted[:, None]
    ranks: Ints = hits.argmax(axis=1) + 1
    missed = np.flatnonzero(~hits.any(axis=1))
    counted = _counted_ranks(queries[missed], wanted[missed], gallery, labels)
    ranks[missed] = np.maximum(counted, listed + 1)
    return ranks


def _counted_ranks(queries: Tensor, wanted: Ints, gallery: Tensor, labels: Ints) -> Ints:
    """As ``_ranks``, by counting the rows that come before the best true one; never Q x N at once."""
    ranks = np.empty(len(queries), dtype=np.int64)
    rows = torch.arange(len(gallery))
    for block in query_blocks(len(queries), len(gallery)):
        scores = dense_scores(queries[block], gallery)
        others = torch.from_numpy(labels != wanted[block, None])
        of_true = scores.masked_fill(others, -torch.inf)
        best = of_true.amax(dim=1, keepdim=True)
        first = (of_true == best).int().argmax(dim=1, keepdim=True)
        before = (scores > best) | ((scores == best) & (rows < first))
        ranks[block] = before.sum(dim=1).numpy() + 1
    return ranks
