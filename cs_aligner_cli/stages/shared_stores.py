"""What the runs of a sweep share, prepared data and frozen stores, made once before they begin."""

from __future__ import annotations

from collections.abc import Sequence

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.experiments.plan import PlannedRun
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage

# The longest that a run waits for another one that makes what both share.
PATIENCE_SECONDS = 6 * 3600.0


def make_shared(runs: Sequence[PlannedRun], console: Console, all_need_it: bool) -> None:
    """The prepared data and frozen stores that several runs share, each made once before they begin.

    What cannot be made fails the runs that need it, as any other error would; InputError if that is all of a sweep's.
    """
    firsts = {_shared_by(run): run for run in reversed(runs)}
    failures = 0
    for run in firsts.values():
        try:
            for stage in ("prepare", "embed"):
                result = run_stage(stage, run.recipe, console, patience=PATIENCE_SECONDS)
                if result.status == "done":
                    console.say(f"{stage}: done, for all runs that share it")
        except InputError:
            failures += 1
            if all_need_it and failures == len(firsts):
                raise


def _shared_by(run: PlannedRun) -> tuple[str, ...]:
    """The folders of what a run shares with others, and the splits that it has embedded there."""
    return str(run.recipe.data.dir), str(run.recipe.embed.dir), *sorted(Layout(run.recipe).frozen_splits)
