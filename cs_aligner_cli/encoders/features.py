"""The encoder of stored features: reads rows from the feature file that the manifest names."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.data.features import FeatureParts
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.data.token_features import TokenFile
from cs_aligner_cli.encoders.encoder import Encoder, TokenReader
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.encoders import FeaturesEncoder


class SignedPower(nn.Module):
    """x -> sign(x) |x|^power, elementwise; power 0.5 evens out the heavy tail of post-ReLU features."""

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, x: Tensor) -> Tensor:
        """(B, d) to (B, d)."""
        return x if self.power == 1.0 else x.sign() * x.abs().pow(self.power)


def load_features(spec: FeaturesEncoder, data: PreparedData, modality: str) -> Encoder:
    """The stored features of one modality as a tower.

    Raises InputError if the data set brings no features, or if they are not those that prepare has checked.
    """
    where = data.source.get(f"{modality}_features")
    if where is None and modality not in MODALITIES:
        there = [*MODALITIES, *data.source.get("modalities", [])]
        raise InputError(f"encoders.further: the data set has no {modality!r}{did_you_mean(modality, there)}")
    if where is None:
        raise InputError(
            f"encoders.{modality}: kind features needs a manifest of kind embeddings, "
            f"but the data are of kind {data.source['kind']}",
            "Name an encoder that reads the items themselves, for example kind: open_clip.",
        )
    folder = data.folder if where.get("inside") else data.root
    paths = [folder / path for path in where["paths"]]
    _refuse_changed(where["stamp"], *paths)
    file = FeatureParts(paths, where["tensor"])

    def load(rows: pd.DataFrame) -> Tensor:
        return torch.from_numpy(file.read(rows["feature_row"].to_numpy()))

    identity = {"kind": "features", "file": file.name, "tensor": where["tensor"], "power": spec.power}
    module = SignedPower(spec.power)
    return Encoder(modality, file.shape[1], module, load, identity, module, tokens=_tokens(spec, data, modality))


def _tokens(spec: FeaturesEncoder, data: PreparedData, modality: str) -> TokenReader | None:
    """The stored token features of one modality, None where the manifest names none."""
    where = data.source.get(f"{modality}_tokens")
    if where is None:
        return None
    path, mask = data.root / where["path"], data.root / where["mask"]
    _refuse_changed(where["stamp"], path, mask)
    file = TokenFile(path, where["tensor"], mask)

    def load(rows: pd.DataFrame) -> Tensor:
        return torch.from_numpy(file.read(rows["feature_row"].to_numpy()))

    return TokenReader(SignedPower(spec.power), load, lambda: torch.zeros(1, 1, file.shape[2]), path.name)


def _refuse_changed(stamp: str | None, *paths: Path) -> None:
    if stamp is not None and file_stamps(paths) != stamp:
        changed = paths[0] if len(paths) == 1 else f"{paths[0].parent}: a feature file"
        raise InputError(f"{changed}: has changed since the data were prepared", "Check it again: csalign prepare")
