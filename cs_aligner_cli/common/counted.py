"""Numbers with their nouns and verbs in sentences: 1 caption is, 2 captions are."""

from __future__ import annotations

import re

# What follows a noun that is counted: "images of split test".
_PREPOSITION = re.compile(r" (?=(?:as|by|for|from|in|of|on|per|that|to|with|without)\b)")
_ENDINGS = (
    (re.compile(r"ies$"), "y"),
    (re.compile(r"(?<=x)es$|(?<=ss|sh)es$|(?<=[nrt]ch)es$"), ""),
    (re.compile(r"s$"), ""),
)
_SINGULAR = {"are": "is", "have": "has", "were": "was"}


def counted(number: int, nouns: str, verb: str = "", of: int | None = None) -> str:
    """``1 caption is``, ``2 captions are``, ``1 of 5 captions is``: the plurals are given, and ``of`` how many in all.

    >>> counted(1, "captions of a split", "are"), counted(1200, "captions", "look"), counted(1, "images", "have", of=3)
    ('1 caption of a split is', '1200 captions look', '1 of 3 images has')
    """
    if number == 1 and of in (None, 1):
        nouns = _one(nouns)
    if number == 1 and verb:
        verb = _SINGULAR.get(verb, f"{verb}s")
    many = f"{number} of {of}" if of is not None else f"{number}"
    return f"{many} {nouns} {verb}".rstrip()


def _one(nouns: str) -> str:
    """The singular of a plural: of the last word before what is said of it, so that 1 of "gps items" is a gps item."""
    noun, *said = _PREPOSITION.split(nouns, maxsplit=1)
    for plural, ending in _ENDINGS:
        if plural.search(noun):
            return " ".join([plural.sub(ending, noun), *said])
    return nouns
