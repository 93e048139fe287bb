"""Embedding sentences and photos that are in no data set, through the towers that made a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import Lock

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import FROZEN, MODALITIES
from cs_aligner_cli.common.token_sequences import PADDING_TOKEN
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.encoders import Encoder, TokenReader, load_encoders, pick_device
from cs_aligner_cli.recipe.encoders import FeaturesEncoder
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.towers.embedder import Embedder, pick_precision, under
from cs_aligner_cli.towers.towers import Towers
from cs_aligner_cli.towers.weights import load_towers, read_plans

_LOADING = Lock()
_COLUMN = {"image": "locator", "text": "text"}


class QueryEncoder:
    """The towers of one store of a recipe; loads the encoders, so build it only for items that are not stored.

    Threads load one after the other: weights that are drawn come from torch's one random state.
    """

    def __init__(self, recipe: Recipe, store: str) -> None:
        with _LOADING:
            self._load(recipe, store)

    def _load(self, recipe: Recipe, store: str) -> None:
        layout = Layout(recipe)
        self._batch_size = recipe.embed.batch_size
        self._device = pick_device(recipe.embed.device)
        self._precision = pick_precision(recipe.embed.precision, self._device)
        self._token_dtype: torch.dtype = getattr(torch, recipe.embed.token_dtype)
        self._encoders = load_encoders(recipe, PreparedData(layout.prepared.path), self._device, MODALITIES)
        self._towers: Towers | None = None
        self._readers: dict[str, TokenReader] = {}
        if store != FROZEN:
            # Towers that were trained whole take the place of the encoders' own modules.
            weights = layout.weights(store)
            for modality, plan in read_plans(weights).items():
                if plan.reads == "tokens":
                    self._readers[modality] = self._encoders[modality].token_reader(f"train.{modality}.reads")
            dims = {m: self._readers[m].dim if m in self._readers else self._encoders[m].dim for m in MODALITIES}
            precision = pick_precision(recipe.train.precision if recipe.train else "fp32", self._device)
            towers = load_towers(weights, self._encoders, dims, precision=precision)
            self._towers = towers.to(self._device).eval()

    def embed(self, modality: str, items: Sequence[str]) -> Tensor:
        """Unit float32 rows (len(items), d) of texts, or of the image files at these absolute paths."""
        encoder = self._encoders[modality]
        embedder = self._embedder(modality, items, lambda inputs: self._forward(encoder, inputs))
        return l2_normalize(torch.from_numpy(embedder.all(np.arange(len(items)))))

    def tokens(self, modality: str, items: Sequence[str]) -> Tensor:
        """Padded tokens (len(items), L, d) of them, as the store has them of its rows: for towers that read tokens."""
        embedder = self._embedder(modality, items, partial(self._read, self._encoders[modality]))
        found = next(embedder.token_shards([(0, np.arange(len(items)))]))[1]
        padded = np.full((len(found), found.lengths.max(), found.values.shape[1]), PADDING_TOKEN, np.float32)
        found.pad_into(padded, slice(None))
        return torch.from_numpy(padded)

    def _embedder(self, modality: str, items: Sequence[str], forward: Callable[[Tensor], Tensor]) -> Embedder:
        encoder, frame = self._encoders[modality], pd.DataFrame({_COLUMN[modality]: list(items)})
        return Embedder(
            forward,
            lambda rows: encoder.load(frame.iloc[rows]),
            self._device,
            self._batch_size,
            loader=encoder.load,
        )

    def _forward(self, encoder: Encoder, inputs: Tensor) -> Tensor:
        if self._towers is None or not self._towers.plans[encoder.modality].live:
            inputs = self._read(encoder, inputs)
        return inputs if self._towers is None else self._towers(encoder.modality, inputs)

    def _read(self, encoder: Encoder, inputs: Tensor) -> Tensor:
        """What a frozen encoder gives: tokens where the tower reads those, rounded as the token store rounds them."""
        reader = self._readers.get(encoder.modality)
        with under(self._precision, self._device):
            found: Tensor = (reader.module if reader else encoder.module)(inputs).float()
        return found.to(self._token_dtype).float() if reader else found


def require_encoder(recipe: Recipe, modality: str, instead: str) -> None:
    """Raise InputError if the encoder of a modality is stored features, which cannot embed anything new."""
    if isinstance(recipe.encoders.of(modality), FeaturesEncoder):
        raise InputError(
            f"encoders.{modality} is of kind features: stored features cannot embed a new {modality}", instead
        )
