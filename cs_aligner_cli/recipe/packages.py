"""The packages beyond the core that a recipe needs, by the stage that needs them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from cs_aligner_cli.common.extras import require_package
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.recipe.generate import Generate
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.train import Train


class Need(NamedTuple):
    """A package as it is imported, the key that needs it, and the stages that read it."""

    package: str
    key: str
    stages: tuple[str, ...]


def needs(recipe: Recipe) -> Iterator[Need]:
    """What a recipe needs beyond the core."""
    for modality in recipe.encoders.modalities:
        kind, key = recipe.encoders.of(modality).kind, modality if modality in MODALITIES else f"further.{modality}"
        if kind != "features":
            yield Need(kind, f"encoders.{key}", ("prepare", "embed", "train"))
    if recipe.prepare.repack is not None:
        yield Need("webdataset", "prepare.repack", ("prepare",))
    if recipe.train is not None:
        yield from _of_training(recipe.train)
    if recipe.generate is not None:
        yield from _of_generation(recipe.generate)
    for package in ("matplotlib", "sklearn"):
        yield Need(package, "gap-report", ("gap_report",))
    if recipe.gap_report.projection == "umap":
        yield Need("umap", "gap_report.projection", ("gap_report",))


def _of_training(train: Train) -> Iterator[Need]:
    for modality in MODALITIES:
        if train.tower(modality).tune == "lora":
            yield Need("peft", f"train.{modality}.tune", ("train",))
    for tracker in train.trackers:
        yield Need(tracker, "train.trackers", ("train",))


def _of_generation(generate: Generate) -> Iterator[Need]:
    if generate.decoder.kind != "closed_form":
        for package in ("diffusers", "transformers"):
            yield Need(package, "generate.decoder", ("generate",))
    if generate.offload != "none":
        yield Need("accelerate", "generate.offload", ("generate",))
    if generate.metrics.inception is not None:
        yield Need("torch_fidelity", "generate.metrics.inception", ("generate",))


def require_packages(recipe: Recipe, stages: Collection[str]) -> None:
    """Raise InputError for the first package that is not installed, of those that the stages need."""
    for need in needs(recipe):
        if not set(stages).isdisjoint(need.stages):
            require_package(need.package, need.key)
