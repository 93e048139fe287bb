"""Splits drawn from a seed, image by image, so that no picture and its copy stand in two of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.data.collector import Source
from cs_aligner_cli.data.duplicates import near_codes


def draw_splits(source: Source, fractions: Mapping[str, float], seed: int, distance: int | None) -> None:
    """Give every image, and with it its captions, a split: the shares of ``fractions`` in a random order.

    Images of equal content, or of looks that differ in at most ``distance`` bits (None: not compared), stay together;
    captions and further items without an image are drawn by themselves. The same source and seed give the same splits.
    """
    rng = np.random.default_rng([seed, 2])
    images = source.images
    split_of = _drawn(_groups(images, distance), fractions, rng)
    source.images = images.assign(split=split_of)
    owner = pd.Series(split_of, index=images["image_id"].to_numpy(), dtype=object)
    source.captions = _following(source.captions, owner, fractions, rng)
    source.further = {name: _following(table, owner, fractions, rng) for name, table in source.further.items()}


def _following(
    items: pd.DataFrame, owner: pd.Series[str], fractions: Mapping[str, float], rng: np.random.Generator
) -> pd.DataFrame:
    """Items in the splits of their images; those of no image, or of one that was dropped, drawn by themselves."""
    split = items["image_id"].map(owner).astype(object)
    alone = split.isna().to_numpy()
    split[alone] = _drawn(np.arange(alone.sum()), fractions, rng)
    return items.assign(split=split)


def _drawn(
    group_of: npt.NDArray[np.int64], fractions: Mapping[str, float], rng: np.random.Generator
) -> npt.NDArray[np.object_]:
    """The split of each item; groups come in a random order, and each goes where its middle falls."""
    sizes = np.bincount(group_of) if len(group_of) else np.arange(0)
    order = rng.permutation(len(sizes))
    middle = (np.cumsum(sizes[order]) - sizes[order] / 2) / max(1, len(group_of))
    limits = np.cumsum(list(fractions.values()))[:-1]
    split_of = np.empty(len(sizes), object)
    split_of[order] = np.array(list(fractions), object)[np.searchsorted(limits, middle, side="right")]
    return split_of[group_of]


def _groups(images: pd.DataFrame, distance: int | None) -> npt.NDArray[np.int64]:
    """The group of each image, numbered in the order of their first images."""
    _, first, of_content = np.unique(images["digest"].to_numpy(np.uint64), return_index=True, return_inverse=True)
    links = [(np.arange(len(images)), first[of_content])]
    if distance is not None and "dhash" in images and len(images):
        looks, first, of_look = np.unique(images["dhash"].to_numpy(np.uint64), return_index=True, return_inverse=True)
        links.append((np.arange(len(images)), first[of_look]))
        links += [(first[one], first[other]) for one, other, _ in near_codes(looks, distance, lambda *_: None)]
    return _connected(len(images), links)


def _connected(count: int, links: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]) -> npt.NDArray[np.int64]:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = (np.concatenate(side) for side in zip(*links, strict=True))
    graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    # scipy numbers the groups as it comes upon them; in the order of their first images they depend on nothing else.
    _, first, place = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[place], np.int64)
