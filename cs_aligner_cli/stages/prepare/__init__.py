"""prepare: from a manifest to the two tables, with a report of counts, duplicates and what was dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, TooManyBadItems
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.data.caption_limit import context_length
from cs_aligner_cli.data.manifest import STORED_FEATURES, DrawnManifest, Manifest, load_manifest
from cs_aligner_cli.data.manifest_base import ROOT
from cs_aligner_cli.data.manifest_splits import cut_ks, stated_splits
from cs_aligner_cli.encoders.availability import brings_weights, waits_for_hub, weight_files
from cs_aligner_cli.files.artifact import Build
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.evaluated_sets import evaluated_sets
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.making import Made, Summary, joined, make
from cs_aligner_cli.stages.prepare.result import Bad, PrepareResult
from cs_aligner_cli.stages.prepare.sources import LISTING, sources_stamp

REPORT = "report.json"


def prepare(recipe: Recipe, console: Console, force: bool = False) -> PrepareResult:
    """Make the prepared data set of a recipe.

    With it come, where the recipe's text tower has open_clip's tokenizer, ``caption_lengths``, and where it asks for
    them the WebDataset ``shards``. Raises InputError if the manifest or its files are wrong or nothing usable is left,
    TooManyBadItems (after the output is in place) if more items were bad than ``data.max_bad_fraction``.
    """
    layout, manifest = Layout(recipe), load_manifest(recipe)
    if recipe.prepare.repack and manifest.kind in STORED_FEATURES:
        raise InputError(
            f"prepare.repack: a manifest of kind {manifest.kind} has stored features, and no images to pack"
        )
    if isinstance(manifest, DrawnManifest):
        _cut_ks(recipe, stated_splits(manifest).counts)  # before they are drawn
    tables = _tables(layout, manifest, console, force)
    remark = _cut_ks(recipe, _counts(tables.summary))
    towers = _towers(layout, console, force)
    lengths = _caption_lengths(layout, console, towers)
    shards, pairing = _shards(layout, console, force), _pairing(layout, console, force)
    sets = _sets(layout, console, force)
    result = tables.result(
        PrepareResult,
        towers=towers.summary["towers"] if towers else {},
        caption_lengths=_part(lengths) or (towers.summary["caption_lengths"] if towers else None),
        shards=_part(shards, folder=str(layout.shards.path) if layout.shards else ""),
        pairing=_part(pairing),
        folder=str(layout.prepared.path),
        **({"sets": {name: found for name, (_, found) in sets.items()}} if sets else {}),
    )
    parts = tables, towers, lengths, shards, pairing, *(made for made, _ in sets.values())
    result = result.model_copy(update={"status": joined(*parts)})
    for warning in (*result.warnings(), layout.measured_on_training, remark):
        if warning:
            console.warn(warning)
    _refuse_too_many_bad(layout, result.bad, result.bad_fraction, result)
    return result


def _cut_ks(recipe: Recipe, counts: Mapping[str, tuple[int, int] | None], *, of_set: bool = False) -> str:
    """As ``cut_ks``, of the split that is measured; one that is absent is for its own stage to say."""
    of_split = counts.get(recipe.eval_retrieval.split)
    return cut_ks(recipe.eval_retrieval, *of_split, of_set=of_set) if of_split and all(of_split) else ""


def _counts(summary: Summary) -> dict[str, tuple[int, int] | None]:
    return {split: (found["images"], found["captions"]) for split, found in summary["splits"].items()}


def _part(made: Made | None, **more: str) -> dict[str, Any] | None:
    return {"status": made.status, **more, **made.summary} if made else None


def _tables(layout: Layout, manifest: Manifest, console: Console, force: bool) -> Made:
    """Make the tables of one data set, which must bring images, captions or both, as its layout says."""
    sources = sources_stamp(layout, manifest, console)

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.prepare.job import write_tables

        sources.write(build.folder / LISTING, None if isinstance(manifest, DrawnManifest) else manifest.root)
        return write_tables(layout, manifest, console, build, sources.source)

    root = {ROOT: str(manifest.root)} if not isinstance(manifest, DrawnManifest) else {}
    return make(layout.prepared, write, force=force, sources=sources.stamp, places=root, placed_by="data.dir")


def brought_towers(layout: Layout) -> list[str]:
    """The modalities whose towers bring weights that are on this machine, and can be tried."""
    specs = {m: layout.recipe.encoders.of(m) for m in MODALITIES if m in layout.modalities}
    return [m for m, spec in specs.items() if brings_weights(spec) and not waits_for_hub(spec)]


def _towers(layout: Layout, console: Console, force: bool) -> Made | None:
    """What is found of towers with weights from elsewhere; one still to be fetched from a hub is checked by embed."""
    sources = file_stamps(weight_files(layout.recipe))
    modalities = [m for m in MODALITIES if m in layout.modalities and brings_weights(layout.recipe.encoders.of(m))]
    # Which model of a name waits for the hub, open_clip and timm know, whose import takes seconds.
    if force or (modalities and not layout.tower_check(modalities).fresh(sources)):
        modalities = brought_towers(layout)

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.prepare.job import check_brought_towers

        return check_brought_towers(layout, console)

    return make(layout.tower_check(modalities), write, force=force, sources=sources) if modalities else None


def _caption_lengths(layout: Layout, console: Console, towers: Made | None) -> Made | None:
    """How many captions a text tower of random weights would cut; None for others, and without its own tokenizer."""
    spec = layout.recipe.encoders.of("text")
    checked = towers is not None and "text" in towers.artifact.recipe["encoders"]
    limit = None if checked else context_length(spec)
    if limit is None:
        return None

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.prepare.job import measure_captions

        return measure_captions(layout, limit, console)

    return make(layout.caption_lengths(limit), write)


def _shards(layout: Layout, console: Console, force: bool) -> Made | None:
    """The prepared data as WebDataset shards, where the recipe asks for them."""

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.prepare.job import pack_shards

        return pack_shards(layout, console, build)

    return make(layout.shards, write, force=force, placed_by="prepare.repack.dir") if layout.shards else None


def _sets(layout: Layout, console: Console, force: bool) -> dict[str, tuple[Made, dict[str, Any]]]:
    """The further data sets that the recipe is evaluated on: their tables, and what is returned of them."""
    found: dict[str, tuple[Made, dict[str, Any]]] = {}
    for number, (name, other) in enumerate(evaluated_sets(layout).items()):
        try:
            made = _tables(other, load_manifest(other.recipe), console, force)
            if remark := _cut_ks(other.recipe, _counts(made.summary), of_set=True):
                console.warn(f"{name}: {remark}")
            lengths = _part(_caption_lengths(other, console, None))
        except InputError as error:
            raise InputError(f"eval_retrieval.sets.{number}: {error}") from None
        summary = made.summary
        _refuse_too_many_bad(other, Bad.model_validate(summary["bad"]), summary["bad_fraction"], None)
        about = {"folder": str(other.prepared.path), "splits": summary["splits"], "caption_lengths": lengths}
        found[name] = made, {"status": made.status, **about}
    return found


def _pairing(layout: Layout, console: Console, force: bool) -> Made | None:
    """Which items of training are pairs and which are unpaired, where the recipe asks for unpaired ones."""
    if layout.pairing is None:
        return None
    for number, other in enumerate(layout.unpaired.values()):
        try:
            found = _tables(other, load_manifest(other.recipe), console, force).summary
        except InputError as error:
            raise InputError(f"data.unpaired.sources.{number}: {error}") from None
        _refuse_too_many_bad(other, Bad.model_validate(found["bad"]), found["bad_fraction"], None)

    def write(build: Build) -> Summary:
        from cs_aligner_cli.stages.prepare.job import write_pairing

        return write_pairing(layout, build)

    return make(layout.pairing, write, force=force)


def _refuse_too_many_bad(layout: Layout, bad: Bad, fraction: float, result: PrepareResult | None) -> None:
    limit = layout.recipe.data.max_bad_fraction
    if fraction <= limit:
        return
    kinds = bad.counts()
    counts = " and ".join(f"{n} {kind if n > 1 else kind[:-1]}" for kind, n in kinds.items())
    first = "\n".join(f"  {item.item}: {item.reason}" for item in bad.first)
    raise TooManyBadItems(
        f"{counts} {'are' if sum(kinds.values()) > 1 else 'is'} bad: {fraction:.1%} of a kind, more than "
        f"data.max_bad_fraction ({limit:.1%}) allows\n{first}\n"
        f"The whole list is in {layout.prepared.path / REPORT}; mend the files, or allow more: "
        "--set data.max_bad_fraction=...",
        result,
    )
