"""Mixed-modality retrieval: a corpus of images and texts, where a query meets its own modality first if there is a gap.

R@K within one direction compares items of one modality with each other and never sees a gap between the two; a corpus
of both does (GR-CLIP, Li et al., arXiv 2507.19054). Nothing of size queries x corpus is held: ``scan`` lists the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.retrieval.bootstrap import Key
from cs_aligner_cli.retrieval.equal_texts import equal_text_pairs
from cs_aligner_cli.retrieval.rows import Rows
from cs_aligner_cli.retrieval.scan import TruePairs, scan

Bools = npt.NDArray[np.bool_]
# What an item is made of, and the part of the result that counts right answers of that kind.
KINDS = ("image", "text", "both")
MIXED = "mixed"
IMAGE_QUERIES = "image_queries"
DRAWS, SHARE = 5, 0.5


class Items(NamedTuple):
    """Items by their rows: ``image`` (n,) and ``text`` (n,), -1 where an item has none of that modality."""

    image: Ints
    text: Ints

    @property
    def kinds(self) -> Ints:
        """(n,) places in KINDS."""
        return np.where(self.text < 0, 0, np.where(self.image < 0, 1, 2))


class ItemRows(Rows):
    """The rows of items of either modality; an item of both is the normalised sum of its two unit rows."""

    def __init__(self, image: Rows, text: Rows, items: Items) -> None:
        if image.dim != text.dim:
            raise InputError(f"image and text rows differ in dimension: {image.dim} against {text.dim}")
        self._parts, self._items = (image, text), items
        self.count, self.dim, self.longest = len(items.image), image.dim, max(image.longest, text.longest)

    def take(self, rows: slice | Ints) -> Tensor:
        """Rows as a float32 (n, d) tensor."""
        numbers = [part[rows] for part in self._items]
        block = torch.zeros(len(numbers[0]), self.dim)
        for part, of_part in zip(self._parts, numbers, strict=True):
            there = np.flatnonzero(of_part >= 0)
            if len(there):
                block[there] += part.take(of_part[there])
        both = np.flatnonzero((numbers[0] >= 0) & (numbers[1] >= 0))
        if len(both):
            block[both] = l2_normalize(block[both])
        return block


@dataclass(frozen=True, eq=False)
class MixedTask:
    """One corpus and what is asked of it.

    ``owner`` (Q,): what is resampled together, such as the image that a query belongs to. ``right(query, place)`` says
    of (P,) queries and places in the corpus which are right answers; ``has``: kind to (Q,), whether the query has a
    right answer of that kind; ``hidden`` (Q,): the place that is the query itself and does not count, -1 for none.
    """

    corpus: Items
    queries: Items
    owner: Ints
    right: Callable[[Ints, Ints], Bools]
    has: Mapping[str, Bools]
    hidden: Ints


@dataclass(frozen=True, eq=False)
class MixedScores:
    """What every query of all draws scored: (Q,) each.

    ``values``: (group, "R@k") to 1 for a hit, 0 for none, NaN for a query that does not count in the group. Groups:
    "mixed" of all queries of text, "mixed/KIND" of those with a right answer of that kind, hit where one of that kind
    is among the k best; "mixed/image_queries" and its kinds likewise for queries that are images.
    """

    queries: Items
    owner: Ints
    draw: Ints
    values: Mapping[Key, Floats]


def caption_tasks(
    image_of_text: Ints,
    images: int,
    texts: Ints | None = None,
    share: float = SHARE,
    draws: int = DRAWS,
    text_groups: Ints | None = None,
) -> list[MixedTask]:
    """Corpora in which every image stands once: ``share`` of them as image, the others as one of their captions.

    The queries are, of every image with two captions, one that is not in the corpus (its right answer is the image or
    the caption that stands for it) and, of every image that stands as its caption, the image. ``image_of_text`` (N,):
    each text's image, -1 for none; ``texts``: rows of the texts that take part (None: all). Images without text stand
    as images, texts without image as texts. Corpora are drawn by their number alone, so that whatever is measured on a
    split meets the same ones. With ``text_groups`` (N,), texts of one group being equal, the right answers are those of
    ``equal_text_pairs``. An empty list where no image has two captions.
    """
    owner = np.full(len(image_of_text), -1)
    taking_part = np.arange(len(owner)) if texts is None else texts
    owner[taking_part] = image_of_text[taking_part]
    if np.bincount(owner[owner >= 0], minlength=1).max() < 2:
        return []
    alone = taking_part[owner[taking_part] < 0]
    rngs = map(np.random.default_rng, range(draws))
    return [_caption_task(owner, images, alone, share, text_groups, rng) for rng in rngs]


def _caption_task(
    owner: Ints, images: int, alone: Ints, share: float, groups: Ints | None, rng: np.random.Generator
) -> MixedTask:
    standing, asking = _two_captions(owner, images, rng)
    as_image = _standing_as_image(standing, share, rng)
    corpus = _corpus(as_image, standing, alone)
    asks = np.flatnonzero(asking >= 0)
    from_image = np.flatnonzero(~as_image)
    queries = Items(
        np.concatenate([np.full(len(asks), -1), from_image]),
        np.concatenate([asking[asks], np.full(len(from_image), -1)]),
    )
    items = np.concatenate([asks, from_image])
    own = TruePairs.of(np.arange(len(items)), items)
    return task_of_pairs(
        corpus, queries, items, own if groups is None else equal_text_pairs(owner, groups, corpus, queries)
    )


def label_tasks(
    labels: npt.NDArray[np.object_], image_of_text: Ints, share: float = SHARE, draws: int = DRAWS
) -> list[MixedTask]:
    """Corpora as those of ``caption_tasks``, in which the right answers are all other items of the query's class.

    ``labels`` (M,): the class of each image, "" for none. The queries are the labelled images and one caption of each;
    the item that the query belongs to is no answer. An empty list where no class has two images with captions.
    """
    classes, number = np.unique(labels.astype(str), return_inverse=True)
    number = np.where(classes[number] == "", -1, number)
    captioned = np.bincount(image_of_text[image_of_text >= 0], minlength=len(labels)) > 0
    number = np.where(captioned, number, -1)
    if np.bincount(number[number >= 0], minlength=1).max() < 2:
        return []
    alone = np.flatnonzero(image_of_text < 0)
    return [_label_task(number, image_of_text, alone, share, np.random.default_rng(draw)) for draw in range(draws)]


def _label_task(number: Ints, owner: Ints, alone: Ints, share: float, rng: np.random.Generator) -> MixedTask:
    standing, _ = _two_captions(owner, len(number), rng)
    as_image = _standing_as_image(standing, share, rng)
    corpus = _corpus(as_image, standing, alone)
    asks = np.flatnonzero(number >= 0)
    none = np.full(len(asks), -1)
    items = np.concatenate([asks, asks])
    of_place = np.concatenate([number, np.full(len(alone), -2)])
    has = {}
    for kind, stands in (("image", as_image), ("text", ~as_image)):
        sizes = np.bincount(number[stands & (number >= 0)], minlength=int(number.max()) + 1)
        has[kind] = sizes[number[items]] > stands[items]
    return MixedTask(
        corpus,
        Items(np.concatenate([none, asks]), np.concatenate([standing[asks], none])),
        items,
        lambda query, place: number[items[query]] == of_place[place],
        has,
        items,
    )


def _two_captions(owner: Ints, images: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Two captions (M,) of every image, drawn at random; -1 where it has no first or no second one."""
    drawn = rng.permutation(np.flatnonzero(owner >= 0))
    drawn = drawn[np.argsort(owner[drawn], kind="stable")]
    nth = np.arange(len(drawn)) - np.searchsorted(owner[drawn], owner[drawn])
    found = []
    for which in range(2):
        captions = np.full(images, -1)
        captions[owner[drawn[nth == which]]] = drawn[nth == which]
        found.append(captions)
    return found[0], found[1]


def _standing_as_image(standing: Ints, share: float, rng: np.random.Generator) -> Bools:
    """(M,) which images stand as themselves: a share of those that have a caption, and all others."""
    captioned = rng.permutation(np.flatnonzero(standing >= 0))
    as_image = standing < 0
    as_image[captioned[: round(share * len(captioned))]] = True
    return as_image


def _corpus(as_image: Bools, standing: Ints, alone: Ints) -> Items:
    """Every image at the place of its row, as itself or as its caption, and then the texts that have none."""
    image = np.where(as_image, np.arange(len(as_image)), -1)
    return Items(
        np.concatenate([image, np.full(len(alone), -1)]), np.concatenate([np.where(as_image, -1, standing), alone])
    )


def task_of_pairs(corpus: Items, queries: Items, owner: Ints, pairs: TruePairs) -> MixedTask:
    """A task whose right answers are ``pairs`` of queries and places in the corpus; arguments as in MixedTask."""
    width = len(corpus.image)
    known = pairs.query * width + pairs.item
    kinds = corpus.kinds[pairs.item]
    has = {
        kind: np.bincount(pairs.query[kinds == number], minlength=len(owner)) > 0 for number, kind in enumerate(KINDS)
    }
    return MixedTask(
        corpus,
        queries,
        owner,
        lambda query, place: np.isin(query * width + place, known),
        {kind: there for kind, there in has.items() if there.any()},
        np.full(len(owner), -1),
    )


def mixed_scores(
    image: Rows, text: Rows, tasks: Iterable[MixedTask], ks: tuple[int, ...], device: str = "cpu"
) -> MixedScores:
    """Search every task's corpus exactly, by the order of ``scores``; image (M, d) and text (N, d) are unit rows.

    A k may exceed a corpus, whose items are then all among the k best.
    """
    parts = [_one(image, text, task, ks, device) for task in tasks]
    keys = dict.fromkeys(key for _, values in parts for key in values)
    sizes = [len(task.owner) for task, _ in parts]
    return MixedScores(
        Items(*(np.concatenate([task.queries[which] for task, _ in parts]) for which in range(2))),
        np.concatenate([task.owner for task, _ in parts]),
        np.repeat(np.arange(len(parts)), sizes),
        {
            key: np.concatenate([v.get(key, np.full(n, np.nan)) for (_, v), n in zip(parts, sizes, strict=True)])
            for key in keys
        },
    )


def _one(
    image: Rows, text: Rows, task: MixedTask, ks: tuple[int, ...], device: str
) -> tuple[MixedTask, dict[Key, Floats]]:
    queries, corpus = (ItemRows(image, text, items) for items in (task.queries, task.corpus))
    # One more than k: the query itself may stand in the corpus.
    found, _ = scan(queries, corpus, TruePairs.none(), None, k=max(ks) + 1, device=device)
    assert found is not None
    listed = found.top_ids
    query, column = np.nonzero(listed >= 0)
    right = np.zeros(listed.shape, bool)
    right[query, column] = task.right(query, listed[query, column])
    own = listed == task.hidden[:, None]
    right &= ~own
    place = np.arange(1, listed.shape[1] + 1) - np.cumsum(own, axis=1)
    of_text = task.queries.text >= 0
    there = [(of_text, MIXED)]
    if (~of_text).any():
        there.append((~of_text, f"{MIXED}/{IMAGE_QUERIES}"))
    kinds = task.corpus.kinds[listed]
    values: dict[Key, Floats] = {}
    for asking, group in there:
        parts = {kind: asking & has for kind, has in task.has.items() if (asking & has).any()}
        counted = [("", np.logical_or.reduce([*parts.values()]), right)] if parts else []
        if len(parts) > 1:  # else the part is the whole
            counted += [
                (f"/{kind}", counted_queries, right & (kinds == KINDS.index(kind)))
                for kind, counted_queries in parts.items()
            ]
        for part, counted_queries, hits in counted:
            for k in ks:
                hit = (hits & (place <= k)).any(axis=1).astype(np.float64)
                values[f"{group}{part}", f"R@{k}"] = np.where(counted_queries, hit, np.nan)
    return task, values


def mixed_means(scores: MixedScores) -> dict[str, Any]:
    """The mean of every metric over queries and draws, ``nested``."""
    return nested({key: float(np.nanmean(values)) for key, values in scores.values.items()})


def nested(values: Mapping[Key, Any]) -> dict[str, Any]:
    """{("mixed", "R@1"): a, ("mixed/image", "R@1"): b} as {"R@1": a, "image": {"R@1": b}}."""
    result: dict[str, Any] = {}
    for (group, metric), value in values.items():
        part = result
        for name in group.split("/")[1:]:
            part = part.setdefault(name, {})
        part[metric] = value
    return result
