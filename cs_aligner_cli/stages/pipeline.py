"""The stages in order: what `csalign run` does."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack, nullcontext

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, TooManyBadItems
from cs_aligner_cli.common.results import StageResult
from cs_aligner_cli.files.locks import LINGERING_SECONDS, lock
from cs_aligner_cli.recipe.packages import require_packages
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.cost import Meter
from cs_aligner_cli.runs.distributed import Ranks, together
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.other_runs import runs_of_other_seeds, stores_beside
from cs_aligner_cli.runs.run_record import record_stage
from cs_aligner_cli.stages.replacing import keep_finished, refuse_to_replace
from cs_aligner_cli.stages.shared_folders import refuse_run_folders
from cs_aligner_cli.stages.table import STAGES, Stage


def run_stage(
    name: str,
    recipe: Recipe,
    console: Console,
    force: bool = False,
    ranks: Ranks | None = None,
    patience: float = LINGERING_SECONDS,
    archive: bool = False,
) -> StageResult:
    """Run one stage with its output folders locked, and note it in the run's record.

    Finished work of other inputs is kept beside the new (``archive``), replaced (``force``), or raises InputError, as
    ``replacing`` says.

    A folder that another process holds is waited for, ``patience`` seconds long. Of several ranks, rank 0 locks and
    records, and does the stages alone that cannot be shared. Without ``ranks``, those that torchrun started come
    together for this stage.
    """
    require_packages(recipe, [name])
    stage = STAGES[name]
    function, meter = stage.function, Meter()
    with nullcontext(ranks) if ranks else together(recipe.distributed) as ranks, ExitStack() as stack:
        ranks.broadcast(lambda: refuse_run_folders(recipe))
        for folder in stage.folders(recipe) if ranks.main else ():
            beside = stage.replaces_folder and folder != recipe.folder
            stack.enter_context(lock(folder, patience, beside))
        if not force:
            ranks.broadcast(lambda: keep_finished(stage, recipe, console, archive))
        ranks.barrier()
        try:
            if stage.shared_by_ranks:
                result = function(recipe, console, force, ranks, archive)
            else:
                result = _of_main(stage, function(recipe, console, force) if ranks.main else None, ranks)
        except TooManyBadItems as error:
            if error.result is not None:
                _record(recipe, name, error.result, meter)
            raise
        if ranks.main:
            _record(recipe, name, result, meter)
    return result


def _record(recipe: Recipe, name: str, result: StageResult, meter: Meter) -> None:
    """Note what a stage did, and forget what others did of another recipe."""
    layout = Layout(recipe)

    def is_current(other: str) -> bool:
        stage = STAGES.get(other)  # another version of csalign may have had others
        try:
            for output in stage.outputs(layout) if stage else ():
                output.current()
        except InputError:
            return False
        return stage is not None and stage.runs_for(recipe)

    record_stage(layout, name, result, meter.read(), is_current)


def _of_main(stage: Stage, result: StageResult | None, ranks: Ranks) -> StageResult:
    """The result that rank 0 has, for all ranks."""
    data = ranks.broadcast(lambda: result.data() if result else {})
    return result if result is not None else stage.result.model_validate(data)


def run_all(
    recipe: Recipe,
    console: Console,
    force: bool = False,
    left_out: Collection[str] = (),
    patience: float = LINGERING_SECONDS,
    archive: bool = False,
) -> dict[str, StageResult]:
    """Run every stage that the recipe asks for, in the order of the table; return the results by stage.

    Stages ``left_out`` are not run. Embedding comes twice: the frozen stores that training reads, then the aligned
    stores that it makes possible.
    """
    with together(recipe.distributed) as ranks:
        return _run_all(recipe, console, force, ranks, left_out, patience, archive)


def _refuse_absent_runs(recipe: Recipe, order: Collection[str]) -> None:
    """Raise InputError if another run that a stage reads is not there, before those that come first take hours."""
    Layout(recipe).refuse_absent_origin()
    if recipe.generate and "generate" in order:
        stores_beside("generate.beside", recipe.generate.beside, recipe.drawn_split, trained=True)
    if "gap_report" in order:
        stores_beside("gap_report.beside", recipe.gap_report.beside, recipe.gap_split)
        runs_of_other_seeds(recipe)


def _run_all(
    recipe: Recipe,
    console: Console,
    force: bool,
    ranks: Ranks,
    left_out: Collection[str],
    patience: float,
    archive: bool,
) -> dict[str, StageResult]:
    order = [stage.name for stage in STAGES.values() if stage.runs_for(recipe) and stage.name not in left_out]
    if "train" in order:
        order.insert(order.index("train") + 1, "embed")
    require_packages(recipe, order)
    ranks.broadcast(lambda: _refuse_absent_runs(recipe, order))
    if not (force or archive):
        ranks.broadcast(lambda: refuse_to_replace([STAGES[name] for name in order], recipe))
    results: dict[str, StageResult] = {}
    for position, stage in enumerate(order):
        again = stage in results  # the second embed must not undo what --force made the first one do
        result = run_stage(stage, recipe, console, force and not again, ranks, patience, archive)
        nothing = "nothing to do, its inputs have not changed"
        console.say(f"[{position + 1}/{len(order)}] {stage}: {nothing if result.status == 'fresh' else 'done'}")
        warned = result.warnings()
        for finding in result.findings():
            if finding not in warned:
                console.say(f"{stage}: {finding}")
        if again and results[stage].status == "done":
            result = result.model_copy(update={"status": "done"})
        results[stage] = result
    return results
