"""Near duplicates across splits: images that look alike, captions that say the same in other spelling."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.data.images import digest

Bits = npt.NDArray[np.uint64]
# Pairs that are written down by name; the counts are of all.
_NAMED = 1000
_NOT_WORDS = re.compile(r"[\W_]+")


def repeated(codes: Bits, split: pd.Series[Any]) -> dict[str, int]:
    """How many rows repeat an earlier one's code, and how many codes are in several splits (a leak)."""
    split_of, _ = pd.factorize(split)
    unique, code_of = np.unique(codes, return_inverse=True)
    least, greatest = _extremes(code_of, split_of, len(unique))
    return {"repeats": len(codes) - len(unique), "contents_in_several_splits": int((least != greatest).sum())}


def pair_codes(captions: pd.DataFrame) -> Bits:
    """64 bits for each caption by which equal texts of one image are found."""
    pairs = zip(captions["image_id"], captions["text"], strict=True)
    return np.fromiter((digest(f"{image}\0{text}".encode()) for image, text in pairs), np.uint64, len(captions))


def _extremes(
    code_of: npt.NDArray[np.intp], split_of: npt.NDArray[np.intp], codes: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The least and the greatest split of each code: they differ where it is in several."""
    least = np.full(codes, np.iinfo(np.int64).max)
    greatest = np.full(codes, -1)
    np.minimum.at(least, code_of, split_of)
    np.maximum.at(greatest, code_of, split_of)
    return least, greatest


def near_images(images: pd.DataFrame, distance: int) -> dict[str, Any]:
    """Images that look like one of another split: their dhash differs in at most ``distance`` of 64 bits.

    Exact copies are among them. Returns {"distance", "images": how many in each split, "pairs": the first 1,000, one
    for each pair of hashes}. By multi-index hashing (Norouzi et al., CVPR 2012): two codes that differ in at most k
    bits agree in one of k + 1 bands, so that only codes that share a band are compared.
    """
    split_of, splits = pd.factorize(images["split"])
    codes, code_of = np.unique(images["dhash"].to_numpy(), return_inverse=True)
    one, other, bits = _near_codes(codes, distance)
    # A code has another split among its neighbours if the least or the greatest of their splits is another.
    least, greatest = _extremes(code_of, split_of, len(codes))
    near_least, near_greatest = least.copy(), greatest.copy()
    np.minimum.at(near_least, one, least[other])
    np.maximum.at(near_greatest, one, greatest[other])
    near = (near_least[code_of] != split_of) | (near_greatest[code_of] != split_of)
    counts = np.bincount(split_of[near], minlength=len(splits))
    return {
        "distance": distance,
        "images": {str(split): int(count) for split, count in zip(splits, counts, strict=True) if count},
        "pairs": _named_pairs(images, split_of, code_of, (one, other, bits)),
    }


def _near_codes(codes: Bits, distance: int) -> tuple[npt.NDArray[np.int64], ...]:
    """(one, other, bits) of every ordered pair of codes, each with itself too, that differ in few bits."""
    import faiss  # half a second, and only some data sets get here

    bands = distance + 1
    index = faiss.IndexBinaryMultiHash(64, bands, 64 // bands)
    rows = codes.view(np.uint8).reshape(-1, 8)
    index.add(rows)
    limits, bits, other = index.range_search(rows, distance + 1)
    counts: npt.NDArray[np.int64] = np.diff(limits).astype(np.int64)
    one = np.repeat(np.arange(len(codes)), counts)
    return one, other.astype(np.int64), bits.astype(np.int64)


def _named_pairs(
    images: pd.DataFrame,
    split_of: npt.NDArray[np.intp],
    code_of: npt.NDArray[np.intp],
    pairs: tuple[npt.NDArray[np.int64], ...],
) -> list[dict[str, Any]]:
    """The first pairs by name: for each two near codes, the first image of one and the first of another split."""
    frame = pd.DataFrame({"code": code_of, "split": split_of}).drop_duplicates()
    one, other, bits = (part[pairs[0] <= pairs[1]] for part in pairs)
    near = pd.DataFrame({"one": one, "other": other, "bits": bits})
    frame = frame.assign(row=frame.index)
    joined = near.merge(frame, left_on="one", right_on="code").merge(frame, left_on="other", right_on="code")
    # Within one code each two splits come in both orders; between two codes in one.
    crossing = joined[
        (joined["split_x"] != joined["split_y"])
        & ((joined["one"] != joined["other"]) | (joined["split_x"] < joined["split_y"]))
    ].sort_values(["bits", "row_x", "row_y"])
    first = crossing.head(_NAMED)
    one_rows, other_rows = first["row_x"].to_numpy(), first["row_y"].to_numpy()
    return [
        {"images": names, "splits": splits, "bits": int(bits)}
        for names, splits, bits in zip(
            _twos(images["image_id"], one_rows, other_rows),
            _twos(images["split"], one_rows, other_rows),
            first["bits"],
            strict=True,
        )
    ]


def _twos(column: pd.Series[Any], one: npt.NDArray[np.int64], other: npt.NDArray[np.int64]) -> list[list[str]]:
    return [[str(a), str(b)] for a, b in zip(column.iloc[one], column.iloc[other], strict=True)]


def normalised(text: str) -> str:
    """A caption without what spelling varies in: case, accents' encoding, punctuation, spaces."""
    return _NOT_WORDS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def shared_captions(captions: pd.DataFrame, advance: Any) -> dict[str, int]:
    """How many captions of each split say, once normalised, what a caption of another split says."""
    codes = np.fromiter(_text_codes(captions["text"], advance), np.uint64, len(captions))
    split_of, splits = pd.factorize(captions["split"])
    unique, code_of = np.unique(codes, return_inverse=True)
    least, greatest = _extremes(code_of, split_of, len(unique))
    counts = np.bincount(split_of[least[code_of] != greatest[code_of]], minlength=len(splits))
    return {str(split): int(count) for split, count in zip(splits, counts, strict=True) if count}


def _text_codes(texts: Iterable[str], advance: Any) -> Iterable[int]:
    for text in texts:
        yield digest(normalised(text).encode())
        advance()
