"""Items to look at: the best and the worst pairs of a store, and what it finds for some queries."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.gap.paired_rows import evenly_spaced

_RESULTS = 3


def examples(
    image: npt.NDArray[np.float32],
    text: npt.NDArray[np.float32],
    owner: Ints,
    pairs: tuple[Ints, Ints],
    count: int,
) -> dict[str, Any]:
    """Choose rows to show from image (M, d), text (N, d) and owner (N,), each text's image (-1: none).

    ``pairs`` are row-paired (images, texts). Returns "best" and "worst", ``count`` pairs each as {"image", "text",
    "cosine"}, by cosine; "to_images" and "to_texts", for ``count`` evenly spaced pairs the 3 nearest images of the
    text and the 3 nearest texts of the image, as {"query", "results": [{"row", "cosine", "hit"}]}.
    """
    x, y = _unit(image), _unit(text)
    cosines = (x[pairs[0]] * y[pairs[1]]).sum(axis=1)
    order = np.argsort(-cosines, kind="stable")
    few = min(count, len(order) // 2)
    chosen = evenly_spaced(len(order), few)
    images, texts = pairs[0][chosen], pairs[1][chosen]
    return {
        "best": [_pair(pairs, cosines, i) for i in order[:few]],
        "worst": [_pair(pairs, cosines, i) for i in order[::-1][:few]],
        "to_images": [_nearest(q, y[q] @ x.T, owner[q] == np.arange(len(x))) for q in texts],
        "to_texts": [_nearest(q, x[q] @ y.T, owner == q) for q in images],
    }


def data_uri(jpeg: bytes) -> str:
    """A JPEG as an address that holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    unit: npt.NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return unit


def _pair(pairs: tuple[Ints, Ints], cosines: npt.NDArray[np.float32], i: int) -> dict[str, Any]:
    return {"image": int(pairs[0][i]), "text": int(pairs[1][i]), "cosine": float(cosines[i])}


def _nearest(query: int, cosines: npt.NDArray[np.float32], true: npt.NDArray[np.bool_]) -> dict[str, Any]:
    rows: Sequence[int] = np.argsort(-cosines, kind="stable")[:_RESULTS].tolist()
    results = [{"row": row, "cosine": float(cosines[row]), "hit": bool(true[row])} for row in rows]
    return {"query": int(query), "results": results}
