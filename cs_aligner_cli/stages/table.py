"""The table of stages: what each is called, what it makes and holds, and who runs it. One entry adds a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_type_hints

from cs_aligner_cli.common.modalities import FROZEN

if TYPE_CHECKING:  # a stage brings torch along, and --help must not wait for that
    from cs_aligner_cli.common.results import StageResult
    from cs_aligner_cli.files.artifact import Artifact
    from cs_aligner_cli.recipe.recipe import Recipe
    from cs_aligner_cli.runs.layout import Layout

    StageFunction = Callable[..., StageResult]


@dataclass(frozen=True)
class Stage:
    """One stage: ``name(recipe, console, force)`` of the module ``stages.name``, which returns a StageResult; one
    shared by ranks takes these and ``archive``, too.

    That module is imported also where there is nothing to do, so it leaves it to ``write``, which ``making.make`` calls
    to build, to import what computes (torch). The result says how it is shown.

    ``outputs`` are the artifacts that the stage makes, as the layout has them. ``runs_for`` says whether `csalign run`
    does it for a recipe, ``shared_folder`` which folder it writes that several runs may share, named by the ``dir`` of
    the recipe's section ``shared``; ``replaces_folder``, that this folder is itself an output. Of several ranks only
    rank 0 does a stage that is not ``shared_by_ranks``. ``protects`` says which finished outputs of other inputs are
    not replaced without --force or --archive: ``nothing`` where they are made again in seconds, those that took
    ``long``, or ``all``; what lies in a folder that the recipe names for several runs is protected in any case.
    """

    name: str
    about: str
    outputs: Callable[[Layout], Sequence[Artifact]]
    runs_for: Callable[[Recipe], bool] = lambda recipe: True
    shared: Literal["", "data", "embed"] = ""
    shared_folder: Callable[[Recipe], Path | None] = lambda recipe: None
    replaces_folder: bool = False
    shared_by_ranks: bool = False
    protects: Literal["nothing", "long", "all"] = "nothing"

    @property
    def command(self) -> str:
        """The stage as a word of the command line."""
        return self.name.replace("_", "-")

    @property
    def function(self) -> StageFunction:
        """What does the stage; imported here, and not before."""
        function: StageFunction = getattr(import_module(f"cs_aligner_cli.stages.{self.name}"), self.name)
        return function

    @property
    def result(self) -> type[StageResult]:
        """The model of what the stage returns."""
        found: type[StageResult] = get_type_hints(self.function)["return"]
        return found

    def folders(self, recipe: Recipe) -> list[Path]:
        """The folders that are locked while the stage runs.

        One that several runs may share, this run's own among them, is held only by the stage that writes it, so that
        runs can go side by side.
        """
        shared = self.shared_folder(recipe)
        return [recipe.folder, *([shared] if shared else [])]


def _generated(layout: Layout) -> Sequence[Artifact]:
    """Decoder, pictures and results, where the recipe has them."""
    from cs_aligner_cli.runs.generation_layout import GenerationLayout

    return GenerationLayout(layout).outputs if layout.recipe.generate else []


def _stores(layout: Layout) -> Sequence[Artifact]:
    """The stores of a recipe's data, then those of the further data sets that it is evaluated on."""
    from cs_aligner_cli.runs.evaluated_sets import evaluated_sets

    return [
        store
        for one in (layout, *evaluated_sets(layout).values())
        for store in (
            *(one.frozen(split) for split in one.frozen_splits),
            *(one.tokens(split) for split in one.token_splits),
            *(one.aligned(name, split) for name in one.aligned_names for split in one.aligned_splits(name)),
        )
    ]


def _trainings(layout: Layout) -> Sequence[Artifact]:
    """Every variant, then the matching heads over them."""
    heads = [layout.matching(name) for name, spec in layout.variants.items() if spec.matching]
    return [*(layout.trained(name) for name in layout.variants), *heads]


_STAGES = (
    Stage(
        "prepare",
        "Read the data into tables of images and captions.",
        outputs=lambda layout: [layout.prepared],
        shared="data",
        shared_folder=lambda recipe: recipe.data.dir or recipe.folder / "data",
        replaces_folder=True,
    ),
    Stage(
        "embed",
        "Compute the embeddings, frozen and (once trained) aligned.",
        outputs=_stores,
        shared="embed",
        shared_folder=lambda recipe: recipe.embed.dir or recipe.folder / "embeddings" / FROZEN,
        shared_by_ranks=True,
        protects="long",
    ),
    Stage(
        "train",
        "Train; an interrupted run goes on where it stopped.",
        outputs=_trainings,
        runs_for=lambda recipe: recipe.trains,
        shared_by_ranks=True,
        protects="all",
    ),
    Stage(
        "eval_retrieval",
        "Measure retrieval both ways, with intervals; save indexes.",
        outputs=lambda layout: [layout.retrieval],
    ),
    Stage(
        "zero_shot",
        "Classify images by prompts of class names.",
        outputs=lambda layout: [layout.zero_shot],
        runs_for=lambda recipe: recipe.zero_shot.wanted,
    ),
    Stage(
        "generate",
        "Draw pictures from text embeddings; measure them.",
        outputs=_generated,
        runs_for=lambda recipe: recipe.generate is not None,
        shared_by_ranks=True,
        protects="long",
    ),
    Stage(
        "gap_report",
        "Measure and draw the modality gap, as one HTML page.",
        outputs=lambda layout: [layout.gap],
    ),
)
# By name, in the order in which `csalign run` does them.
STAGES = {stage.name: stage for stage in _STAGES}
