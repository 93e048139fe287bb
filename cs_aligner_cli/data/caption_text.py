"""What is a caption in a text: lines, paragraphs or the whole of a file; lists that were written into a cell."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from typing import Any, Literal, TypeAlias

CaptionsInText: TypeAlias = Literal["lines", "whole", "paragraphs"]
CAPTIONS_IN_TEXT = (
    "What one text file holds: a caption on every line, one caption in the whole of it, or one in every paragraph"
    " (between empty lines)."
)
# What programs write for a caption that is missing.
PLACEHOLDERS = ("nan", "NaN", "None", "null", "NULL", "<NA>")


def captions_in(text: str, rule: CaptionsInText) -> list[str]:
    """The captions in a text, empty ones left out; LF and CR LF end a line, CR only where there is no LF."""
    text = text.replace("\r\n", "\n")
    if "\n" not in text:
        text = text.replace("\r", "\n")
    if rule == "lines":
        return [line for line in text.split("\n") if line.strip()]
    if rule == "paragraphs":
        parts = re.split(r"\n[^\S\n]*(?:\n[^\S\n]*)+", text)
        return [" ".join(lines) for part in parts if (lines := [x.strip() for x in part.split("\n") if x.strip()])]
    return [stripped] if (stripped := text.strip()) else []


def list_in(cell: str) -> list[Any] | None:
    """The list that a cell of text holds as JSON, Python or numpy write it; None where it is plain text.

    A list must hold a text, or nothing but null, None and nan (which are kept as None), to count as one; what else is
    in it, as a number, stands beside the texts.
    """
    text = cell.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return _written_by_python(text)
    return _if_captions(found)


def _if_captions(found: list[Any]) -> list[Any] | None:
    there = [item for item in found if item is not None]
    return found if not there or any(isinstance(item, str | dict) for item in there) else None


def _written_by_python(text: str) -> list[Any] | None:
    """``['a', "b", None]`` or numpy's ``['a' 'b']``, which is no concatenation."""
    found: list[Any] = []
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return None
    for token in tokens[1:]:
        if token.type == tokenize.STRING:
            try:
                value = ast.literal_eval(token.string)
            except (ValueError, SyntaxError):
                return None
            if not isinstance(value, str):
                return None
            found.append(value)
        elif token.type == tokenize.NAME and token.string in ("None", "nan", "null"):
            found.append(None)
        elif token.type == tokenize.NUMBER:
            found.append(ast.literal_eval(token.string))
        elif token.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER) and token.string not in ",]":
            return None
    return _if_captions(found)
