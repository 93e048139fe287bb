"""How many captions are longer than a text tower reads: counted by its own tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.data.caption_limit import open_clip_module

_BLOCK = 4096
_MOST_WORDS = 2**17


def caption_lengths(
    texts: Iterable[str], count: int, limit: int, lengths: Callable[[Sequence[str]], list[int]], console: Console
) -> dict[str, Any]:
    """{"limit", "truncated", "median", "p95", "longest"} in tokens, of ``count`` captions for a tower that reads at
    most ``limit`` tokens; ``lengths`` counts those of a list, special tokens among them.

    What is longer than ``limit`` loses its end when it is encoded.
    """
    found = array("i")
    waiting = iter(texts)
    with console.progress("counting tokens", count) as advance:
        while block := list(islice(waiting, _BLOCK)):
            found.extend(lengths(block))
            advance(len(block))
    counts = np.asarray(found)
    return {
        "limit": limit,
        "truncated": int((counts > limit).sum()),
        "median": int(np.median(counts)),
        "p95": int(np.quantile(counts, 0.95, method="higher")),
        "longest": int(counts.max()),
    }


def open_clip_counter() -> Callable[[Sequence[str]], list[int]]:
    """What counts the tokens of captions by open_clip's own tokenizer, the two marks included."""
    encode = by_words(open_clip_module("tokenizer").SimpleTokenizer().encode)
    return lambda texts: [len(encode(text)) + 2 for text in texts]


def by_words(encode: Callable[[str], list[int]]) -> Callable[[str], list[int]]:
    """``encode`` of open_clip's SimpleTokenizer, many times as fast: what it gives for a word is kept.

    No token of its reaches over a blank, and of a text of printable ASCII without entities (&amp;) it repairs nothing;
    any other text is left to it as a whole.
    """
    known: dict[str, list[int]] = {}

    def encoded(text: str) -> list[int]:
        if not (text.isascii() and text.isprintable()) or "&" in text:
            return encode(text)
        ids: list[int] = []
        for word in text.split():
            if word not in known:
                if len(known) >= _MOST_WORDS:
                    known.clear()
                known[word] = encode(word)
            ids += known[word]
        return ids

    return encoded
