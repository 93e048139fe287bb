"""Where the outputs of generate lie, and what each is made from: decoder, pictures, results."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.modalities import FROZEN
from cs_aligner_cli.files.artifact import RECORD, Artifact
from cs_aligner_cli.recipe.generate import FREE_MAPS, LOCAL, Generate
from cs_aligner_cli.recipe.later import parts
from cs_aligner_cli.recipe.paths import RUN, run_folder
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.runs.other_runs import stores_beside

RESULTS = "results.json"
# The folder of a run with the decoder that it trained.
DECODER = "decoder"


class GenerationLayout:
    """The artifacts of a recipe's generate section."""

    def __init__(self, layout: Layout) -> None:
        assert layout.recipe.generate is not None
        self.layout, self.recipe = layout, layout.recipe
        self.spec: Generate = layout.recipe.generate

    @property
    def drawn_stores(self) -> list[str]:
        """The stores that are drawn from; InputError where one is named that this recipe does not make."""
        spec = self.spec
        there = [FROZEN, *(f"{FROZEN}+{kind}" for kind in FREE_MAPS), *self.layout.aligned_names]
        for name in (*(spec.stores or ()), spec.metrics.judge):
            if name not in there:
                raise InputError(f"generate: this recipe makes no store {name!r}{did_you_mean(name, there)}")
        return spec.stores or there

    @cached_property
    def beside(self) -> dict[str, Artifact]:
        """The aligned stores of other runs that are drawn from, too, as RUN:STORE; InputError as ``stores_beside``."""
        found = stores_beside("generate.beside", self.spec.beside, self.recipe.drawn_split, trained=True)
        # What is made from them notes their names, which are the same wherever the other runs lie.
        return {name: replace(store, name=f"store {name}") for name, store in found.items()}

    def drawn_from(self, name: str) -> tuple[str, str]:
        """The store whose texts are drawn under a name, and the closed form that maps them first; "" for none."""
        if name in self.beside:  # another run's folder may have a + in its name
            return name, ""
        store, _, kind = name.partition("+")
        return store, kind

    @property
    def drawn(self) -> list[str]:
        """All that pictures are drawn from: this run's stores, those of other runs, and the bounds."""
        return [*self.drawn_stores, *self.beside, *self.spec.bounds]

    @property
    def draws_trained(self) -> bool:
        """Whether any store that is drawn from comes out of trained towers."""
        return any(name in self.layout.aligned_names for name in self.drawn_stores)

    @cached_property
    def decoder(self) -> Artifact | None:
        """The decoder that this recipe makes itself, from frozen image embeddings and their pictures."""
        spec = self.spec
        if spec.decoder.model is not None:
            return None
        made_from: dict[str, Any] = {"kind": spec.decoder.kind, "seed": self.recipe.seed}
        wanted = spec.train_decoder
        if wanted is not None:
            made_from["form"] = 2  # 1: a codec with one scale
            made_from["train_decoder"] = parts("generate.train_decoder", wanted, exclude={"checkpoint_steps"})
        needs = (self.layout.frozen(spec.fit_split),)
        return Artifact("decoder", self.layout.folder / DECODER, "csalign generate", made_from, needs)

    @cached_property
    def decoder_files(self) -> list[Path]:
        """The files of a decoder that is taken from a folder, whose change makes pictures stale."""
        model = self.spec.decoder.model or ""
        folder = run_folder(model) / DECODER if model.startswith(RUN) else Path(model.removeprefix(LOCAL))
        taken = model.startswith((RUN, LOCAL)) and folder.is_dir()
        # A run's record of its decoder is written anew where the run was moved, and says nothing of the weights.
        return [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD] if taken else []

    def pictures(self, name: str) -> Artifact:
        """The pictures drawn from one store of this run or of another, or for one bound."""
        spec, split = self.spec, self.recipe.drawn_split
        ignored = {"train_decoder", "stores", "beside", "bounds", "metrics", "published", "sheet_prompts"}
        ignored |= {"batch_size", "offload", "attention_slicing"}
        store, _ = self.drawn_from(name)
        needs = [self.layout.frozen(split), self.layout.frozen(spec.fit_split)]
        needs += [self.layout.aligned(store, split)] if store in self.layout.aligned_names else []
        needs += [self.beside[store]] if store in self.beside else []
        needs += [self.decoder] if self.decoder else []
        return Artifact(
            f"pictures of {name}",
            self.layout.folder / "generate" / name.replace(":", "."),
            "csalign generate",
            {"generate": parts("generate", spec, exclude=ignored), "split": split, "seed": self.recipe.seed},
            tuple({need.name: need for need in needs}.values()),
        )

    @cached_property
    def results(self) -> Artifact:
        """What is measured of all pictures, and the contact sheet."""
        spec = self.spec
        judge = self.layout.stores(self.recipe.drawn_split)[spec.metrics.judge]
        needs = [judge, *map(self.pictures, self.drawn)]
        return Artifact(
            "generation results",
            self.layout.folder / "generate" / "results",
            "csalign generate",
            {
                "generate": parts("generate", spec, include={"metrics", "published", "sheet_prompts"}),
                "name": self.recipe.name,
                "form": 2,  # 1: the blurred edge of a frame could be read as a pink shape
            },
            tuple(needs),
        )

    @property
    def outputs(self) -> list[Artifact]:
        """All of them, in the order in which they are made."""
        return [*([self.decoder] if self.decoder else []), *map(self.pictures, self.drawn), self.results]

    @property
    def needs(self) -> list[Artifact]:
        """What must be there before anything is drawn."""
        own = {artifact.name for artifact in self.outputs}
        needs = {need.name: need for artifact in self.outputs for need in artifact.needs}
        return [need for name, need in needs.items() if name not in own]


def drawn_results(layout: Layout) -> Artifact | None:
    """The measured pictures of the gap report's split; None where the recipe draws none, or from another split."""
    recipe = layout.recipe
    if recipe.generate is None or recipe.drawn_split != recipe.gap_split:
        return None
    return GenerationLayout(layout).results
