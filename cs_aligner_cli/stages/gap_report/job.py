"""The work of gap-report: every store measured and drawn, side by side."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split, captions_of
from cs_aligner_cli.data.text_groups import text_groups
from cs_aligner_cli.data.thumbnails import Photos
from cs_aligner_cli.files.artifact import Build, write_bytes
from cs_aligner_cli.gap import measure
from cs_aligner_cli.gap.differences import differences
from cs_aligner_cli.gap.metrics import SWEEP, measure_headline
from cs_aligner_cli.gap.paired_rows import evenly_spaced
from cs_aligner_cli.gap.recall import mixed_recalls, recall_spreads
from cs_aligner_cli.gap.results import Measured, Measurement, refuse_constant, score_interval
from cs_aligner_cli.gap.seeds import seed_differences
from cs_aligner_cli.objectives import conflict_sweep
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.report.bought import pictures_beside_gap
from cs_aligner_cli.report.examples import examples
from cs_aligner_cli.report.figures import MAX_POINTS
from cs_aligner_cli.report.files import report_files
from cs_aligner_cli.report.headline import MIXED_RECALL, RECALLS, tested_metrics
from cs_aligner_cli.report.verdict import answers
from cs_aligner_cli.retrieval import true_ranks
from cs_aligner_cli.retrieval.metrics import summarise
from cs_aligner_cli.runs.generation_layout import drawn_results
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.recorded_findings import recorded_findings
from cs_aligner_cli.runs.run_record import git_state, versions
from cs_aligner_cli.stages.gap_report.drawing import PairedFeatures, draw_figures, draw_items
from cs_aligner_cli.stages.gap_stores import Compared, Features, Take, Taken, compared, of_seeds
from cs_aligner_cli.stores.embeddings import Store, nothing_to_compare

_KS = (1, 5, 10)
# The pairs that the conflict is taken on: the size of a large training batch.
_CONFLICT_PAIRS = 1000


def write_report(recipe: Recipe, console: Console, build: Build, published: Sequence[Table] = ()) -> dict[str, Any]:
    """Measure and draw every store into the build's folder, ``published`` tables beside it; return the summary."""
    layout = Layout(recipe)
    for other in (*layout.beside.values(), *(store for run in layout.seeds.values() for store in run.values())):
        other.verify(other.record() or {})
    data = PreparedData(layout.prepared.path)
    split = data.split(recipe.gap_split, "gap_report.split").seen_as(recipe.gap_report.modalities)
    job = _Job(recipe, layout, split)
    job.measure(console)
    job.report["published"] = [asdict(table) for table in published]
    if not job.pairs:
        raise nothing_to_compare(split.name)
    job.add_pictures()
    background = Store(layout.frozen(split.name).path).background
    photos = Photos(data.root, recipe.gap_report.photos, background)
    shown = draw_items(job.report, split, photos, job.pairs, job.drawn, job.gallery, job.looked_at)
    pictures = draw_figures(recipe, layout, job.report, job.pairs, job.spectra)
    for name, content in report_files(job.report, pictures, shown, job.spectra, recipe.gap_report.formats).items():
        write_bytes(build.folder / name, content)
    return job.summary()


class _Recalls(NamedTuple):
    """What retrieval says of one store: with all that is tested between stores, by direction, mixed, and intervals."""

    measurement: Measurement
    directions: dict[str, Any]
    mixed: dict[str, Any]
    spans: dict[str, dict[str, list[float]]]


@dataclass
class _Job:
    """One report in the making: what is measured of every store, and what is drawn from it."""

    recipe: Recipe
    layout: Layout
    split: Split
    report: dict[str, Any] = field(default_factory=dict)
    pairs: dict[str, PairedFeatures] = field(default_factory=dict)
    spectra: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Measurement] = field(default_factory=dict)
    looked_at: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        spec = self.recipe.gap_report
        images, captions = self.split.pairs
        kept = evenly_spaced(len(images), spec.max_pairs)
        self.rows = {"image": images[kept], "text": captions[kept]}
        self.labels = self.split.labels[self.rows["image"]]
        # The pairs that pictures are made of.
        drawn = np.sort(np.random.default_rng(self.recipe.data_seed).permutation(len(kept))[:MAX_POINTS])
        self.drawn = {m: rows[drawn] for m, rows in self.rows.items()}
        self.gallery, self.owner = _gallery(self.split, spec.max_gallery)
        self.groups = None
        if self.recipe.data.groups == "text" and spec.modalities == [*MODALITIES]:
            self.groups = text_groups(self.split.captions["text"].iloc[self.gallery["text"]])
        self.report = {
            "format": 3,
            "name": self.recipe.name,
            "split": self.split.name,
            "pairs": len(kept),
            "findings": self._findings(),
            "note": self._sample_notes(len(images)),
            **{part: {} for part in ("kinds", "stores", "intervals", "null", "tests", "bands", "samples", "sweep")},
            **{part: {} for part in ("retrieval", "recall_intervals", "mixed", "conflict")},
            "differences": [],
            "provenance": {
                **versions(),
                "seed": self.recipe.seed,
                "git": git_state(),
                "command": f"csalign gap-report {shlex.quote(str(self.layout.folder / 'recipe.yaml'))}",
                "recipe": self.recipe.to_yaml(),
            },
        }

    def _sample_notes(self, images: int) -> list[str]:
        """What a reader must know of the sample."""
        spec, pairs = self.recipe.gap_report, len(self.rows["image"])
        first, second = spec.modalities
        notes = (
            [] if spec.modalities == ["image", "text"] else [f"Here, image stands for {first}, and text for {second}."]
        )
        notes += [f"{pairs} of {images} images, each paired with one of its captions drawn at random."]
        if pairs > spec.exact_pairs:
            notes.append(
                f"Centroids and pairs are measured on all {pairs} pairs, kernels (CS, MMD, energy) on "
                f"{spec.exact_pairs} evenly spaced ones, as their intervals know."
            )
        if len(self.gallery["image"]) < len(self.split.images):
            notes.append(
                f"R@k is measured on {len(self.gallery['image'])} of {len(self.split.images)} images, evenly spaced, "
                "with all their captions: in a smaller gallery it is higher."
            )
        if self.groups is not None:
            notes.append("Captions of equal text count as one: each is a right answer to the images of the others.")
        if self.layout.fit_split:
            notes.append(f"Baselines are fitted on split {self.layout.fit_split}, and applied to this one.")
        return notes

    def _findings(self) -> list[str]:
        """What a reader must know of the data before any number of theirs."""
        warned = [self.layout.measured_on_training] if "gap_report.split" in self.layout.measured_on_training else []
        return warned + [f"Of the data: {finding}." for finding in recorded_findings(self.layout)]

    def measure(self, console: Console) -> None:
        """Measure every store and baseline."""
        total = len(self.layout.stores(self.split.name)) + sum(map(len, self.layout.baselines.values()))
        total += len(self.layout.beside)
        with console.progress("measuring the gap", total) as advance:
            for store in compared(self.layout, self.split, self.report["note"]):
                self.report["kinds"][store.name] = store.kind
                self.report["stores"][store.name] = {}
                if store.take is not None:
                    self._measure_one(store, store.take, lambda what, name=store.name: advance(0, f"{name}: {what}"))  # type: ignore[misc]
                advance(1, store.name)
        own = [name for name in self.pairs if self.report["kinds"][name] == "store"]
        if own:
            self.report["subject"] = own[-1]
            self.report["differences"] = differences(self.measured, own[-1], tested_metrics(self.report))
            if self.layout.seeds:
                self._measure_seeds(own, console)

    def _measure_seeds(self, own: list[str], console: Console) -> None:
        """Measure the headline of this run's stores in every run that differs in its seed."""
        runs, names = [{name: self.measured[name] for name in own}], [self.layout.folder.name]
        with console.progress("measuring other seeds", len(self.layout.seeds)) as advance:
            for run, takes in of_seeds(self.layout, self.split):
                runs.append({name: self._headline(run, name, take) for name, take in takes.items() if name in own})
                names.append(run)
                advance(1, run)
        rows = seed_differences(runs, own[-1], tested_metrics(self.report))
        stores = {name: [dict(run[name].values) for run in runs if name in run] for name in own}
        self.report["seeds"] = {"runs": names, "stores": stores, "differences": rows}

    def _headline(self, run: str, store: str, take: Take) -> Measurement:
        spec, seed = self.recipe.gap_report, self.recipe.data_seed
        try:
            image, text = (Taken(take, m, self.rows[m]) for m in MODALITIES)
            found = measure_headline(image, text, spec.bandwidths, seed, spec.exact_pairs)
        except InputError as error:
            raise InputError(f"gap_report.seeds: {store} store of {run}: {error}") from None
        gallery = take("image", self.gallery["image"]), take("text", self.gallery["text"])
        return self._recalls(found, *gallery).measurement

    def _recalls(self, found: Measured, image: Features, text: Features) -> _Recalls:
        """Retrieval in the gallery, each way and mixed; what of it is tested stands beside what was measured."""
        seed, ks = self.recipe.data_seed, [k for k in _KS if k <= min(len(image), len(text))]
        ranks = true_ranks(image, text, self.owner, ks, text_groups=self.groups)
        recalls = recall_spreads(ranks, self.owner, len(image), ks, seed, self.groups)
        mixed, of_mixed = mixed_recalls(image, text, self.owner, ks, seed, self.groups) if ks else ({}, {})
        spans = {
            way: {k: score_interval(*both) for k, both in side.items()}
            for way, side in {**recalls, "mixed": of_mixed}.items()
            if side
        }
        tested = {k: both for k, both in recalls["mean"].items() if k in RECALLS}
        tested |= {key: both for k, both in of_mixed.items() if (key := f"mixed_{k}") == MIXED_RECALL}
        values = {**found.values, **{k: value for k, (value, _) in tested.items()}}
        measurement = Measurement(values, {**found.spreads, **{k: spread for k, (_, spread) in tested.items()}})
        return _Recalls(measurement, summarise(ranks), mixed, spans)

    def _measure_one(self, store: Compared, take: Take, tell: Callable[[str], None]) -> None:
        name, seed, spec = store.name, self.recipe.data_seed, self.recipe.gap_report
        image, text = (Taken(take, m, self.rows[m]) for m in MODALITIES)
        labels = self.labels.tolist()
        try:
            found = measure(image, text, spec.bandwidths, seed, spec.exact_pairs, SWEEP, labels, tell)
            refuse_constant(found)
        except InputError as error:
            raise InputError(f"{name} store of split {self.split.name}: {error}") from None
        self.pairs[name] = take("image", self.drawn["image"]), take("text", self.drawn["text"])
        for part in ("intervals", "null", "tests", "bands", "samples", "sweep"):
            self.report[part][name] = getattr(found, part)
        self.report["stores"][name] = found.values
        self.spectra[name] = found.spectra
        tell("retrieval")
        gallery = take("image", self.gallery["image"]), take("text", self.gallery["text"])
        recalls = self._recalls(found, *gallery)
        self.measured[name], self.report["retrieval"][name] = recalls.measurement, recalls.directions
        self.report["recall_intervals"][name] = recalls.spans
        if recalls.mixed:
            self.report["mixed"][name] = recalls.mixed
        if store.kind == "store":
            tell("conflict")
            kept = evenly_spaced(len(self.rows["image"]), _CONFLICT_PAIRS)
            self.report["conflict"][name] = conflict_sweep(image.take(kept), text.take(kept))
            if spec.examples:
                self.looked_at = examples(*gallery, self.owner, self._pairs_in_gallery(), spec.examples)

    def add_pictures(self) -> None:
        """What was measured of the stores' pictures, where they are there and were drawn from these stores."""
        try:
            drawn = drawn_results(self.layout)
            if drawn is None or drawn.record() is None:
                return
            found = drawn.current()["summary"]["generate"]
        except InputError as error:
            self.report["note"].append(f"Pictures are left out: {error}.")
            return
        if beside := pictures_beside_gap(self.report, found):
            self.report["pictures"] = beside

    def _pairs_in_gallery(self) -> tuple[Ints, Ints]:
        """The measured pairs whose images and captions are in the gallery, as its rows."""
        places = [np.searchsorted(self.gallery[m], self.rows[m]) for m in MODALITIES]
        there = np.ones(len(self.rows["image"]), bool)
        for m, place in zip(MODALITIES, places, strict=True):
            there &= self.gallery[m][np.minimum(place, len(self.gallery[m]) - 1)] == self.rows[m]
        return places[0][there], places[1][there]

    def summary(self) -> dict[str, Any]:
        """What the stage's record and --json hold."""
        report = self.report
        return {
            "split": self.split.name,
            "pairs": report["pairs"],
            "gap_report": {name: values for name, values in report["stores"].items() if values},
            "null_floor": report["null"],
            "tests": report["tests"],
            "intervals": report["intervals"],
            "retrieval": report["retrieval"],
            "mixed": report["mixed"],
            "differences": report["differences"],
            "seeds": report.get("seeds", {}),
            "verdict": [f"{answer.question} {answer.text}" for answer in answers(report)],
            "notes": [*report["note"], *report["findings"]],
        }


def _gallery(split: Split, most: int) -> tuple[dict[str, Ints], Ints]:
    """Rows of images and texts that retrieval is measured on, and each text's image among them (-1: none)."""
    images = evenly_spaced(len(split.images), most)
    if len(images) == len(split.images):
        return {"image": images, "text": np.arange(len(split.captions))}, split.image_of_caption
    captions = captions_of(split, images)
    return {"image": images, "text": captions}, np.searchsorted(images, split.image_of_caption[captions])
