"""What is shown of each stage's result: tables for people, one object for --json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from cs_aligner_cli.console import table
from cs_aligner_cli.recipe import Recipe

Result = dict[str, Any]
_DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}


def stage_data(stage: str, recipe: Recipe, result: Result) -> Result:
    """What one stage's --json holds."""
    return {"command": stage, "name": recipe.name, "run_dir": str(recipe.folder), **result}


def run_data(recipe: Recipe, results: dict[str, Result]) -> Result:
    """What the --json of a whole run holds: the status of every stage and all numbers per store."""
    retrieval, gap = results["eval_retrieval"], results["gap_report"]
    return {
        "command": "run",
        "name": recipe.name,
        "run_dir": str(recipe.folder),
        "seed": recipe.seed,
        "status": {stage: result["status"] for stage, result in results.items()},
        "train": results.get("train", {}).get("runs", {}),
        "eval_retrieval": retrieval["eval_retrieval"],
        "gap_report": gap["gap_report"],
        "null_floor": gap["null_floor"],
        "notes": list(dict.fromkeys([*retrieval["notes"], *gap["notes"]])),
        "report": gap["report"],
    }


def prepare_tables(result: Result) -> list[Table]:
    """Counts per split; what was dropped, skipped or repeated."""
    counts = [(split, n["images"], n["captions"]) for split, n in result["splits"].items()]
    remarks = [
        *((f"bad {kind}", n) for kind, n in result["bad"].items() if kind != "first" and n),
        *((f"skipped: {what}", n) for what, n in result["skipped"].items() if n),
        *((what, found["repeats"]) for what, found in result["duplicates"].items() if found["repeats"]),
        *(
            (f"{what}, in several splits", found["contents_in_several_splits"])
            for what, found in result["duplicates"].items()
            if found["contents_in_several_splits"]
        ),
        *((f"unlike the manifest: {text}", "") for text in result["unlike_manifest"]),
    ]
    tables = [
        table(
            f"prepared data set {result['data_set']} in {result['folder']}",
            ["split", "images", "captions"],
            counts,
        )
    ]
    return [*tables, table("to know", ["what", "count"], remarks)] if remarks else tables


def embed_tables(result: Result) -> list[Table]:
    """Rows and dimensions of every store."""
    rows = [
        (
            name,
            split,
            part["image"]["rows"],
            part["image"]["dim"],
            part["text"]["rows"],
            part["text"]["dim"],
            part["status"],
        )
        for name, splits in result["stores"].items()
        for split, part in splits.items()
    ]
    return [table("embedding stores", ["store", "split", "images", "dim", "texts", "dim", "status"], rows)]


def train_tables(result: Result) -> list[Table]:
    """One row per training run."""
    rows = [
        (
            name,
            run["steps"],
            f"{run['trainable_parameters']:,}",
            run["best_step"],
            *(_percent(run["val_R@1"].get(direction)) for direction in _DIRECTIONS),
            f"{run['seconds']:.0f} s",
            run["status"],
        )
        for name, run in result["runs"].items()
    ]
    columns = ["run", "steps", "trained weights", "best step", "val i2t R@1", "val t2i R@1", "time", "status"]
    return [table("training", columns, rows)]


def retrieval_tables(result: Result) -> list[Table]:
    """R@k and ranks per store and direction, in percent."""
    rows = [
        (store, _DIRECTIONS[direction], *(_cell(name, value) for name, value in metrics.items()))
        for store, directions in result["eval_retrieval"].items()
        for direction, metrics in directions.items()
    ]
    names: list[str] = list(next(iter(result["eval_retrieval"].values()))["i2t"])
    title = f"retrieval on split {result['split']}: {result['images']} images, {result['captions']} captions (R@k in %)"
    return [table(title, ["store", "direction", *(name.replace("_", " ") for name in names)], rows)]


def gap_tables(result: Result) -> list[Table]:
    """The headline metrics of every store with their 95% intervals, and their null floors for the last one."""
    from cs_aligner_cli.gap.headline import metric_keys

    stores, intervals = result["gap_report"], result["intervals"]
    keys = metric_keys({"stores": stores})
    rows = [
        (name, *(_spanned(values.get(key), intervals[name].get(key)) for key in keys))
        for name, values in stores.items()
    ]
    last, floor = list(result["null_floor"].items())[-1]
    rows.append((f"null floor of {last}", *(_number(floor.get(key)) for key in keys)))
    title = f"modality gap on split {result['split']}: {result['pairs']} pairs, [95% intervals]; all else in the report"
    return [table(title, ["store", *(key.replace("_", " ").replace("@", " at ") for key in keys)], rows)]


def _spanned(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return _number(value)
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def run_tables(results: dict[str, Result]) -> list[Table]:
    """The closing table of a whole run: what was won and what it cost, store by store."""
    gap_result = results["gap_report"]
    gaps = gap_result["gap_report"]
    # Baselines are the report's own; what both measured, on all images or another split, is eval-retrieval's.
    retrieval = {**gap_result["retrieval"], **results["eval_retrieval"]["eval_retrieval"]}
    rows = []
    for store in dict.fromkeys([*gaps, *retrieval]):
        found, gap = retrieval.get(store, {}), gaps.get(store, {})
        recalls = [_percent(found.get(d, {}).get(f"R@{k}")) for d in _DIRECTIONS for k in (1, 10)]
        rows.append((store, *recalls, *(_number(gap.get(m)) for m in ("centroid_gap", "paired_cosine"))))
    columns = ["store", "i2t R@1", "i2t R@10", "t2i R@1", "t2i R@10", "centroid gap", "paired cosine"]
    return [table(f"split {results['eval_retrieval']['split']} (R@k in percent)", columns, rows)]


def _cell(name: str, value: float) -> str:
    if name.startswith("R@"):
        return _percent(value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    "prepare": prepare_tables,
    "embed": embed_tables,
    "train": train_tables,
    "eval_retrieval": retrieval_tables,
    "gap_report": gap_tables,
}
