"""In what the inputs that an output was made from differ from those wanted now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cs_aligner_cli.common.errors import InputError

if TYPE_CHECKING:
    from cs_aligner_cli.files.artifact import Artifact


class _NotSet:
    """A key that is not there, which is another thing than one that is null."""

    def __repr__(self) -> str:
        return "not set"


_NOT_SET = _NotSet()


class StaleError(InputError):
    """An output was made from other inputs than those wanted now (exit code 2)."""

    def __init__(self, artifact: Artifact, change: str) -> None:
        what = f"the {artifact.name} in {artifact.path} is stale"
        super().__init__(f"{what}: {change}", f"Make it again: {artifact.command}")
        self.artifact = artifact


def differences(made: Any, wanted: Any, path: str = "") -> Iterator[str]:
    """In words, every recipe key, and every need, in which the inputs of an output are not those wanted now.

    Empty for equal inputs alone, so that an output that is not fresh always has a change that says why.
    """
    if isinstance(made, dict) and isinstance(wanted, dict):
        for key in {**wanted, **made}:
            was, now = made.get(key, _NOT_SET), wanted.get(key, _NOT_SET)
            if was != now:
                yield from differences(was, now, f"{path}.{key}" if path else key)
    elif path.startswith("needs."):
        yield f"the {path.removeprefix('needs.')} it was made from has changed"
    else:
        yield f"{path.removeprefix('recipe.')} was {made!r} and is now {wanted!r}"
