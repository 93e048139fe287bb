"""The tokens of every kind of encoder: modules from a tower's input to (B, L, dim) tokens, padded with NaN.

Image tokens are those of the patches (or of the cells of a feature map); class and register tokens are left out. Text
tokens are all that the tokenizer makes of a caption, its special tokens included, after the model's last norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cs_aligner_cli.common.token_sequences import pad_tokens
from cs_aligner_cli.encoders.inputs import ids_and_mask


def all_tokens(tokens: Tensor) -> Tensor:
    """(B, L, dim) without padding, in the form of padded tokens."""
    return pad_tokens(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))


def cells(features: Tensor, channels_last: bool = False) -> Tensor:
    """A map (B, C, H, W), or (B, H, W, C), as tokens (B, H W, C)."""
    return features.flatten(1, 2) if channels_last else features.flatten(2).mT


def pool_tokens(hidden: Tensor, pooling: str, mask: Tensor | None) -> Tensor:
    """One vector per item (B, dim) from hidden states (B, L, dim) or maps (B, dim, H, W): the mean over the tokens that
    ``mask`` (B, L) keeps, the first of them (cls), or the last one (last)."""
    if hidden.ndim == 4:
        hidden = cells(hidden)
    if pooling == "cls":
        return hidden[:, 0]
    if mask is None:
        return hidden[:, -1] if pooling == "last" else hidden.mean(1)
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


class OpenClipImageTokens(nn.Module):
    """open_clip's own tokens of its vision transformers (``output_tokens``), or a timm trunk's."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    @staticmethod
    def reads(tower: Any) -> bool:
        """Whether a tower has tokens; open_clip's own ResNets have none."""
        return hasattr(tower, "trunk") or hasattr(tower, "output_tokens")

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to (B, patches, width)."""
        if hasattr(self.tower, "trunk"):
            return _timm_tokens(self.tower.trunk, pixels)
        return all_tokens(_with_tokens(self.tower, pixels))


def end_of_text(tower: Any, ids: Tensor) -> Tensor | None:
    """(B,) places of the token that a tower pools, or None where it does not pool by the end of the text."""
    if getattr(tower, "pool_type", "") not in ("argmax", "eos") or tower.cls_emb is not None:
        return None
    return ids.argmax(1) if tower.pool_type == "argmax" else (ids == tower.eos_id).int().argmax(1)


class OpenClipTextTokens(nn.Module):
    """open_clip's tokens of a caption (``output_tokens``) up to its end-of-text token."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids (B, L) to (B, L, width); without a class token that the model appends or pools by."""
        tokens = _with_tokens(self.tower, ids)
        return pad_tokens(tokens, self._mask(ids)[:, -tokens.shape[1] :])

    def _mask(self, ids: Tensor) -> Tensor:
        if hasattr(self.tower, "config"):  # a model of transformers
            return ids.ne(self.tower.config.pad_token_id)
        ends = end_of_text(self.tower, ids)
        if ends is None:
            return ids.ne(self.tower.pad_id)
        return torch.arange(ids.shape[1], device=ids.device) <= ends.unsqueeze(1)


def _with_tokens(tower: Any, inputs: Tensor) -> Tensor:
    """The tokens that an open_clip tower gives beside its pooled output, where it is told to."""
    before = tower.output_tokens
    tower.output_tokens = True
    try:
        tokens: Tensor = tower(inputs)[1]
        return tokens
    finally:
        tower.output_tokens = before


class TransformersTextTokens(nn.Module):
    """The last hidden states of a text model of transformers, where the attention mask is 1."""

    def __init__(self, model: Any, pad_id: int, masked: bool) -> None:
        super().__init__()
        self.model, self.pad_id, self.masked = model, pad_id, masked

    def forward(self, inputs: Tensor) -> Tensor:
        """Padded token ids (B, L) to (B, L, hidden size)."""
        ids, mask = ids_and_mask(inputs, self.pad_id)
        hidden = getattr(self.model, "text_model", self.model)(input_ids=ids, attention_mask=mask).last_hidden_state
        # SigLIP reads its padding; the first token of it is its end of text.
        kept = mask.bool() if self.masked else (ids == self.pad_id).cumsum(1) <= 1
        return pad_tokens(hidden, kept)


class TransformersImageTokens(nn.Module):
    """The last hidden states of a vision model of transformers that belong to patches, or its last feature map."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to (B, patches, hidden size)."""
        model = getattr(self.model, "vision_model", self.model)
        hidden = model(pixel_values=pixels).last_hidden_state
        if hidden.ndim == 4:
            return all_tokens(cells(hidden))
        return all_tokens(hidden[:, prefix_tokens(self.model, hidden, pixels) :])


def prefix_tokens(model: Any, hidden: Tensor, pixels: Tensor) -> int:
    """How many class, distillation and register tokens stand before the patches in a vision model's (B, L, dim)."""
    patch = getattr(getattr(model, "vision_model", model).config, "patch_size", None)
    if not isinstance(patch, int):
        return 0
    patches = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
    return max(0, hidden.shape[1] - patches)  # models that merge patches have fewer tokens, and no class


class SentenceTokens(nn.Module):
    """The token embeddings of a sentence-transformers pipeline."""

    def __init__(self, pipeline: Any, pad_id: int) -> None:
        super().__init__()
        self.pipeline, self.pad_id = pipeline, pad_id

    def forward(self, inputs: Tensor) -> Tensor:
        """Padded token ids (B, L) to (B, L, hidden size)."""
        ids, mask = ids_and_mask(inputs, self.pad_id)
        output = self.pipeline({"input_ids": ids, "attention_mask": mask, "modality": "text"})
        return pad_tokens(output["token_embeddings"], mask.bool())


class TimmTokens(nn.Module):
    """The unpooled features of a timm model: its patch tokens, or the cells of its last feature map."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to (B, patches or cells, features)."""
        return _timm_tokens(self.model, pixels)


def _timm_tokens(model: Any, pixels: Tensor) -> Tensor:
    features = model.forward_features(pixels)
    if features.ndim == 4:
        return all_tokens(cells(features, getattr(model, "output_fmt", "NCHW") == "NHWC"))
    return all_tokens(features[:, getattr(model, "num_prefix_tokens", 0) :])
