"""The one way in which an output comes about: it is fresh, or what it needs is checked and it is built and recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cs_aligner_cli.files.artifact import Artifact, Build
from cs_aligner_cli.runs.distributed import ALONE, Ranks, building


@dataclass(frozen=True)
class Made:
    """An output that is in place: whether it was made now ("done") or before ("fresh"), and its record."""

    status: str
    record: dict[str, Any]

    @property
    def summary(self) -> dict[str, Any]:
        """What whoever wrote the output returned."""
        summary: dict[str, Any] = self.record["summary"]
        return summary


def make(
    artifact: Artifact,
    write: Callable[[Build], dict[str, Any]],
    *,
    force: bool = False,
    sources: str = "",
    ranks: Ranks = ALONE,
) -> Made:
    """Return the output as it is if it is fresh, else let ``write`` fill ``build.folder`` and record what it returns.

    ``sources`` is a digest of outside files that the output depends on. Freshness compares records; only a build reads
    and verifies what it needs. With ``ranks`` all of them call this and ``write``. Raises InputError if a need is
    missing, stale or, when it is read, damaged.
    """

    def fresh() -> dict[str, Any] | None:
        for need in artifact.needs:
            need.current()
        return None if force else artifact.fresh(sources)

    record = ranks.broadcast(fresh)
    if record is not None:
        return Made("fresh", record)
    ranks.broadcast(artifact.require_needs)
    with building(artifact, ranks, sources) as build:
        build.summary = write(build)
    record = ranks.broadcast(artifact.record)
    assert record is not None, f"{artifact.path} was put in place just now"
    return Made("done", record)


def joined(*parts: Made | None) -> str:
    """The status of a stage with several outputs: done if any of them was made now."""
    return "done" if any(part is not None and part.status == "done" for part in parts) else "fresh"
