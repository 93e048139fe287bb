"""Near duplicates across splits: images that look alike, captions that say the same in other spelling."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.images import digest

Bits = npt.NDArray[np.uint64]
# Pairs that are written down by name; the counts are of all.
_NAMED = 1000
# Codes that are compared with all others at once: flat pictures have very many neighbours.
_BLOCK = 1024
# One comparison through buckets costs so many of those in a row.
_DEARER = 10


class _Words(dict[int, int]):
    """For ``str.translate``: letters, the marks on them (vowels of Hindi, tones of Thai) and numbers stay; the rest is
    blanks."""

    def __missing__(self, code: int) -> int:
        kept = self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else ord(" ")
        return kept


_WORDS = _Words()


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


def near_images(images: pd.DataFrame, distance: int, console: Console) -> dict[str, Any]:
    """Images that look like one of another split: their dhash differs in at most ``distance`` of 64 bits.

    Exact copies are among them. Returns {"distance", "images": how many in each split, "pairs": the 1,000 nearest by
    name, one for each pair of hashes}. By multi-index hashing (Norouzi et al., CVPR 2012): two codes that differ in at
    most k bits agree in one of k + 1 bands, so that only codes that share a band are compared.
    """
    split_of, splits = pd.factorize(images["split"])
    codes, code_of = np.unique(images["dhash"].to_numpy(), return_inverse=True)
    # A code has another split among its neighbours if the least or the greatest of their splits is another.
    least, greatest = _extremes(code_of, split_of, len(codes))
    near_least, near_greatest = least.copy(), greatest.copy()
    pairs: list[tuple[int, int, int]] = []
    with console.progress("looking for near duplicates", len(codes)) as advance:
        for one, other, bits in near_codes(codes, distance, advance):
            np.minimum.at(near_least, one, least[other])
            np.maximum.at(near_greatest, one, greatest[other])
            crossing = (one <= other) & ((least[one] != greatest[other]) | (greatest[one] != least[other]))
            found = zip(bits[crossing].tolist(), one[crossing].tolist(), other[crossing].tolist(), strict=True)
            pairs = nsmallest(_NAMED, chain(pairs, found))
    near = (near_least[code_of] != split_of) | (near_greatest[code_of] != split_of)
    counts = np.bincount(split_of[near], minlength=len(splits))
    return {
        "distance": distance,
        "images": {str(split): int(count) for split, count in zip(splits, counts, strict=True) if count},
        "pairs": list(_named_pairs(images, split_of, code_of, pairs)),
    }


def near_codes(codes: Bits, distance: int, advance: Callable[..., None]) -> Iterator[tuple[npt.NDArray[np.int64], ...]]:
    """(one, other, bits) of every ordered pair of codes, each with itself too, that differ in few bits; in blocks."""
    import faiss  # half a second, and only some data sets get here

    bands, bits_of_band = distance + 1, 64 // (distance + 1)
    # Where most codes share a band (blank pictures), comparing all with all is quicker.
    parts = (codes >> np.uint64(band * bits_of_band) & np.uint64(2**bits_of_band - 1) for band in range(bands))
    compared = sum(int((np.unique(part, return_counts=True)[1].astype(float) ** 2).sum()) for part in parts)
    flat = compared * _DEARER > len(codes) ** 2
    index = faiss.IndexBinaryFlat(64) if flat else faiss.IndexBinaryMultiHash(64, bands, bits_of_band)
    rows = codes.view(np.uint8).reshape(-1, 8)
    index.add(rows)
    for start in range(0, len(codes), _BLOCK):
        block = rows[start : start + _BLOCK]
        limits, bits, other = index.range_search(block, distance + 1)
        counts: npt.NDArray[np.int64] = np.diff(limits).astype(np.int64)
        yield np.repeat(np.arange(start, start + len(block)), counts), other.astype(np.int64), bits.astype(np.int64)
        advance(len(block))


def _named_pairs(
    images: pd.DataFrame,
    split_of: npt.NDArray[np.intp],
    code_of: npt.NDArray[np.intp],
    pairs: list[tuple[int, int, int]],
) -> Iterator[dict[str, Any]]:
    """For each two near codes an image of the one and an image of the other that are in different splits."""
    order = np.argsort(code_of, kind="stable")
    starts = np.searchsorted(code_of[order], np.arange(code_of.max(initial=0) + 2))
    names, splits = images["image_id"], images["split"]
    for bits, one, other in pairs:
        ones, others = (order[starts[code] : starts[code + 1]] for code in (one, other))
        for first, against in ((ones[0], others), (others[0], ones)):
            elsewhere = against[split_of[against] != split_of[first]]
            if len(elsewhere):
                rows = [int(first), int(elsewhere[0])]
                named = {
                    key: [str(column.iloc[row]) for row in rows]
                    for key, column in (("images", names), ("splits", splits))
                }
                yield {**named, "bits": bits}
                break


def normalised(text: str) -> str:
    """A caption without what spelling varies in: case, accents' encoding, punctuation, spaces."""
    # Before as well: NFKC makes of an acute accent that stands for an apostrophe a blank and a mark.
    return " ".join(unicodedata.normalize("NFKC", text.translate(_WORDS)).casefold().translate(_WORDS).split())


def shared_captions(captions: pd.DataFrame, advance: Callable[..., None]) -> dict[str, int]:
    """How many captions of each split say, once normalised, what a caption of another split says."""
    codes = np.fromiter(_text_codes(captions["text"], advance), np.uint64, len(captions))
    split_of, splits = pd.factorize(captions["split"])
    unique, code_of = np.unique(codes, return_inverse=True)
    least, greatest = _extremes(code_of, split_of, len(unique))
    counts = np.bincount(split_of[least[code_of] != greatest[code_of]], minlength=len(splits))
    return {str(split): int(count) for split, count in zip(splits, counts, strict=True) if count}


def _text_codes(texts: Iterable[str], advance: Callable[..., None]) -> Iterable[int]:
    for text in texts:
        yield digest(normalised(text).encode())
        advance()
