"""Does a tower tell items apart? Sixteen captions, or pictures, before it is used on millions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders.encoder import Encoder
from cs_aligner_cli.encoders.inputs import ImageLoader
from cs_aligner_cli.encoders.table import load_encoders
from cs_aligner_cli.recipe.recipe import Recipe

COUNT = 16
# Of one length, and different from the first word on, so that no short context cuts the difference off.
CAPTIONS = (
    *("a dog in snow", "two cats on sofas", "the red car outside", "green hills at noon"),
    *("boys playing a game", "water under a bridge", "black and white birds", "her hat is yellow"),
    *("people in the street", "an old wooden house", "fresh bread for sale", "my blue bicycle here"),
    *("night over the city", "children near a lake", "snow on high mountains", "one man with guitar"),
)
# Two rows nearer than this, of the longest row's length, are one: what is left is rounding.
_SAME = 1e-5


def check_towers(recipe: Recipe, modalities: Sequence[str], texts: Iterable[str] = ()) -> dict[str, Encoder]:
    """Load the towers of some modalities on the CPU and check each as ``check_tower`` does; return them."""
    encoders = load_encoders(recipe, None, torch.device("cpu"), modalities)
    for modality, encoder in encoders.items():
        check_tower(encoder, f"encoders.{modality}", texts)
    return encoders


def check_tower(encoder: Encoder, key: str, texts: Iterable[str] = ()) -> None:
    """Raise InputError if an encoder gives different items one embedding, or no numbers.

    ``texts`` are captions of the data: a text tower passes, too, if it tells the first sixteen of them apart (a
    tokenizer may know the words of one field only).
    """
    if encoder.modality == "image":
        assert isinstance(encoder.load, ImageLoader)
        pictures = torch.stack([encoder.load.preprocess(picture) for picture in _pictures()])
        found = _distinct(_embedded(encoder, pictures, key))
        if found < COUNT:
            raise InputError(
                f"{key}: {COUNT} different pictures have {found} different embeddings",
                "Are the weights those of this model, and whole? Does its preprocessing leave anything of a picture?",
            )
        return
    found, sequences = _captions_apart(encoder, CAPTIONS, key)
    own = list(islice(dict.fromkeys(text for text in texts if text.strip()), COUNT))
    if found < COUNT and (len(own) < 2 or _captions_apart(encoder, own, key)[0] < len(own)):
        because = f": its tokenizer makes {sequences} different sequences of them" if sequences < COUNT else ""
        raise InputError(
            f"{key}: {COUNT} different captions have {found} different embeddings{because}",
            "Are the tokenizer's files this model's, and all there? Does max_length leave room beside the prompt?"
            if because
            else "Are the weights those of this model, and whole? Is the pooling the one it was trained with?",
        )


def _captions_apart(encoder: Encoder, captions: Sequence[str], key: str) -> tuple[int, int]:
    """How many different embeddings, and sequences of tokens, some captions have."""
    ids = encoder.load(pd.DataFrame({"text": list(captions)}))
    return _distinct(_embedded(encoder, ids, key)), len(torch.unique(ids, dim=0))


@torch.inference_mode()
def _embedded(encoder: Encoder, inputs: Tensor, key: str) -> Tensor:
    parameter = next(encoder.module.parameters(), torch.empty(0))
    rows: Tensor = encoder.module.eval()(inputs.to(parameter.device)).double().cpu()
    if not torch.isfinite(rows).all():
        raise InputError(
            f"{key}: the embeddings hold values that are no numbers", "Are the weights whole? Does dtype hold them?"
        )
    return rows


def _distinct(rows: Tensor) -> int:
    """How many of (n, d) rows differ by more than rounding from all before them."""
    scale = float(rows.norm(dim=1).max())
    near = torch.cdist(rows, rows) <= _SAME * max(scale, 1e-30)
    return int((~near.tril(-1).any(1)).sum())


def _pictures() -> list[Image.Image]:
    """Sixteen patterns of five by four colours, 160 x 128 pixels."""
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8)).resize((160, 128), Image.Resampling.BICUBIC)
        for _ in range(COUNT)
    ]
