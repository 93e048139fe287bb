"""Numbers with their nouns and verbs in sentences: 1 caption is, 2 captions are."""

from __future__ import annotations

import re

_SINGULAR = {"are": "is", "have": "has", "were": "was"}


def counted(number: int, nouns: str, verb: str = "", of: int | None = None) -> str:
    """``1 caption is``, ``2 captions are``, ``1 of 5 captions is``: the plurals are given, and ``of`` how many in all.

    >>> counted(1, "captions of a split", "are"), counted(1200, "captions", "look"), counted(1, "images", "have", of=3)
    ('1 caption of a split is', '1200 captions look', '1 of 3 images has')
    """
    if number == 1 and of in (None, 1):
        nouns = re.sub(r"s\b", "", nouns, count=1)
    if number == 1 and verb:
        verb = _SINGULAR.get(verb, f"{verb}s")
    many = f"{number} of {of}" if of is not None else f"{number}"
    return f"{many} {nouns} {verb}".rstrip()
