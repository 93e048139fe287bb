"""The stages in order: what `csalign run` does."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import TooManyBadItems
from cs_aligner_cli.files.locks import lock
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.stages.table import STAGES


def run_stage(name: str, recipe: Recipe, console: Console, force: bool = False) -> dict[str, Any]:
    """Run one stage with its output folders locked, and note it in the run's record.

    Of the processes that torchrun started, rank 0 locks and records, and does the stages alone that cannot be shared.
    """
    # Imported here, since a stage brings torch along and --help must not wait for that.
    from cs_aligner_cli.runs.distributed import together
    from cs_aligner_cli.runs.layout import Layout
    from cs_aligner_cli.runs.run_record import record_stage

    stage = STAGES[name]
    function = stage.function
    with together(recipe.distributed) as ranks, ExitStack() as stack:
        for folder in stage.folders(recipe) if ranks.main else ():
            stack.enter_context(lock(folder))
        ranks.barrier()
        try:
            if stage.shared_by_ranks:
                result = function(recipe, console, force)
            else:
                result = ranks.broadcast(lambda: function(recipe, console, force))
        except TooManyBadItems as error:
            record_stage(Layout(recipe), name, error.result)
            raise
        if ranks.main:
            record_stage(Layout(recipe), name, result)
    return result


def run_all(recipe: Recipe, console: Console, force: bool = False) -> dict[str, dict[str, Any]]:
    """Run every stage that the recipe asks for, in the order of the table; return the results by stage.

    Embedding comes twice: the frozen stores that training reads, then the aligned stores that it makes possible.
    """
    from cs_aligner_cli.runs.distributed import together

    with together(recipe.distributed):
        return _run_all(recipe, console, force)


def _run_all(recipe: Recipe, console: Console, force: bool) -> dict[str, dict[str, Any]]:
    order = [stage.name for stage in STAGES.values() if stage.runs_for(recipe)]
    if "train" in order:
        order.insert(order.index("train") + 1, "embed")
    results: dict[str, dict[str, Any]] = {}
    for position, stage in enumerate(order):
        again = stage in results  # the second embed must not undo what --force made the first one do
        result = run_stage(stage, recipe, console, force and not again)
        console.say(f"[{position + 1}/{len(order)}] {stage}: {_summary_line(result)}")
        if again and results[stage]["status"] == "done":
            result = {**result, "status": "done"}
        results[stage] = result
    return results


def _summary_line(result: dict[str, Any]) -> str:
    return "nothing to do, its inputs have not changed" if result["status"] == "fresh" else "done"
