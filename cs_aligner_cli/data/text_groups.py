"""Captions with equal texts as one group: no negatives of each other, and all of them right answers."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import Split


def text_groups(texts: pd.Series[str]) -> Ints:
    """(N,) a number for every caption, the same for captions of equal text; an empty text is like no other."""
    groups = pd.factorize(texts)[0].astype(np.int64)
    empty = np.flatnonzero(texts == "")
    groups[empty] = len(texts) + np.arange(len(empty))
    return groups


def linked_groups(split: Split) -> Ints:
    """(N,) a number for every caption, the same for those linked by equal texts and common images, however far.

    What of a batch that holds all captions of its images is no negative: those of one image, and equal ones.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    captions, images = np.arange(len(split.captions)), split.image_of_caption
    texts = np.unique(text_groups(split.captions["text"]), return_inverse=True)[1]
    alone = len(split.images) + captions
    nodes = len(captions) + int(texts.max(initial=-1)) + 1
    owners = len(captions) + texts
    of_image = nodes + np.where(images >= 0, images, alone)
    rows, columns = np.concatenate([captions, captions]), np.concatenate([owners, of_image])
    size = int(columns.max(initial=0)) + 1
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    labels: Ints = connected_components(graph, directed=False)[1][: len(captions)].astype(np.int64)
    return labels
