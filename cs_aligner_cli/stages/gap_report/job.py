"""The work of gap-report: every store measured and drawn, side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.prepared import PreparedData, Split, captions_of
from cs_aligner_cli.data.thumbnails import Photos
from cs_aligner_cli.files.artifact import Build, write_bytes
from cs_aligner_cli.gap import measure
from cs_aligner_cli.gap.differences import differences
from cs_aligner_cli.gap.metrics import SWEEP, measure_headline
from cs_aligner_cli.gap.paired_rows import evenly_spaced
from cs_aligner_cli.gap.recall import recall_spreads
from cs_aligner_cli.gap.results import Measured, Measurement, refuse_constant, score_interval
from cs_aligner_cli.gap.seeds import seed_differences
from cs_aligner_cli.objectives import conflict_sweep
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.report.canvas import Picture
from cs_aligner_cli.report.curves import conflict_curves, divergence_curve, training_curves
from cs_aligner_cli.report.examples import examples
from cs_aligner_cli.report.figures import MAX_POINTS, cosine_histograms, point_map, projection, spectra
from cs_aligner_cli.report.files import report_files
from cs_aligner_cli.report.headline import RECALLS, tested_metrics
from cs_aligner_cli.report.projections import neighbour_projection, require_projection
from cs_aligner_cli.report.tradeoff import gap_against_recall
from cs_aligner_cli.retrieval import evaluate_mixed, evaluate_retrieval
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.recorded_findings import recorded_findings
from cs_aligner_cli.runs.run_record import git_state, versions
from cs_aligner_cli.stages.gap_stores import Compared, Features, Take, Taken, compared, of_seeds
from cs_aligner_cli.stores.embeddings import Store, nothing_to_compare
from cs_aligner_cli.training.metrics_log import read_training_log

PairedFeatures: TypeAlias = tuple[Features, Features]
_KS = (1, 5, 10)
# The pairs that the conflict is taken on: the size of a large training batch.
_CONFLICT_PAIRS = 1000
# Pairs that can be pointed at, and the side of their photos in pixels: they are in the page, all of them.
_POINTS, _SMALL = 200, 112
# More panels than these are not legible side by side.
_PANELS = 6


def write_report(recipe: Recipe, console: Console, build: Build) -> dict[str, Any]:
    """Measure and draw every store into the build's folder; return the summary."""
    require_projection(recipe.gap_report.projection)
    layout = Layout(recipe)
    for other in (*layout.beside.values(), *(store for run in layout.seeds.values() for store in run.values())):
        other.verify(other.record() or {})
    data = PreparedData(layout.prepared.path)
    split = data.split(recipe.gap_split, "gap_report.split").seen_as(recipe.gap_report.modalities)
    job = _Job(recipe, layout, split)
    job.measure(console)
    if not job.pairs:
        raise nothing_to_compare(split.name)
    background = Store(layout.frozen(split.name).path).background
    shown = job.shown(Photos(data.root, recipe.gap_report.photos, background))
    for name, content in report_files(job.report, job.figures(), shown, job.spectra).items():
        write_bytes(build.folder / name, content)
    return job.summary()


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
        self.report = {
            "format": 3,
            "name": self.recipe.name,
            "split": self.split.name,
            "pairs": len(kept),
            "note": self._sample_notes(len(images)),
            **{part: {} for part in ("kinds", "stores", "intervals", "null", "tests", "bands", "samples", "sweep")},
            **{part: {} for part in ("retrieval", "recall_intervals", "mixed", "conflict")},
            "differences": [],
            "provenance": {
                **versions(),
                "seed": self.recipe.seed,
                "git": git_state(),
                "command": f"csalign gap-report {self.layout.folder / 'recipe.yaml'}",
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
        if self.layout.fit_split:
            notes.append(f"Baselines are fitted on split {self.layout.fit_split}, and applied to this one.")
        if "gap_report.split" in self.layout.measured_on_training:
            notes.append(self.layout.measured_on_training)
        return [*notes, *(f"Of the data: {finding}." for finding in recorded_findings(self.layout))]

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
        return self._with_recalls(found, take("image", self.gallery["image"]), take("text", self.gallery["text"]))[0]

    def _with_recalls(self, found: Measured, image: Features, text: Features) -> tuple[Measurement, dict[str, Any]]:
        """What was measured with R@1 and R@10 beside it, mean of both ways; and the recalls' intervals."""
        ks = [k for k in _KS if k <= min(len(image), len(text))]
        recalls = recall_spreads(image, text, self.owner, ks, self.recipe.data_seed)
        spans = {way: {k: score_interval(*both) for k, both in side.items()} for way, side in recalls.items()}
        mean = {k: both for k, both in recalls["mean"].items() if k in RECALLS}
        values = {**found.values, **{k: value for k, (value, _) in mean.items()}}
        return Measurement(values, {**found.spreads, **{k: spread for k, (_, spread) in mean.items()}}), spans

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
        ks = [k for k in _KS if k <= min(map(len, gallery))]
        self.report["retrieval"][name] = evaluate_retrieval(*gallery, self.owner, ks=ks)
        if ks and np.bincount(self.owner[self.owner >= 0]).max() > 1:
            self.report["mixed"][name] = evaluate_mixed(*gallery, self.owner, ks)
        self.measured[name], self.report["recall_intervals"][name] = self._with_recalls(found, *gallery)
        if store.kind == "store":
            tell("conflict")
            kept = evenly_spaced(len(self.rows["image"]), _CONFLICT_PAIRS)
            self.report["conflict"][name] = conflict_sweep(image.take(kept), text.take(kept))
            self.looked_at = examples(*gallery, self.owner, self._pairs_in_gallery(), spec.examples)

    def _pairs_in_gallery(self) -> tuple[Ints, Ints]:
        """The measured pairs whose images and captions are in the gallery, as its rows."""
        places = [np.searchsorted(self.gallery[m], self.rows[m]) for m in MODALITIES]
        there = np.ones(len(self.rows["image"]), bool)
        for m, place in zip(MODALITIES, places, strict=True):
            there &= self.gallery[m][np.minimum(place, len(self.gallery[m]) - 1)] == self.rows[m]
        return places[0][there], places[1][there]

    def shown(self, photos: Photos) -> dict[str, Any]:
        """Pairs and queries of the last store of this run, with captions and thumbnails."""
        if not self.recipe.gap_report.examples or "subject" not in self.report:
            return {}
        images, captions = (self.split.table(m).iloc[self.gallery[m]] for m in MODALITIES)

        def image(row: int) -> dict[str, Any]:
            return {"id": images["image_id"].iloc[row], "photo": photos.thumbnail(images.iloc[row])}

        def text(row: int) -> str:
            return str(captions["text"].iloc[row])

        found = self.looked_at
        subject = self.report["subject"]
        pair = [{**p, "image": image(p["image"]), "text": text(p["text"])} for p in (*found["best"], *found["worst"])]
        return {
            "store": subject,
            "map": self._map(subject, photos),
            "best": pair[: len(found["best"])],
            "worst": pair[len(found["best"]) :],
            "to_images": [_answered(q, text, image) for q in found["to_images"]],
            "to_texts": [_answered(q, image, text) for q in found["to_texts"]],
        }

    def _map(self, subject: str, photos: Photos) -> list[dict[str, Any]]:
        """Pairs to point at: where each lies, its caption and its photo, small."""
        kept = evenly_spaced(len(self.drawn["image"]), _POINTS)
        places = point_map(*self.pairs[subject], kept)
        images = self.split.images.iloc[self.drawn["image"][kept]]
        texts = self.split.captions["text"].iloc[self.drawn["text"][kept]]
        return [
            {
                "image": place["image"],
                "points": place["text"],
                "text": str(text),
                "item": {"id": row["image_id"], "photo": photos.thumbnail(row, _SMALL)},
            }
            for place, (_, row), text in zip(places, images.iterrows(), texts, strict=True)
        ]

    def figures(self) -> dict[str, Picture]:
        """Every figure of the report."""
        report, panels = self.report, self._panels()
        if len(panels) < len(self.pairs):
            report["note"].append(
                f"Pictures with a panel for every store show {len(panels)} of {len(self.pairs)}: {', '.join(panels)}."
            )
        pairs = {name: self.pairs[name] for name in panels}
        points = {
            name: {
                "kind": report["kinds"][name],
                "gap": report["stores"][name]["centroid_gap"],
                "gap_interval": report["intervals"][name]["centroid_gap"],
                "r1_i2t": found["i2t"]["R@1"],
                "r1_t2i": found["t2i"]["R@1"],
                "gap_band": report["bands"][name]["centroid_gap"],
                "r1_interval": report["recall_intervals"][name]["mean"]["R@1"],
            }
            for name, found in report["retrieval"].items()
        }
        figures = {
            "gap_against_recall": gap_against_recall(points),
            "projection": projection(pairs, seed=self.recipe.data_seed),
            **self._neighbour_projection(pairs),
            "cosine_histograms": cosine_histograms(pairs, seed=self.recipe.data_seed),
            "divergence_curve": divergence_curve({name: report["sweep"][name] for name in panels}),
            "spectra": spectra({name: self.spectra[name] for name in panels}),
        }
        if report["conflict"]:
            figures["conflict"] = conflict_curves(report["conflict"])
        logs = {name: read_training_log(self.layout.trained(name).path) for name in self.layout.variants}
        if any("terms" in row for rows in logs.values() for row in rows):
            figures["training"] = training_curves(logs)
        return figures

    def _neighbour_projection(self, pairs: dict[str, PairedFeatures]) -> dict[str, Picture]:
        kind = self.recipe.gap_report.projection
        if kind == "pca":
            return {}
        return {f"projection_{kind}": neighbour_projection(pairs, kind, seed=self.recipe.data_seed)}

    def _panels(self) -> list[str]:
        """The stores that get a panel: this run's, then other runs', then baselines, as long as there is room."""
        rank = {"store": 0, "run": 1, "baseline": 2}
        chosen = sorted(self.pairs, key=lambda name: rank[self.report["kinds"][name]])[:_PANELS]
        return [name for name in self.pairs if name in chosen]

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
            "notes": report["note"],
        }


def _gallery(split: Split, most: int) -> tuple[dict[str, Ints], Ints]:
    """Rows of images and texts that retrieval is measured on, and each text's image among them (-1: none)."""
    images = evenly_spaced(len(split.images), most)
    if len(images) == len(split.images):
        return {"image": images, "text": np.arange(len(split.captions))}, split.image_of_caption
    captions = captions_of(split, images)
    return {"image": images, "text": captions}, np.searchsorted(images, split.image_of_caption[captions])


def _answered(query: dict[str, Any], ask: Callable[[int], Any], answer: Callable[[int], Any]) -> dict[str, Any]:
    results = [{"item": answer(r["row"]), "cosine": r["cosine"], "hit": r["hit"]} for r in query["results"]]
    return {"query": ask(query["query"]), "results": results}
