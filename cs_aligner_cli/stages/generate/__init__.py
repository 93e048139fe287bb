"""generate: pictures drawn from text embeddings in the place of image embeddings, and what they are worth."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders.availability import weight_files, weights_of
from cs_aligner_cli.files.artifact import Artifact, Build
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.distributed import ALONE, Ranks
from cs_aligner_cli.runs.generation_layout import GenerationLayout
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.generate.result import GenerateResult
from cs_aligner_cli.stages.making import Made, Summary, joined, make, took_long

if TYPE_CHECKING:
    from cs_aligner_cli.stages.generate.job import GenerateJob


def generate(
    recipe: Recipe, console: Console, force: bool = False, ranks: Ranks = ALONE, archive: bool = False
) -> GenerateResult:
    """Make the decoder where the recipe trains one, draw every store and bound, and measure the pictures.

    Raises InputError, before the first picture, where decoder, stores, captions or weights are not what the recipe
    says.
    """
    ranks.broadcast(lambda: _refuse(recipe))
    made = GenerationLayout(Layout(recipe))
    pictures = _Pictures(made, console, force, ranks, archive)
    decoder = pictures.decoder()
    drawn = {name: pictures.drawn(name) for name in made.drawn}
    results = pictures.results()
    found = results.result(
        GenerateResult,
        folder=str(made.results.path),
        decoder=decoder.summary if decoder else {},
        drawn={name: part.summary for name, part in drawn.items()},
    )
    return found.model_copy(update={"status": joined(decoder, *drawn.values(), results)})


def _refuse(recipe: Recipe) -> None:
    """Raise InputError for what the recipe alone shows to be wrong, or where a store is not there."""
    if recipe.generate is None:
        raise InputError(
            "generate: the recipe has no such section",
            "Begin with one that has: csalign recipe copy scenes_generate recipe.yaml; docs/generation.md explains it.",
        )
    if recipe.encoders.image.kind == "features":
        raise InputError(
            "generate: encoders.image reads stored features, but pictures must be drawn and embedded",
            "Name an image encoder that reads pictures.",
        )
    made = GenerationLayout(Layout(recipe))
    train = recipe.train
    if train is not None and recipe.trains and train.image.tune != "frozen" and made.draws_trained:
        raise InputError(
            f"generate: train.image.tune is {train.image.tune}, so aligned texts leave the space of the image "
            "encoder, which the decoder reads",
            "Set train.image.tune: frozen; the text tower alone is then trained.",
        )
    for need in made.needs:
        need.current()


class _Pictures:
    """Decoder, pictures and results of one recipe; what makes them is loaded with the first that is made."""

    def __init__(self, made: GenerationLayout, console: Console, force: bool, ranks: Ranks, archive: bool) -> None:
        self.made, self.console, self.force, self.ranks, self.archive = made, console, force, ranks, archive

    @cached_property
    def job(self) -> GenerateJob:
        from cs_aligner_cli.stages.generate.job import GenerateJob

        job = GenerateJob(self.made, self.console, self.ranks)
        self.ranks.broadcast(job.check)
        return job

    def decoder(self) -> Made | None:
        """The decoder that this recipe makes itself, None where it takes one."""
        if self.made.decoder is None:
            return None

        def write(build: Build) -> Summary:
            job = self.job
            return self.ranks.broadcast(lambda: job.train(build))

        sources = file_stamps(weight_files(self.made.recipe))
        return self._make(self.made.decoder, write, sources)

    def drawn(self, name: str) -> Made:
        """The pictures of one store or bound."""

        def write(build: Build) -> Summary:
            return self.job.draw(name, build)

        taken = self.made.decoder_files
        return self._make(self.made.pictures(name), write, file_stamps(taken) if taken else "")

    def results(self) -> Made:
        """What is measured of all of them."""

        def write(build: Build) -> Summary:
            job = self.job
            return self.ranks.broadcast(lambda: job.measure(build))

        metrics = self.made.spec.metrics
        files = [*(weights_of(metrics.encoder) if metrics.encoder else ())]
        files += [metrics.inception.weights] if metrics.inception else []
        return self._make(self.made.results, write, file_stamps(files) if files else "")

    def _make(self, artifact: Artifact, write: Callable[[Build], Summary], sources: str = "") -> Made:
        archive = self.archive and self.ranks.broadcast(lambda: took_long(artifact))
        return make(artifact, write, force=self.force, sources=sources, ranks=self.ranks, archive=archive)
