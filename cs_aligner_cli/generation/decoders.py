"""The decoders behind one interface, found, checked and loaded as the recipe names them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.extras import require_package
from cs_aligner_cli.encoders.hub import refuse_absent, source_of
from cs_aligner_cli.generation.closed_form import ClosedForm
from cs_aligner_cli.recipe.generate import Generate
from cs_aligner_cli.recipe.paths import RUN, run_folder

SAME_ENCODER = "encoders.image must be the image encoder that the decoder was trained with."


class Decoder(Protocol):
    """What draws pictures from embeddings of ``dim`` dimensions."""

    dim: int

    def draw(self, conditions: Tensor, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One picture for each of conditions (B, dim) float32, drawn with its own seed."""
        ...


def decoder_source(spec: Generate, own: Path) -> str:
    """The folder or the hub's repository of the decoder; ``own`` is the folder where this recipe makes it.

    Raises InputError, before anything is loaded, where it cannot be had.
    """
    model = spec.decoder.model
    if spec.decoder.kind != "closed_form":
        require_package("diffusers", "generate.decoder", "decoder: {kind: closed_form} needs nothing")
    if model is None:
        return str(own)
    if model.startswith(RUN):
        folder = run_folder(model) / own.name
        if not (folder / "model_index.json").is_file():
            raise InputError(
                f"generate.decoder.model: {model}: {folder} holds no trained decoder",
                "Train it first: csalign generate, with a recipe that has generate.train_decoder.",
            )
        return str(folder)
    refuse_absent(model, "generate.decoder.model", "model_index.json")
    return source_of(model)


def load_decoder(spec: Generate, source: str, negative: Tensor | None, device: str) -> Decoder:
    """The decoder of a folder or repository (``decoder_source``); ``negative`` (dim,) is Kandinsky's."""
    if spec.decoder.kind == "closed_form":
        return ClosedForm.load(Path(source))
    from cs_aligner_cli.generation.pipelines import load_pipeline  # diffusers takes seconds

    return load_pipeline(spec, source, negative, device)


def refuse_other_dimension(decoder: Decoder, spec: Generate, dim: int) -> None:
    """Raise InputError unless the decoder takes embeddings of ``dim`` dimensions, those of the store."""
    if decoder.dim != dim:
        name = spec.decoder.model or spec.decoder.kind
        raise InputError(
            f"generate.decoder: {name} takes image embeddings of {decoder.dim} dimensions, but the store's have {dim}",
            SAME_ENCODER,
        )
