"""How well pictures agree with their prompts and with the embeddings that they were drawn from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from cs_aligner_cli.common.arrays import ArrayLike, as_rows, l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.generation.samples import samples
from cs_aligner_cli.retrieval import evaluate_retrieval

RANKS = (1, 10)


def row_cosines(x: ArrayLike, y: ArrayLike) -> Floats:
    """(N,) cosines between the rows of x and y (N, d), in float64; a zero row has cosine 0.

    Raises InputError unless the shapes are equal and all is finite.
    """
    a, b = samples(x, y)
    if len(a) != len(b):
        raise InputError(f"rows are compared one by one, but there are {len(a)} and {len(b)}")
    cosines: Floats = (l2_normalize(a) * l2_normalize(b)).sum(dim=1).clamp(-1, 1).numpy()
    return cosines


def clip_score(picture: ArrayLike, prompt: ArrayLike) -> float:
    """100 times the mean of max(cosine, 0) of each picture (N, d) with its own prompt (Hessel et al. 2021)."""
    return 100 * float(np.maximum(row_cosines(picture, prompt), 0).mean())


def prompt_retrieval(picture: ArrayLike, prompt: ArrayLike, prompts: Sequence[str]) -> dict[str, float]:
    """Among all prompts (N, d), is a picture's (N, d) own one the nearest: R@1 and R@10, image to prompt.

    Prompts of equal text stand in the gallery once. With fewer than ten of them R@10 is left out.
    """
    texts = {text: i for i, text in reversed([*enumerate(prompts)])}  # the first of equal ones
    rows: Ints = np.array(sorted(texts.values()), np.int64)
    place = {prompts[row]: i for i, row in enumerate(rows)}
    own = torch.tensor([place[text] for text in prompts])
    picture, gallery = as_rows(picture, "picture"), as_rows(prompt, "prompt")[torch.from_numpy(rows)]
    ks = [k for k in RANKS if k <= len(rows)]
    # As captions to images: a picture has one prompt, a prompt may have several pictures.
    found = evaluate_retrieval(gallery, picture, own, ks)["t2i"]
    return {f"prompt_R@{k}": float(found[f"R@{k}"]) for k in ks}
