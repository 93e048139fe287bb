"""The one way in which an output comes about: it is fresh, or what it needs is checked and it is built and recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.results import Status
from cs_aligner_cli.files.artifact import Artifact, Build
from cs_aligner_cli.runs.distributed import ALONE, Ranks, building
from cs_aligner_cli.stages.shared_folders import refuse_foreign

# What a stage records of an output, to be read again by its result's model.
Summary: TypeAlias = dict[str, Any]
_Model = TypeVar("_Model", bound=BaseModel)
_LONG_SECONDS = 600.0


@dataclass(frozen=True)
class Made:
    """An output that is in place: whether it was made now ("done") or before ("fresh"), and its record."""

    artifact: Artifact
    status: Status
    record: dict[str, Any]

    @property
    def summary(self) -> Summary:
        """What whoever wrote the output returned."""
        summary: Summary = self.record["summary"]
        return summary

    def result(self, model: type[_Model], **more: Any) -> _Model:
        """The summary as a result; raise InputError if another version of csalign wrote one that does not fit."""
        try:
            return model.model_validate({"status": self.status, **more, **self.summary})
        except ValidationError as error:
            if self.status == "done":
                raise  # whoever wrote it just now is wrong
            first = error.errors()[0]
            raise InputError(
                f"the {self.artifact.name} in {self.artifact.path} was written by another csalign "
                f"({self.record.get('csalign')}): {'.'.join(map(str, first['loc']))}: {first['msg']}",
                f"Make it again: {self.artifact.command} --force",
            ) from None


def make(
    artifact: Artifact,
    write: Callable[[Build], Summary],
    *,
    force: bool = False,
    sources: str = "",
    ranks: Ranks = ALONE,
    archive: bool = False,
    continues: str = "",
    places: Mapping[str, str] = MappingProxyType({}),
    placed_by: str = "",
) -> Made:
    """Return the output as it is if it is fresh, else let ``write`` fill ``build.folder`` and record what it returns.

    ``sources`` is a digest of outside files that the output depends on, and ``places`` where they lie. Freshness
    compares records; only a build reads and verifies what it needs. With ``ranks`` all of them call this and ``write``.
    With ``archive`` an output that is replaced is kept beside the new one; ``continues`` is the fingerprint of one that
    this one goes on from. ``placed_by`` is the recipe key that names its folder, where one does: nothing else that lies
    there is replaced. Raises InputError if it would be, or a need is missing, stale or, when it is read, damaged.
    """

    def fresh() -> dict[str, Any] | None:
        for need in artifact.needs:
            need.current()
        found = None if force else artifact.fresh(sources)
        return found and artifact.note_places(found, places)

    record = ranks.broadcast(fresh)
    if record is not None:
        return Made(artifact, "fresh", record)
    if placed_by:
        ranks.broadcast(lambda: refuse_foreign(artifact, placed_by))
    ranks.broadcast(artifact.require_needs)
    with building(artifact, ranks, sources, archive, continues) as build:
        build.places = places
        build.summary = write(build)
    record = ranks.broadcast(artifact.record)
    assert record is not None, f"{artifact.path} was put in place just now"
    return Made(artifact, "done", record)


def took_long(artifact: Artifact) -> bool:
    """Whether a finished output took so long that it is not replaced without being asked for."""
    return ((artifact.record() or {}).get("seconds") or 0) > _LONG_SECONDS


def joined(*parts: Made | None) -> Status:
    """The status of a stage with several outputs: done if any of them was made now."""
    return "done" if any(part is not None and part.status == "done" for part in parts) else "fresh"
