"""leaderboard: finished runs below a folder, ranked where they were measured alike, as Markdown and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cs_aligner_cli.experiments.comparison import OBJECTIVE
from cs_aligner_cli.experiments.leaderboard import Leaderboard, markdown
from cs_aligner_cli.experiments.leaderboard import leaderboard as ranked
from cs_aligner_cli.experiments.page import render_leaderboard
from cs_aligner_cli.files.artifact import write_bytes
from cs_aligner_cli.recipe.sweep import Direction
from cs_aligner_cli.stages.formats import format_of_output

_FORMATS = (".md", ".html", ".json")


def leaderboard(
    folder: Path, objective: str | None = None, out: Sequence[Path] = (), direction: Direction | None = None
) -> Leaderboard:
    """Rank all finished runs below a folder and write the result to files; InputError as ``experiments.leaderboard``,
    and before anything is read for a file whose suffix is no format."""
    formats = [format_of_output(path, _FORMATS) for path in out]
    found = ranked(folder, objective or OBJECTIVE, direction)
    written = {
        ".md": lambda: markdown(found),
        ".html": lambda: render_leaderboard(found, f"Leaderboard of {folder}"),
        ".json": lambda: found.model_dump_json(indent=1) + "\n",
    }
    for path, form in zip(out, formats, strict=True):
        write_bytes(path, written[form]().encode())
    return found
