"""What a decoder is fed: text embeddings in the place of image embeddings, and the bounds on either side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from cs_aligner_cli.common.closed_forms import ridge
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats, Floats32, Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.recipe.generate import Generate

_RIDGE_SHRINKAGE = 0.1


def chosen_captions(split: Split, spec: Generate, seed: int) -> Ints:
    """Rows of the captions that are prompts, in table order: first, all, or one drawn with ``seed`` of every image.

    Captions without an image are no prompts, since nothing could be said of their pictures. Raises InputError where
    fewer than two are left, or where all are of one image and the bound ``other_image`` is wanted.
    """
    owners = split.image_of_caption
    rows = np.flatnonzero(owners >= 0)
    if spec.captions != "all":
        if spec.captions == "random":
            rows = np.random.default_rng([seed, 2]).permutation(rows)
        _, firsts = np.unique(owners[rows], return_index=True)
        rows = np.sort(rows[firsts])
    if spec.limit is not None and len(rows) > spec.limit:
        rows = rows[np.linspace(0, len(rows) - 1, spec.limit).round().astype(np.int64)]
    if len(rows) < 2:
        raise InputError(
            f"generate.split: split {split.name!r} has {len(rows)} captions of images; expected at least 2 to draw from"
        )
    if "other_image" in spec.bounds and len(np.unique(owners[rows])) < 2:
        raise InputError(
            f"generate.bounds: other_image: all {len(rows)} prompts are of one image, so no other one is there",
            "Leave other_image out of generate.bounds, or draw from captions of more images.",
        )
    return rows


def picture_seed(seed: int, caption_id: str) -> int:
    """The seed of a picture's noise: of the recipe's seed and the caption alone, so that every store draws with the
    same and neither batches nor a restart change it."""
    digest = hashlib.blake2b(f"{seed} {caption_id}".encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def median_norm(images: Floats32) -> float:
    """The median length of image embeddings (N, dim)."""
    return float(np.median(np.linalg.norm(images.astype(np.float64), axis=1)))


def scaled(rows: Floats32, length: float | None) -> Floats32:
    """Rows (N, dim) brought to one length; None leaves them as they are."""
    if length is None:
        return rows
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    result: Floats32 = (rows * (length / np.maximum(norms, 1e-12))).astype(np.float32)
    return result


def free_map(kind: str, image: Floats32, text: Floats32) -> Callable[[Floats32], Floats32]:
    """A map of text rows to where image rows lie, from pairs (N, d), without training; rows are scaled to length 1
    first.

    ``mean_shift`` adds the difference of the means (Liang et al. 2022, all of the gap), ``ridge`` is the least
    squares map of centred rows, shrunk by 0.1.
    """
    x, y = _unit(image), _unit(text)
    mx, my = x.mean(axis=0), y.mean(axis=0)
    weight = ridge(y - my, x - mx, _RIDGE_SHRINKAGE) if kind == "ridge" else np.eye(y.shape[1])
    return lambda rows: ((_unit(rows) - my) @ weight + mx).astype(np.float32)


def bound(kind: str, images: Floats32, owners: Ints, length: float, seed: int) -> Floats32:
    """The conditions of a bound for prompts whose images are rows ``owners`` of ``images`` (M, dim).

    ``image``: the embedding of the prompt's own image; ``other_image``: that of another prompt's image; ``noise``: a
    random direction of the given length.
    """
    if kind == "image":
        return images[owners]
    rng = np.random.default_rng([seed, 3])
    if kind == "noise":
        return scaled(rng.normal(size=(len(owners), images.shape[1])).astype(np.float32), length)
    # Around a random circle of all prompts everyone gets another one; prompts of one image stand apart on it.
    order = rng.permutation(np.unique(owners))
    following = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    other: Floats32 = images[np.array([following[owner] for owner in owners.tolist()])]
    return other


def _unit(rows: Floats32) -> Floats:
    wide = rows.astype(np.float64)
    unit: Floats = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit


def refuse_another_encoder(theirs: Floats32, ours: Floats32, named: str, hint: str) -> None:
    """Raise InputError unless another image encoder gives what the store holds, for a few pictures (B, dim).

    They must agree to a cosine above 0.99; below that pictures would come from a space that the decoder does not know.
    ``named`` is the recipe key and whose encoder it is, ``hint`` what to do.
    """
    ours64, theirs64 = _unit(ours), _unit(theirs)
    lowest = float((ours64 * theirs64).sum(axis=1).min()) if ours64.shape == theirs64.shape else 0.0
    if lowest <= 0.99:
        raise InputError(
            f"{named} is not that of the store: of {len(ours)} pictures the embeddings agree to a cosine of "
            f"{lowest:.3f} only; expected more than 0.99",
            hint,
        )
