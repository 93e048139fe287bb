"""Where every output of a recipe lies, and what each is made from: the graph that freshness follows."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from cs_aligner_cli.common.modalities import FROZEN
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.recipe.later import parts
from cs_aligner_cli.runs.other_runs import runs_of_other_seeds, stores_beside
from cs_aligner_cli.runs.training_layout import TrainingLayout

# A matching head's weights, in its folder.
HEAD_FILE = "head.safetensors"


class Layout(TrainingLayout):
    """All artifacts of one recipe, to the last: also what is measured."""

    def stores(self, split: str) -> dict[str, Artifact]:
        """Every store of a split that is measured: frozen, the control, aligned."""
        return {
            FROZEN: self.frozen(split),
            **{name: self.aligned(name, split) for name in self.aligned_names},
        }

    def matching(self, variant: str) -> Artifact:
        """The matching head of one variant: it reads what its towers were trained on, and the towers."""
        train, trained = self.variants[variant], self.trained(variant)
        assert train.matching is not None
        return Artifact(
            f"matching head {variant}",
            self.folder / "matching" / variant,
            "csalign train",
            {
                "matching": parts("train.matching", train.matching),
                "embed": {"checkpoint": self.recipe.embed.checkpoint},
            },
            (trained, *trained.needs),
        )

    @cached_property
    def retrieval(self) -> Artifact:
        """The retrieval results and the indexes."""
        spec = self.recipe.eval_retrieval
        bank = self.stores(spec.query_bank.split) if spec.corrections else {}
        needs = [*self.stores(spec.split).values(), *bank.values()]
        if spec.rerank:
            needs += [*(self.matching(variant) for variant in self.variants), self.tokens(spec.split)]
        return Artifact(
            "retrieval results",
            self.folder / "eval_retrieval",
            "csalign eval-retrieval",
            {
                "eval_retrieval": parts("eval_retrieval", spec, exclude={"device", "sets"}),
                "seed": self.recipe.data_seed,
                **self._groups,
            },
            tuple(needs),
        )

    def source_of(self, store: str, split: str) -> dict[str, str | None]:
        """What an index says of the store that it was built from, and search compares."""
        return {"store": store, "split": split, "fingerprint": self.stores(split)[store].fingerprint()}

    @cached_property
    def zero_shot(self) -> Artifact:
        """The results of zero-shot classification."""
        split, shots = self.recipe.zero_shot_split, self.recipe.shots_split
        made_from = {**self.recipe.zero_shot.made_from(bool(shots)), "split": split}
        needs = (*self.stores(split).values(), *(self.stores(shots).values() if shots else ()))
        folder = self.folder / "zero_shot"
        return Artifact("zero-shot results", folder, "csalign zero-shot", {"zero_shot": made_from}, needs)

    @cached_property
    def gap(self) -> Artifact:
        """The gap report."""
        made_from = parts("gap_report", self.recipe.gap_report, exclude={"split", "beside", "seeds"})
        made_from["beside"] = {name: store.fingerprint() for name, store in self.beside.items()}
        if self.seeds:
            made_from["seeds"] = {
                run: {name: store.fingerprint() for name, store in stores.items()} for run, stores in self.seeds.items()
            }
        needs = {store.name: store for store in self.stores(self.recipe.gap_split).values()}
        if self.fit_split:  # it may be the split that is measured
            fitted = [self.stores(self.fit_split)[name] for name in self.baselines]
            needs |= {need.name: need for need in (*fitted, *([self.pairing] if self.pairing else []))}
        return Artifact(
            "gap report",
            self.folder / "gap_report",
            "csalign gap-report",
            {
                "gap_report": {**made_from, "split": self.recipe.gap_split},
                "name": self.recipe.name,
                "seed": self.recipe.data_seed,
                **self._groups,
            },
            tuple(needs.values()),
        )

    @cached_property
    def beside(self) -> dict[str, Artifact]:
        """The finished stores of other runs that the gap report puts beside this run's, as RUN:STORE.

        A frozen store that is this run's over again is left out. Raises InputError as ``stores_beside``.
        """
        split = self.recipe.gap_split
        own = self.frozen(split).fingerprint()
        stores = stores_beside("gap_report.beside", self.recipe.gap_report.beside, split)
        return {
            name: store
            for name, store in stores.items()
            if not name.endswith(f":{FROZEN}") or store.fingerprint() != own
        }

    @cached_property
    def seeds(self) -> dict[str, dict[str, Artifact]]:
        """The finished stores of runs of this recipe with other seeds, by the run's folder, then by store.

        Raises InputError as ``runs_of_other_seeds``.
        """
        return runs_of_other_seeds(self.recipe)

    @property
    def run_record(self) -> Path:
        """The file that records what this run is: recipe, versions, seed, stages."""
        return self.folder / "run.json"
