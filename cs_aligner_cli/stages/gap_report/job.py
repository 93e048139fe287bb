"""The work of gap-report: every store measured and drawn, side by side."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeAlias, TypeVar

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.in_threads import in_threads
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.data.thumbnails import Photos
from cs_aligner_cli.files.artifact import Build, write_bytes
from cs_aligner_cli.gap import measure
from cs_aligner_cli.gap.clusters import PAIRS_PER_LABEL
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
from cs_aligner_cli.stages.gap_report.sample import Sample
from cs_aligner_cli.stages.gap_stores import Compared, Features, Take, Taken, compared, in_columns, of_seeds
from cs_aligner_cli.stores.embeddings import Store, nothing_to_compare

T = TypeVar("T")
_Part: TypeAlias = Callable[[Compared, Take, Callable[[str], None]], None]

_KS = (1, 5, 10)
# What the report has of each store as ``Measured`` has it.
_OF_STORE = ("intervals", "null", "tests", "bands", "samples", "sweep")
# Stores that are measured at once, in the memory of as many.
_AT_ONCE = 4
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
    looked_at = job.looked_at.get(job.report.get("subject", ""), {})
    shown = draw_items(job.report, job.sample, photos, job.pairs, looked_at)
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
        self.sample = Sample.of(self.recipe, self.split)
        notes = self.sample.notes(self.recipe)
        if self.layout.fit_split:
            notes.append(f"Baselines are fitted on split {self.layout.fit_split}, and applied to this one.")
        self.report = {
            "format": 3,
            "name": self.recipe.name,
            "split": self.split.name,
            "pairs": len(self.sample),
            "findings": self._findings(),
            "note": notes,
            **{part: {} for part in ("kinds", "stores", *_OF_STORE)},
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

    def _findings(self) -> list[str]:
        """What a reader must know of the data before any number of theirs."""
        warned = [self.layout.measured_on_training] if "gap_report.split" in self.layout.measured_on_training else []
        return warned + [f"Of the data: {finding}." for finding in recorded_findings(self.layout)]

    def measure(self, console: Console) -> None:
        """Measure every store and baseline."""
        total = len(self.layout.stores(self.split.name)) + sum(map(len, self.layout.baselines.values()))
        total += len(self.layout.beside)
        stores: list[Compared] = []

        def parts() -> Iterator[tuple[Compared, _Part]]:
            for store in compared(self.layout, self.split, self.report["note"]):
                stores.append(store)
                yield store, self._measure_one
            yield from ((store, self._look_closer) for store in stores if store.kind == "store")

        with console.progress("measuring the gap", total) as advance:

            def work(part: tuple[Compared, _Part], go_on: Callable[[], None]) -> None:
                store, measure_part = part

                def tell(what: str) -> None:
                    go_on()
                    advance(0, f"{store.name}: {what}")

                if store.take is not None:
                    measure_part(store, store.take, tell)

            for (store, part), _ in in_threads(work, parts(), min(_AT_ONCE, total)):
                advance(int(part == self._measure_one), store.name)
        self._put_in_order(in_columns(stores))
        self.report["note"] += _about_labels(self.sample.labels.tolist(), self.report["stores"])
        own = [name for name in self.pairs if self.report["kinds"][name] == "store"]
        if own:
            self.report["subject"] = own[-1]
            self.report["differences"] = differences(self.measured, own[-1], tested_metrics(self.report))
            if self.layout.seeds:
                self._measure_seeds(own, console)

    def _put_in_order(self, stores: Sequence[Compared]) -> None:
        """Bring what was measured, which came as it was ready, into the order of the report's columns."""
        self.report["kinds"] = {store.name: store.kind for store in stores}
        self.report["stores"] = {store.name: self.report["stores"].get(store.name, {}) for store in stores}
        for part in (*_OF_STORE, "retrieval", "recall_intervals", "mixed", "conflict"):
            self.report[part] = _in_order(self.report[part], stores)
        self.pairs, self.spectra = _in_order(self.pairs, stores), _in_order(self.spectra, stores)
        self.measured = _in_order(self.measured, stores)

    def _measure_seeds(self, own: list[str], console: Console) -> None:
        """Measure the headline of this run's stores in every run that differs in its seed."""
        runs, names = [{name: self.measured[name] for name in own}], [self.layout.folder.name]
        with console.progress("measuring other seeds", len(self.layout.seeds)) as advance:

            def measured(of_run: tuple[str, dict[str, Take]], go_on: Callable[[], None]) -> dict[str, Measurement]:
                run, takes = of_run
                found = {}
                for name in own:
                    go_on()
                    if name in takes:
                        found[name] = self._headline(run, name, takes[name])
                return found

            for (run, _), found in in_threads(
                measured, of_seeds(self.layout, self.split), min(_AT_ONCE, len(self.layout.seeds))
            ):
                runs.append(found)
                names.append(run)
                advance(1, run)
        rows = seed_differences(runs, own[-1], tested_metrics(self.report))
        stores = {name: [dict(run[name].values) for run in runs if name in run] for name in own}
        self.report["seeds"] = {"runs": names, "stores": stores, "differences": rows}

    def _headline(self, run: str, store: str, take: Take) -> Measurement:
        spec, seed = self.recipe.gap_report, self.recipe.data_seed
        try:
            image, text = (Taken(take, m, self.sample.rows[m]) for m in MODALITIES)
            found = measure_headline(image, text, spec.bandwidths, seed, spec.exact_pairs)
        except InputError as error:
            raise InputError(f"gap_report.seeds: {store} store of {run}: {error}") from None
        return self._recalls(found, *self.sample.in_gallery(take)).measurement

    def _recalls(self, found: Measured, image: Features, text: Features) -> _Recalls:
        """Retrieval in the gallery, each way and mixed; what of it is tested stands beside what was measured."""
        seed, ks = self.recipe.data_seed, [k for k in _KS if k <= min(len(image), len(text))]
        ranks = true_ranks(image, text, self.sample.owner, ks, text_groups=self.sample.groups)
        recalls = recall_spreads(ranks, self.sample.owner, len(image), ks, seed, self.sample.groups)
        mixed, of_mixed = (
            mixed_recalls(image, text, self.sample.owner, ks, seed, self.sample.groups) if ks else ({}, {})
        )
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
        """Writes under the store's own name alone: several stores are measured at once."""
        name, seed, spec = store.name, self.recipe.data_seed, self.recipe.gap_report
        image, text = (Taken(take, m, self.sample.rows[m]) for m in MODALITIES)
        labels = self.sample.labels.tolist()
        try:
            found = measure(image, text, spec.bandwidths, seed, spec.exact_pairs, SWEEP, labels, tell)
            refuse_constant(found)
        except InputError as error:
            raise InputError(f"{name} store of split {self.split.name}: {error}") from None
        self.pairs[name] = take("image", self.sample.drawn["image"]), take("text", self.sample.drawn["text"])
        for part in _OF_STORE:
            self.report[part][name] = getattr(found, part)
        self.report["stores"][name] = found.values
        self.spectra[name] = found.spectra
        tell("retrieval")
        recalls = self._recalls(found, *self.sample.in_gallery(take))
        self.measured[name], self.report["retrieval"][name] = recalls.measurement, recalls.directions
        self.report["recall_intervals"][name] = recalls.spans
        if recalls.mixed:
            self.report["mixed"][name] = recalls.mixed

    def _look_closer(self, store: Compared, take: Take, tell: Callable[[str], None]) -> None:
        """What is taken of this run's own stores alone, as ``_measure_one``: the conflict, and what is looked at."""
        tell("conflict")
        rows = evenly_spaced(len(self.sample), _CONFLICT_PAIRS)
        image, text = (take(m, self.sample.rows[m][rows]) for m in MODALITIES)
        self.report["conflict"][store.name] = conflict_sweep(image, text)
        if count := self.recipe.gap_report.examples:
            found = examples(*self.sample.in_gallery(take), self.sample.owner, self.sample.pairs_in_gallery(), count)
            self.looked_at[store.name] = found

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


def _in_order(found: Mapping[str, T], stores: Sequence[Compared]) -> dict[str, T]:
    return {store.name: found[store.name] for store in stores if store.name in found}


def _about_labels(labels: Sequence[str], stores: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Why clusters are not held against the labels that there are, if they are not."""
    if not any(labels) or any("label_ari" in found for found in stores.values()):
        return []
    return [
        "Clusters are not held against labels: that takes two labels at least, each of"
        f" {PAIRS_PER_LABEL} pairs on average."
    ]
