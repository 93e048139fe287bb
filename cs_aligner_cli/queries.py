"""Embedding sentences and photos that are in no data set, through the towers that made a store."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cs_aligner_cli.arrays import l2_normalize
from cs_aligner_cli.checkpoint import load_towers, read_plans
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.encoders import Encoder, embed_rows, load_encoders, pick_device
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.layout import FROZEN, MODALITIES, Layout
from cs_aligner_cli.recipe import Recipe
from cs_aligner_cli.recipe_encoders import FeaturesEncoder

_COLUMN = {"image": "locator", "text": "text"}


class QueryEncoder:
    """The towers of one store of a recipe; loads the encoders, so build it only for items that are not stored."""

    def __init__(self, recipe: Recipe, store: str) -> None:
        layout = Layout(recipe)
        self._recipe = recipe
        self._device = pick_device(recipe.embed.device)
        self._encoders = load_encoders(recipe, PreparedData(layout.prepared.path), self._device)
        self._towers, self._plans = None, {}
        if store != FROZEN:
            weights = layout.weights(store)
            self._plans = read_plans(weights)
            dims = {m: self._encoders[m].dim for m in MODALITIES}
            # Towers that were trained whole take the place of the encoders' own modules.
            self._towers = load_towers(weights, self._encoders, dims).to(self._device).eval()

    def embed(self, modality: str, items: Sequence[str]) -> Tensor:
        """Unit float32 rows (len(items), d) of texts, or of the image files at these absolute paths."""
        encoder = self._encoders[modality]
        size = self._recipe.embed.batch_size
        frame = pd.DataFrame({_COLUMN[modality]: list(items)})
        batches = [frame.iloc[start : start + size] for start in range(0, len(frame), size)]
        return l2_normalize(torch.from_numpy(np.concatenate([self._embed(encoder, batch) for batch in batches])))

    def _embed(self, encoder: Encoder, rows: pd.DataFrame) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        modality, inputs = encoder.modality, encoder.load(rows)
        live = self._towers is not None and self._plans[modality].tune == "full"
        if not live:
            features = embed_rows(encoder.module, inputs, self._device, self._recipe.embed.precision)
            inputs = torch.from_numpy(features)
        if self._towers is None:
            return inputs.numpy()
        with torch.inference_mode():
            embedded: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = (
                self._towers(modality, inputs.to(self._device)).cpu().numpy()
            )
        return embedded


def require_encoder(recipe: Recipe, modality: str, instead: str) -> None:
    """Raise InputError if the encoder of a modality is stored features, which cannot embed anything new."""
    if isinstance(recipe.encoders.of(modality), FeaturesEncoder):
        raise InputError(
            f"encoders.{modality} is of kind features: stored features cannot embed a new {modality}", instead
        )
