"""The spectral start: maps from features to smooth coordinates of a graph of paired and unpaired items."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cs_aligner_cli.common.closed_forms import ridge
from cs_aligner_cli.common.spectral import joint_graph, spectral_embedding
from cs_aligner_cli.common.types import Floats, Ints

# Nearest items of its own modality that an item is tied to, and the most coordinates: of more the last are noise.
NEIGHBOURS, _AXES = 10, 256


def spectral_maps(
    items: Mapping[str, Floats], partners: tuple[Ints, Ints], out_dim: int, shrinkage: float
) -> dict[str, tuple[Floats, Floats]]:
    """(weight (k, d), mean (d,)) by modality, k <= ``out_dim``: ridge regressions of graph coordinates on the features.

    ``items``: unit rows of images (M, d) and texts (N, e); row ``partners[0][p]`` of the images belongs to row
    ``partners[1][p]`` of the texts. The graph ties every item to its nearest by the cosine of centred rows, and
    partners to each other (``common.spectral``): these and what is near them, paired or not, have like coordinates.
    """
    means = {m: rows.mean(axis=0) for m, rows in items.items()}
    centred = {m: rows - means[m] for m, rows in items.items()}
    unit = {m: z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12) for m, z in centred.items()}
    graph = joint_graph(unit["image"], unit["text"], *partners, NEIGHBOURS)
    coordinates, _ = spectral_embedding(graph, min(out_dim, _AXES))
    images, texts = np.split(coordinates, [len(items["image"])])
    of = {"image": images - images.mean(axis=0), "text": texts - texts.mean(axis=0)}
    return {m: (ridge(centred[m], of[m], shrinkage).T, means[m]) for m in items}
