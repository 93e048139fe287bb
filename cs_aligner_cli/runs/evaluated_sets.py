"""Where the further data sets lie that a recipe is evaluated on, and what their stores are made from."""

from __future__ import annotations

from pathlib import Path

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.manifest import DrawnManifest, read_manifest, root_of
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.recipe.eval_retrieval import EvalSet, ZeroShot
from cs_aligner_cli.recipe.paths import HF
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.layout import Layout


class EvaluatedSet(Layout):
    """A further data set of ``eval_retrieval.sets``: its own data and stores, but the towers of its run."""

    def __init__(self, of: Layout, spec: EvalSet) -> None:
        super().__init__(_recipe_of(of.recipe, spec), spec.key)
        self._of = of

    @property
    def variants(self) -> dict[str, Train]:
        """What the run trains."""
        return self._of.variants

    def trained(self, variant: str) -> Artifact:
        """The run's checkpoints of one variant."""
        return self._of.trained(variant)

    def matching(self, variant: str) -> Artifact:
        """The run's matching head of one variant."""
        return self._of.matching(variant)

    @property
    def training_splits(self) -> list[str]:
        """None of this data set."""
        return []

    @property
    def baselines(self) -> dict[str, list[str]]:
        """None: they are the gap report's."""
        return {}

    @property
    def measured_on_training(self) -> str:
        """Nothing: these are other data."""
        return ""


def evaluated_sets(layout: Layout) -> dict[str, EvaluatedSet]:
    """The further data sets of a recipe by name, in its order."""
    return {spec.key: EvaluatedSet(layout, spec) for spec in layout.recipe.eval_retrieval.sets}


def _recipe_of(recipe: Recipe, spec: EvalSet) -> Recipe:
    """The recipe as it stands for another data set: its encoders, towers and rules of measuring."""
    retrieval = {
        "split": spec.split,
        "folds": spec.folds,
        "captions_per_image": spec.captions_per_image,
        "relevance": None,
        "corrections": [],
        "sets": [],
        "mixed": recipe.eval_retrieval.mixed and recipe.eval_retrieval.mixed.model_copy(update={"corpus": None}),
    }
    data = {"manifest": spec.manifest, "root": _root(recipe, spec), "dir": None, "unpaired": None}
    changes = {
        "data": recipe.data.model_copy(update=data),
        "prepare": recipe.prepare.model_copy(update={"repack": None}),
        "run_dir": recipe.folder / "sets" / spec.key,
        "embed": recipe.embed.model_copy(update={"dir": None}),
        "eval_retrieval": recipe.eval_retrieval.model_copy(update=retrieval),
        "gap_report": recipe.gap_report.model_copy(update={"split": None, "beside": [], "seeds": []}),
        "zero_shot": ZeroShot(),
        "generate": None,
    }
    return recipe.model_copy(update=changes)


def _root(recipe: Recipe, spec: EvalSet) -> Path | None:
    """The folder named for the set, or the one of its name in data.root; None where its manifest names its own.

    One that is not there is named all the same where the set has no other: a message says that it is missing.
    """
    if spec.root or not recipe.data.root or str(recipe.data.root).startswith(HF):
        return spec.root
    inside = recipe.data.root / spec.key
    if inside.is_dir():
        return inside
    data = recipe.data.model_copy(update={"manifest": spec.manifest, "root": None})
    alone = recipe.model_copy(update={"data": data})
    try:
        manifest = read_manifest(alone)
    except InputError:  # which whoever reads the set says
        return None
    return None if isinstance(manifest, DrawnManifest) or root_of(alone, manifest) else inside
