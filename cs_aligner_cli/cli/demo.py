"""csalign demo: a small CLIP on drawn pictures, aligned and measured, and in words what that shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cs_aligner_cli.cli.options import AsJson, Debug, Force, Quiet, finish
from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.counted import counted

# The small CLIP from scratch, of which nothing but its towers is wanted, then adapters over it.
CLIP, ADAPTERS = "demo_clip", "demo"


def demo(as_json: AsJson = False, force: Force = False, quiet: Quiet = False, debug: Debug = False) -> None:
    """Train, align and measure a small CLIP on drawn pictures.

    Needs no data and no network. Writes to runs/demo_clip and runs/demo in the current folder: the same as csalign
    prepare and train demo_clip, then csalign run demo, which reads the pictures that are drawn already.
    """

    def call(console: Console) -> None:
        from cs_aligner_cli.recipe.recipe import load_recipe
        from cs_aligner_cli.stages.pipeline import run_all, run_stage
        from cs_aligner_cli.stages.run_result import run_result, run_tables

        clip = load_recipe(CLIP)
        for stage in ("prepare", "train"):
            console.say(f"csalign {stage} {CLIP}")
            run_stage(stage, clip, console, force)
        console.say(f"csalign run {ADAPTERS}")
        recipe = load_recipe(ADAPTERS, [f"data.dir={clip.folder / 'data'}"])  # it names what the first one leaves
        results = run_all(recipe, console, force, left_out=["prepare"])
        result = run_result(recipe, results)
        shown = conclusions({store: dict(values) for store, values in recalls(results).items()}, result.gap_report)
        answer = {"command": "demo", "name": recipe.name, "run_dir": str(recipe.folder), **result.data()}
        console.result({**answer, "conclusions": shown}, run_tables(results))
        console.say(f"report: {result.report}")
        for line in shown:
            console.say(line)

    finish(call, debug, as_json, quiet, takes_recipe=False)


def recalls(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By store: the mean R@1 of both ways, and R@10 in a mixed corpus of the items that stand as pictures."""
    evaluated, gap = results["eval_retrieval"].eval_retrieval, results["gap_report"]
    found: dict[str, dict[str, Any]] = {}
    for store, ways in {**gap.retrieval, **evaluated}.items():
        mixed = ways.get("mixed") or gap.mixed.get(store, {})
        found[store] = {
            "R@1": (ways["i2t"]["R@1"] + ways["t2i"]["R@1"]) / 2,
            "mixed": mixed.get("image", {}).get("R@10"),
        }
    return found


def conclusions(recall: Mapping[str, Mapping[str, Any]], gaps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a run with a control shows: the gap, where it did harm, what closing it cost, what is to be had for free."""
    control, aligned = recall["pairwise_only"], recall["aligned"]
    gap = {store: values["centroid_gap"] for store, values in gaps.items()}
    lines = [
        f"The gap: pictures and texts lie {gap['frozen']:.2f} apart in the small CLIP, {gap['pairwise_only']:.2f} after"
        f" adapters with InfoNCE alone (the control), {gap['aligned']:.2f} with InfoNCE + CS."
    ]
    if control["mixed"] is not None and aligned["mixed"] is not None:
        lines.append(
            "Where it did harm: searching pictures and texts together, of the items that stand as pictures"
            f" {control['mixed']:.0%} were among the first ten with the control, {aligned['mixed']:.0%} with CS."
        )
    change = 100 * (aligned["R@1"] - control["R@1"])
    lines.append(
        f"What closing it cost: R@1 of a search in one direction {100 * control['R@1']:.1f}% with the control,"
        f" {100 * aligned['R@1']:.1f}% with CS ({change:+.1f} points)."
    )
    free = {  # the centred control is not among them: it wants the control's training
        store: found
        for store, found in recall.items()
        if store.startswith("frozen+") and gap.get(store, 9) < gap["pairwise_only"]
    }
    if free:
        best = max(free, key=lambda store: free[store]["R@1"])
        lines.append(
            f"To be had for free: of {counted(len(free), 'closed forms')} without further training and with less of the"
            f" gap than the control, the best on these test pictures, {best}, leaves a gap of {gap[best]:.2f} and finds"
            f" {100 * free[best]['R@1']:.1f}% (a little flattered, since it was picked by that). All this is one run:"
            " the report says what of it may be chance."
        )
    return lines
