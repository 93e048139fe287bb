"""The work of generate: the decoder made or loaded, and every store drawn through it."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats32, Ints
from cs_aligner_cli.data.images import read_image
from cs_aligner_cli.data.prepared import PreparedData, Split, captions_of
from cs_aligner_cli.encoders import Encoder, load_encoders, pick_device
from cs_aligner_cli.encoders.hub import difference
from cs_aligner_cli.files.artifact import Build, read_json, write_json
from cs_aligner_cli.generation import closed_form
from cs_aligner_cli.generation.closed_form import ClosedForm, to_pixels
from cs_aligner_cli.generation.conditions import (
    bound,
    chosen_captions,
    free_map,
    median_norm,
    refuse_another_encoder,
    scaled,
)
from cs_aligner_cli.generation.decoders import (
    SAME_ENCODER,
    Decoder,
    decoder_source,
    load_decoder,
    refuse_other_dimension,
)
from cs_aligner_cli.generation.drawing import draw_pictures, missing_batches, write_table
from cs_aligner_cli.generation.inception import require_inception
from cs_aligner_cli.generation.results import scene_truths, write_results
from cs_aligner_cli.recipe.paths import RUN
from cs_aligner_cli.runs.distributed import Ranks
from cs_aligner_cli.runs.generation_layout import DECODER, GenerationLayout
from cs_aligner_cli.runs.other_runs import refuse_other_items
from cs_aligner_cli.runs.unpaired import read_pairing
from cs_aligner_cli.stores.embeddings import Store

ENCODER = "encoder.json"
# Pictures on which another image encoder is compared with the store.
_COMPARED = 8


class GenerateJob:
    """What the stores of one command share: tables, prompts, the image encoder and the decoder, loaded late."""

    def __init__(self, made: GenerationLayout, console: Console, ranks: Ranks) -> None:
        self.made, self.console, self.ranks = made, console, ranks
        self.recipe, self.spec, self.layout = made.recipe, made.spec, made.layout

    def check(self) -> None:
        """Refuse, before anything long, a decoder, weights or metrics that cannot be had."""
        if self.spec.metrics.inception is not None:
            require_inception(self.spec.metrics.inception)
        scene_truths(self.recipe, self.prompts)
        self._refuse_other_spaces()
        self.source  # noqa: B018 (raises where there is no decoder)

    def _refuse_other_spaces(self) -> None:
        """Raise InputError where another run's store holds other items, or texts of another image encoder's space."""
        rows = np.arange(min(_COMPARED, len(self.split.images)))
        images = Store(self.layout.frozen(self.split.name).path).array("image").take(rows)
        for name, artifact in self.made.beside.items():
            artifact.verify(artifact.record() or {})
            store = Store(artifact.path)
            refuse_other_items(f"generate.beside: {name}", store, self.split)
            named = f"generate.beside: the image encoder of {name}"
            hint = "Name runs of the same encoders.image, with train.image.tune: frozen."
            refuse_another_encoder(store.array("image").take(rows), images, named, hint)

    @cached_property
    def source(self) -> str:
        own = self.layout.folder / DECODER
        source = decoder_source(self.spec, own)
        model = self.spec.decoder.model
        if model and model.startswith(RUN):
            theirs = read_json(Path(source) / ENCODER)
            ours = Store(self.layout.frozen(self.spec.fit_split).path).identity["image"]
            if why := difference(theirs, ours):
                raise InputError(
                    f"generate.decoder.model: {model} was trained with another image encoder than "
                    f"encoders.image: {why}",
                    SAME_ENCODER,
                )
        return source

    @cached_property
    def data(self) -> PreparedData:
        return PreparedData(self.layout.prepared.path)

    @cached_property
    def split(self) -> Split:
        return self.data.split(self.recipe.drawn_split, "generate.split")

    @cached_property
    def rows(self) -> Ints:
        """Rows of the captions that are prompts."""
        return chosen_captions(self.split, self.spec, self.recipe.seed)

    @cached_property
    def prompts(self) -> pd.DataFrame:
        """The prompts' captions, with ``image_row``, the row of each one's image."""
        table = self.split.captions.iloc[self.rows].reset_index(drop=True)
        return table.assign(image_row=self.split.image_of_caption[self.rows])

    @cached_property
    def device(self) -> str:
        return str(pick_device(self.recipe.embed.device))

    @cached_property
    def encoder(self) -> Encoder:
        return load_encoders(self.recipe, self.data, torch.device(self.device), ["image"])["image"]

    @cached_property
    def fitted_images(self) -> Floats32:
        return Store(self.layout.frozen(self.spec.fit_split).path).array("image").all()

    def train(self, build: Build) -> dict[str, Any]:
        """Make the decoder; return what was reached."""
        split = self.data.split(self.spec.fit_split, "generate.fit_split")
        embeddings = torch.from_numpy(self.fitted_images)
        paths = [self.data.root / locator for locator in split.images["locator"]]

        def pictures(side: int, rows: Tensor) -> Tensor:
            return torch.stack([to_pixels(read_image(paths[i])[0], side) for i in rows.tolist()])

        write_json(build.folder / ENCODER, Store(self.layout.frozen(split.name).path).identity["image"])
        wanted = self.spec.train_decoder
        if wanted is None:
            with self.console.progress("fitting the decoder", len(paths)) as advance:
                seed = self.recipe.seed
                ClosedForm.fit(embeddings, partial(pictures, closed_form.SIDE), seed, advance).save(build.folder)
            return {"pictures": len(paths)}
        from cs_aligner_cli.generation.native_decoder import DecoderData, train_decoder

        data = DecoderData(embeddings, self._negative(), partial(pictures, wanted.side), wanted.side)
        with self.console.progress("training the decoder", wanted.steps) as advance:
            reached = train_decoder(wanted, data, build.folder, self.recipe.seed, self.device, lambda loss: advance())
        return {"pictures": len(paths), **reached}

    def _negative(self) -> Tensor:
        """(dim,) what the image encoder makes of an all-zero picture, as the model takes it."""
        example = self.encoder.load(self.split.images.iloc[:1])
        with torch.inference_mode():
            negative: Tensor = self.encoder.module(torch.zeros_like(example).to(self.device))[0]
        return negative.float().cpu().clone()

    @cached_property
    def decoder(self) -> Decoder:
        """The decoder, once it is known that it fits the store."""
        spec = self.spec
        negative = self._negative() if spec.decoder.kind == "kandinsky22" and spec.negative == "auto" else None
        decoder = load_decoder(spec, self.source, negative, self.device)
        refuse_other_dimension(decoder, spec, self.fitted_images.shape[1])
        if spec.decoder.kind in ("stable_unclip", "karlo"):
            from cs_aligner_cli.generation.pipelines import encode_with, image_encoder_of

            if (own := image_encoder_of(decoder)) is not None:
                images = self.data.split(spec.fit_split, "generate.fit_split").images[:_COMPARED]
                pictures = [read_image(self.data.root / locator)[0] for locator in images["locator"]]
                named = f"generate.decoder: the image encoder of {spec.decoder.model or spec.decoder.kind}"
                theirs = encode_with(*own, pictures).numpy()
                refuse_another_encoder(theirs, self.fitted_images[: len(pictures)], named, SAME_ENCODER)
        return decoder

    def draw(self, name: str, build: Build) -> dict[str, Any]:
        """Draw the pictures of one store or bound."""
        conditions = self.conditions(name)
        size = self.spec.batch_size
        missing = self.ranks.broadcast(lambda: missing_batches(build.folder, len(conditions), size))
        mine = self.ranks.mine(missing)
        count = sum(map(len, mine))
        done = len(conditions) - count if self.ranks.size == 1 else 0
        with self.console.progress(f"drawing {name}", count + done, done=done) as advance:
            seconds = draw_pictures(
                build.folder,
                self.decoder,
                conditions,
                self.prompts,
                mine,
                self.recipe.seed,
                advance,
            )
        together = {number: each for part in self.ranks.all_gather([*seconds.items()]) for number, each in part}
        if self.ranks.main:
            write_table(build.folder, self.prompts, conditions, together, self.recipe.seed)
        norms = np.linalg.norm(conditions.astype(np.float64), axis=1)
        return {
            "pictures": len(conditions),
            "norm": round(float(np.median(norms)), 4),
            "seconds_each": round(float(np.mean([*together.values()])), 4) if together else None,
        }

    def conditions(self, name: str) -> Floats32:
        """(N, dim) what the decoder is fed for every prompt."""
        spec, split = self.spec, self.split.name
        length = median_norm(self.fitted_images)
        if name in spec.bounds:
            images = Store(self.layout.frozen(split).path).array("image").all()
            return bound(name, images, self.prompts["image_row"].to_numpy(), length, self.recipe.seed)
        store, kind = self.made.drawn_from(name)
        made = {**self.layout.stores(split), **self.made.beside}[store]
        texts = Store(made.path).array("text").take(self.rows)
        if kind:
            texts = self._mapped(kind, texts)
        if texts.shape[1] != self.fitted_images.shape[1]:
            raise InputError(
                f"generate.stores: texts of {name} have {texts.shape[1]} dimensions, but image embeddings have "
                f"{self.fitted_images.shape[1]}",
                "Name stores whose texts lie in the image encoder's space: generate.stores: [aligned]",
            )
        scale = {"auto": length, "none": None}.get(str(spec.scale), spec.scale)
        return scaled(texts, scale)  # type: ignore[arg-type]  # auto and none are taken care of

    def _mapped(self, kind: str, texts: Floats32) -> Floats32:
        """Frozen texts mapped to where the images lie, by what the training split's pairs say."""
        split = self.data.split(self.spec.fit_split, "generate.fit_split")
        train = self.recipe.train
        if self.layout.pairing and train and split.name == train.split:
            split = read_pairing(self.layout.pairing.path).limited(split)  # no more pairs than training knows
        captions = captions_of(split, np.arange(len(split.images)))
        store = Store(self.layout.frozen(split.name).path)
        image = store.array("image").take(split.image_of_caption[captions])
        return free_map(kind, image, store.array("text").take(captions))(texts)

    def measure(self, build: Build) -> dict[str, Any]:
        """Measure all pictures."""
        return write_results(
            self.recipe, self.spec, self.made, self.data, self.prompts, self.encoder, self.console, build
        )
