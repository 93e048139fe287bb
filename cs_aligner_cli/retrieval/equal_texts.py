"""Right answers in corpora of both modalities where equal texts are one text (data.groups: text)."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.retrieval.protocol import refuse_too_many
from cs_aligner_cli.retrieval.scan import TruePairs


def image_by_text(image_of_text: Ints, groups: Ints) -> Ints:
    """(N,) the image of each text and, of a text without one, an image that has a text of its group; -1 for none."""
    known = np.flatnonzero(image_of_text >= 0)
    first, place = np.unique(groups[known], return_index=True)
    there = np.searchsorted(first, groups).clip(max=len(first) - 1)
    found = np.where(first[there] == groups, image_of_text[known[place[there]]], -1)
    return np.where(image_of_text >= 0, image_of_text, found)


def equal_text_pairs(
    image_of_text: Ints, groups: Ints, corpus: tuple[Ints, Ints], queries: tuple[Ints, Ints]
) -> TruePairs:
    """Queries and the places in a corpus of ``mixed.caption_tasks`` that are right answers to them.

    ``groups`` (N,): texts of one group are equal; ``image_of_text`` (N,): -1 where a text has no image or is left out.
    Corpus and queries are rows of images and of texts, -1 for none. As in ``protocol.with_equal_texts`` an image and
    a text belong together where the image has an equal text: a query that is a text finds all items of such images,
    whatever they stand as, a query that is an image all texts that belong to it; and equal texts find each other.
    Raises InputError if that makes more pairs than can be held.
    """
    number = np.unique(groups, return_inverse=True)[1].reshape(-1)
    known = np.flatnonzero(image_of_text >= 0)
    shape = (int(number.max(initial=-1)) + 1, len(corpus[0]))
    # (group, place): the items of images that have a text of the group; an image's place is its row.
    belongs = _table(number[known], image_of_text[known], shape)
    standing = np.flatnonzero(corpus[1] >= 0)
    # (group, place): the places that stand as a text of the group.
    of_text = _table(number[corpus[1][standing]], standing, shape)
    asking, owner = np.flatnonzero(queries[1] >= 0), np.flatnonzero(queries[0] >= 0)
    by_text = (belongs + of_text)[number[queries[1][asking]]].tocoo()
    by_image = (belongs.T[queries[0][owner]] @ of_text).tocoo()
    refuse_too_many(by_text.nnz + by_image.nnz)
    query = np.concatenate([asking[by_text.coords[0]], owner[by_image.coords[0]]])
    place = np.concatenate([by_text.coords[1], by_image.coords[1]])
    return TruePairs.of(query.astype(np.int64), place.astype(np.int64))


def _table(row: Ints, column: Ints, shape: tuple[int, int]) -> sparse.csr_array:
    """Ones at (row, column), however often named."""
    row, column = np.unique(np.stack([row, column]), axis=1)
    return sparse.csr_array((np.ones(len(row), np.int32), (row, column)), shape=shape)
