"""What a reader must know of an evaluation: its protocol in words, and what was left out."""

from __future__ import annotations

from typing import Any

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.recipe.eval_retrieval import EvalRetrieval
from cs_aligner_cli.retrieval.protocol import Protocol
from cs_aligner_cli.runs.layout import HEAD_FILE, Layout

_RELEVANCE = {
    "image": "an image and its own captions",
    "text": "an image, its own captions, and all captions equal to one of them",
}
_RERANKED = f"NAME+matching: the first {{}} hits of a query, by the head in matching/NAME/{HEAD_FILE}"
TIE_RULE = "higher score first, then smaller row"
PRECISION = "float32 rows, inner products summed in float64 and rounded to float32"


def described(spec: EvalRetrieval, protocol: Protocol, mixed: str, device: str, groups: str) -> dict[str, Any]:
    """All that a table's caption must say; ``mixed``: the corpora of both modalities in words, ``groups``: the recipe's
    data.groups."""
    return {
        "relevance": str(spec.relevance) if spec.relevance else _RELEVANCE[groups],
        "hit": "any true answer among the k best",
        "galleries": spec.folds,
        "gallery_images": [len(images) for images, _ in protocol.galleries],
        "gallery_captions": [len(texts) for _, texts in protocol.galleries],
        "mixed": mixed,
        "captions_per_image": spec.captions_per_image or "all",
        "ties": TIE_RULE,
        "search": f"exact, all scores, {device}",
        "precision": PRECISION,
        "intervals": "95%, over images with their captions: of R@K Wilson's, of other metrics by a bootstrap of "
        f"{spec.bootstrap} draws"
        if spec.bootstrap
        else "none",
        **({"reranked": _RERANKED.format(spec.rerank.top_k)} if spec.rerank else {}),
    }


def remarks(protocol: Protocol, captions: int, layout: Layout, cut: str) -> list[str]:
    """What was left out of ``captions`` captions, that the ks were ``cut``, and whether training data were measured."""
    left = captions - sum(len(texts) for _, texts in protocol.galleries)
    found = [layout.measured_on_training, cut]
    if left:
        found.append(
            f"{counted(left, 'captions', 'are')} in no gallery (captions_per_image, or without image under folds)"
        )
    return [remark for remark in found if remark]
