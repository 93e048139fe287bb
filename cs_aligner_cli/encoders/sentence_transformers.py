"""Text towers from sentence-transformers folders: the whole pipeline that the folder describes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders.encoder import CaptionLimit, Encoder, TokenReader
from cs_aligner_cli.encoders.hub import LOCAL, refuse_absent, refuse_without_tokenizer, source_of, weights_digest
from cs_aligner_cli.encoders.inputs import (
    ids_and_mask,
    in_chunks_of_like_length,
    pad_on_the_right,
    padded_ids,
    refuse_foreign_tokenizer,
    tokenizer_identity,
)
from cs_aligner_cli.encoders.tokens import SentenceTokens
from cs_aligner_cli.encoders.transformers import dim_of, learned_positions, loading, refuse_too_long
from cs_aligner_cli.recipe.encoders import SentenceTransformersEncoder


class _Pipeline(nn.Module):
    """All modules of the pipeline, on padded token ids, of which it leaves the first ``unpooled`` (a prompt's) out of
    its pooling."""

    def __init__(self, pipeline: SentenceTransformer, pad_id: int, unpooled: int) -> None:
        super().__init__()
        self.pipeline, self.pad_id, self.unpooled = pipeline, pad_id, unpooled

    def forward(self, inputs: Tensor) -> Tensor:
        """Padded token ids (B, L) to (B, dim)."""
        return in_chunks_of_like_length(self._embed, inputs)

    def _embed(self, inputs: Tensor) -> Tensor:
        return self.output(inputs)["sentence_embedding"]  # type: ignore[no-any-return]

    def output(self, inputs: Tensor) -> dict[str, Any]:
        """What the pipeline gives for padded token ids (B, L)."""
        ids, mask = ids_and_mask(inputs, self.pad_id)
        features = {"input_ids": ids, "attention_mask": mask, "modality": "text", "prompt_length": self.unpooled}
        return dict(self.pipeline(features))


def load_sentence_transformers(spec: SentenceTransformersEncoder, key: str) -> Encoder:
    """A text tower; ``prompt`` defaults to the folder's own default prompt."""
    refuse_absent(spec.model, key, "modules.json")
    if spec.model.startswith(LOCAL):
        refuse_without_tokenizer(_first_module(Path(source_of(spec.model)), key), key)
    with loading(spec.model, key):
        pipeline = SentenceTransformer(source_of(spec.model), device="cpu", trust_remote_code=False)
    backbone = pipeline.transformers_model
    if backbone is None:
        raise InputError(f"{key}: {spec.model} does not begin with a transformer; only such pipelines are supported")
    tokenizer: Any = pipeline.tokenizer
    pad_on_the_right(tokenizer, key)
    refuse_foreign_tokenizer(len(tokenizer), backbone.get_input_embeddings().num_embeddings, key)
    learned, limit = learned_positions(backbone), pipeline.max_seq_length
    if limit is None:
        limit = learned or tokenizer.model_max_length
    refuse_too_long(limit, learned, f"{key}: max_seq_length of {spec.model}")
    prompt = spec.prompt
    if prompt is None:
        prompt = (pipeline.prompts.get(pipeline.default_prompt_name or "") or "") + "{text}"

    def load(rows: pd.DataFrame) -> Tensor:
        return padded_ids(pipeline.preprocess([prompt.replace("{text}", text) for text in rows["text"]]))

    def lengths(texts: Sequence[str]) -> list[int]:
        prompted = [prompt.replace("{text}", text) for text in texts]
        return [len(ids) for ids in tokenizer(prompted, verbose=False)["input_ids"]]

    identity = {
        "kind": "sentence_transformers",
        "model": spec.model,
        "pipeline": [type(part).__name__ for part in pipeline],
        "weights": weights_digest(pipeline),
        "tokenizer": tokenizer_identity(tokenizer),
        "prompt": prompt,
        "max_length": pipeline.max_seq_length,
    }
    unpooled = _unpooled(pipeline, prompt)
    if unpooled:
        identity["unpooled"] = unpooled
    tower = _Pipeline(pipeline, tokenizer.pad_token_id or 0, unpooled)
    example = load(pd.DataFrame({"text": ["a"]}))
    dim = dim_of(tower, example, "text", key)
    tokens = TokenReader(SentenceTokens(pipeline, tower.pad_id), load, lambda: example, "text tokens")
    reads = CaptionLimit(limit, lengths)
    return Encoder("text", dim, tower, load, identity, backbone, tokens=tokens, caption_limit=reads)


def _unpooled(pipeline: SentenceTransformer, prompt: str) -> int:
    """How many tokens of a prompt before the text a pipeline leaves out of its pooling, as INSTRUCTOR's does."""
    before = prompt.partition("{text}")[0]
    if not before or all(getattr(part, "include_prompt", True) for part in pipeline):
        return 0
    return int(pipeline.preprocess(["a"], prompt=before).get("prompt_length") or 0)


def _first_module(folder: Path, key: str) -> Path:
    """The folder of the pipeline's transformer, with the tokenizer: the first of modules.json."""
    try:
        listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        return folder / str(listed[0]["path"])
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{key}: {folder / 'modules.json'} lists no modules") from None
