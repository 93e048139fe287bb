"""The exceptions that a user of csalign is meant to see, each with its exit code, and one warning."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cs_aligner_cli.common.results import StageResult

# A list of names longer than this (open_clip's models, a wide table's columns) is cut.
_MAX_LISTED = 20


class CsalignError(Exception):
    """A failure with a message for the user; anything else that escapes is a bug (exit code 1)."""

    exit_code = 1


class InputError(CsalignError, ValueError):
    """The user's input is wrong: recipe, manifest, data or arguments (exit code 2).

    The message says where (file, row or key), what was found and what is expected; the hint says what to do.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)


class NotConvergedError(InputError):
    """An iteration that the input's settings ask for does not reach its end."""


class TooManyBadItems(CsalignError):  # noqa: N818 (nothing failed)
    """The work is done, but more items were bad than the recipe allows (exit code 3); ``result`` is the stage's, if
    it came that far."""

    exit_code = 3

    def __init__(self, message: str, result: StageResult | None) -> None:
        super().__init__(message)
        self.result = result


class SomeRunsFailed(CsalignError):  # noqa: N818 (the others are done)
    """A sweep is at its end, but some of its runs failed (exit code 3); ``result`` is the sweep's."""

    exit_code = 3

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


class AlreadyReportedError(CsalignError):
    """Another process of the same command has reported why it ends; this one ends with the same code, silently."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("reported by another rank")
        self.exit_code = exit_code


class NotUnitRowsWarning(UserWarning):
    """Rows are compared in their own units although they are not of unit length, which is seldom what is meant."""


def did_you_mean(given: object, valid: Sequence[str]) -> str:
    """Return ``"; did you mean X?"`` for the nearest valid name, or the list of names where none is near, as of what is
    no text."""
    near = get_close_matches(given, valid, n=1, cutoff=0.6) if isinstance(given, str) else []
    if near:
        return f"; did you mean {near[0]}?"
    return f"; expected one of: {listed(sorted(valid))}" if valid else ""


def listed(names: Sequence[str]) -> str:
    """The names with commas, cut where there are very many."""
    more = f", ... ({len(names)} in all)" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more
