"""Which items are queries, what are their true answers, in which galleries: and the evaluation by that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from cs_aligner_cli.common.arrays import refuse_masked
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.retrieval.metrics import DIRECTIONS, HUB_K, QueryScores, query_scores
from cs_aligner_cli.retrieval.rerank import Reranker
from cs_aligner_cli.retrieval.rows import Part, Rows
from cs_aligner_cli.retrieval.scan import TruePairs, scan

# True pairs held at most: 16 bytes each, and as much again for their ranks.
_MOST_PAIRS = 100_000_000
# Per direction the image rows and the text rows that are searched; score corrections may differ by direction.
Searched = Mapping[str, tuple[Rows, Rows]]


@dataclass(frozen=True, eq=False)
class Protocol:
    """The pairs of both directions, and the galleries.

    ``pairs``: direction to its judged pairs, by rows of the whole split; ``grades``: direction to (P,) judgements, or
    none for plain relevance; items graded above ``relevant_above`` are true answers. ``owner`` (N,): the image of each
    text, -1 for none, which says what is resampled together. ``galleries``: the image rows and text rows of each.
    """

    pairs: Mapping[str, TruePairs]
    owner: Ints
    images: int
    galleries: tuple[tuple[Ints, Ints], ...]
    grades: Mapping[str, Floats] = field(default_factory=dict)
    relevant_above: float = 0.0

    @property
    def clusters(self) -> dict[str, Ints]:
        """The number of what each image and each text belongs to: an image with its texts, or a text alone."""
        alone = self.images + np.arange(len(self.owner))
        return {"image": np.arange(self.images), "text": np.where(self.owner >= 0, self.owner, alone)}


def caption_protocol(
    image_of_text: npt.NDArray[np.integer] | Tensor,
    images: int,
    texts: int,
    folds: int = 1,
    captions_per_image: int | None = None,
) -> Protocol:
    """The true answers of an image are its texts, that of a text its image.

    ``captions_per_image`` keeps the first so many texts of each image (COCO 5K papers: 5), and all texts without one.
    ``folds`` cuts the images, in order, into so many galleries of their own (COCO 1K: 5 of 5,000 images); texts
    without image are then in none. Raises InputError as ``evaluate_retrieval`` does, and for more folds than images.
    """
    owner = owners(image_of_text, images, texts)
    if folds > images:
        raise InputError(f"folds = {folds}, but there are {images} images")
    kept = np.arange(texts)
    if captions_per_image is not None:
        order = np.argsort(owner, kind="stable")
        nth = np.arange(texts) - np.searchsorted(owner[order], owner[order])
        kept = np.sort(order[(nth < captions_per_image) | (owner[order] < 0)])
    paired = kept[owner[kept] >= 0]
    pairs = {"i2t": TruePairs.of(owner[paired], paired), "t2i": TruePairs.of(paired, owner[paired])}
    if folds == 1:
        galleries = [(np.arange(images), kept)]
    else:
        fold_of = np.repeat(np.arange(folds), [len(part) for part in np.array_split(np.arange(images), folds)])
        galleries = [(np.flatnonzero(fold_of == f), paired[fold_of[owner[paired]] == f]) for f in range(folds)]
    return Protocol(pairs, owner, images, tuple(galleries))


def owners(image_of_text: npt.NDArray[np.integer] | Tensor, images: int, texts: int) -> Ints:
    """(texts,) the image of each text, checked; -1 for none."""
    checked = _integers(image_of_text, texts, "image_of_text")
    outside = np.flatnonzero((checked < -1) | (checked >= images))
    if len(outside):
        raise InputError(
            f"image_of_text[{outside[0]}] = {checked[outside[0]]}, expected 0 to {images - 1}, "
            "or -1 for a text without image"
        )
    if (checked < 0).all():
        raise InputError("image_of_text: no text has an image, so there is nothing to retrieve")
    return checked


def _integers(given: npt.NDArray[np.integer] | Tensor, texts: int, name: str) -> Ints:
    refuse_masked(given, name)
    array = given.cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.shape != (texts,) or not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name}: expected {texts} integers, one per text; got shape {array.shape}, {array.dtype}")
    return array.astype(np.int64)


def judged(protocol: Protocol, direction: str, query: Ints, item: Ints, grade: Floats) -> Protocol:
    """The protocol with the judgements of one direction in place of its own true answers."""
    order = np.lexsort((item, query))
    pairs = {**protocol.pairs, direction: TruePairs(query[order].astype(np.int64), item[order].astype(np.int64))}
    return replace(protocol, pairs=pairs, grades={**protocol.grades, direction: grade[order]})


def text_groups_of(given: npt.NDArray[np.integer] | Tensor, texts: int) -> Ints:
    """(texts,) the group of each text, checked."""
    return _integers(given, texts, "text_groups")


def with_equal_texts(protocol: Protocol, groups: Ints) -> Protocol:
    """The protocol in which texts of one of the (N,) ``groups`` are one text: each answers the images of the others.

    Raises InputError if that makes more true pairs than can be held.
    """
    kept = np.unique(np.concatenate([texts for _, texts in protocol.galleries]))
    by_group = kept[np.argsort(groups[kept], kind="stable")]
    pairs = protocol.pairs["i2t"]
    images, wanted = np.unique(np.stack([pairs.query, groups[pairs.item]]), axis=1)
    start, end = (np.searchsorted(groups[by_group], wanted, side=side) for side in ("left", "right"))
    counts = end - start
    refuse_too_many(int(counts.sum()))
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    query, item = np.repeat(images, counts), by_group[np.repeat(start, counts) + within]
    return replace(protocol, pairs={"i2t": TruePairs.of(query, item), "t2i": TruePairs.of(item, query)})


def refuse_too_many(pairs: int) -> None:
    """Raise InputError if equal texts make more true pairs than can be held."""
    if pairs > _MOST_PAIRS:
        raise InputError(
            f"data.groups: text makes {pairs:,} pairs of image and right caption; {_MOST_PAIRS:,} can be held",
            "Measure fewer captions (eval_retrieval.captions_per_image), or classify: zero_shot.",
        )


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The scores of one direction's queries, and the best items of every row of its query side (-1: not looked at)."""

    scores: QueryScores
    top_ids: Ints


def evaluate(
    searched: Searched,
    protocol: Protocol,
    ks: tuple[int, ...],
    listed: int = HUB_K,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda rows: None,
    reranker: Reranker | None = None,
) -> dict[str, Evaluated]:
    """Evaluate both directions in every gallery; the queries of all galleries count together.

    A ``reranker`` puts the first hits of every query in another order before they are scored.

    Raises InputError if a k is below 1 or above the size of a gallery, or a direction has no query.
    """
    for images, texts in protocol.galleries:
        check_ks(ks, len(images), len(texts))
    parts: dict[str, list[Evaluated]] = {direction: [] for direction in DIRECTIONS}
    for images, texts in protocol.galleries:
        for directions in _together(searched):
            chosen = {d: _inside(protocol, d, images, texts) for d in directions}
            x, y = searched[directions[0]]
            found = scan(
                Part(x, images) if len(images) < len(x) else x,
                Part(y, texts) if len(texts) < len(y) else y,
                chosen["i2t"][0] if "i2t" in chosen else None,
                chosen["t2i"][0] if "t2i" in chosen else None,
                k=max(listed, HUB_K, reranker.top_k if reranker else 0),
                device=device,
                advance=advance if len(directions) == 2 or directions[0] == "i2t" else lambda rows: None,
            )
            for direction, way in zip(DIRECTIONS, found, strict=True):
                if way is not None:
                    grades = chosen[direction][1]
                    mine, other = (images, texts) if direction == "i2t" else (texts, images)
                    if reranker:
                        way = reranker.reranked(way, direction, mine, other)
                    scores = query_scores(way, ks, grades, protocol.relevant_above)
                    sizes = (len(x), len(y)) if direction == "i2t" else (len(y), len(x))
                    parts[direction].append(_in_split(scores, way.top_ids, mine, other, sizes, listed))
    return {direction: _joined(found, direction) for direction, found in parts.items()}


def as_ks(ks: Sequence[int]) -> tuple[int, ...]:
    """The cut-offs of R@k as integers; raise InputError where there is none, or one is no integer of at least 1."""
    given = list(ks) if isinstance(ks, Iterable) else []
    if not given or not all(isinstance(k, int | np.integer) and k >= 1 for k in given):
        raise InputError(f"ks: expected integers of at least 1, as in (1, 5, 10); got {ks!r}")
    return tuple(int(k) for k in given)


def check_ks(ks: tuple[int, ...], images: int, texts: int) -> None:
    """Raise InputError unless every k is at least 1 and at most the size of both galleries."""
    as_ks(ks)
    for name, size in (("images", images), ("texts", texts)):
        if max(ks) > size:
            raise InputError(f"k = {max(ks)} but the gallery holds {size} {name}")


def _together(searched: Searched) -> list[tuple[str, ...]]:
    """Both directions share one pass where they search the same rows."""
    same = all(a is b for a, b in zip(searched["i2t"], searched["t2i"], strict=True))
    return [DIRECTIONS] if same else [(direction,) for direction in DIRECTIONS]


def _inside(protocol: Protocol, direction: str, images: Ints, texts: Ints) -> tuple[TruePairs, Floats | None]:
    """The pairs of a direction that lie in one gallery, by rows of that gallery, with their grades."""
    pairs, grades = protocol.pairs[direction], protocol.grades.get(direction)
    numbers = []
    for rows, total in ((images, protocol.images), (texts, len(protocol.owner))):
        number = np.full(total, -1)
        number[rows] = np.arange(len(rows))
        numbers.append(number)
    of_query, of_item = numbers if direction == "i2t" else numbers[::-1]
    query, item = of_query[pairs.query], of_item[pairs.item]
    inside = (query >= 0) & (item >= 0)
    return TruePairs(query[inside], item[inside]), grades[inside] if grades is not None else None


def _in_split(
    scores: QueryScores, top_ids: Ints, mine: Ints, other: Ints, sizes: tuple[int, int], listed: int
) -> Evaluated:
    """From rows of a gallery to rows of the split; items outside the gallery have an occurrence of -1."""
    occurrence = np.full(sizes[1], -1)
    occurrence[other] = scores.occurrence
    best = np.full((sizes[0], min(listed, top_ids.shape[1])), -1)
    best[mine] = other[top_ids[:, :listed]]
    return Evaluated(replace(scores, queries=mine[scores.queries], occurrence=occurrence), best)


def _joined(parts: list[Evaluated], direction: str) -> Evaluated:
    scores = [part.scores for part in parts]
    if sum(len(found.queries) for found in scores) == 0:
        raise InputError(f"{direction}: no query has a true answer, so there is nothing to retrieve")
    names = scores[0].values
    width = min(part.top_ids.shape[1] for part in parts)
    return Evaluated(
        QueryScores(
            np.concatenate([found.queries for found in scores]),
            np.concatenate([found.ranks for found in scores]),
            {name: np.concatenate([found.values[name] for found in scores]) for name in names},
            np.max([found.occurrence for found in scores], axis=0),
        ),
        np.max([part.top_ids[:, :width] for part in parts], axis=0),
    )
