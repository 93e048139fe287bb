"""Several layers of an encoder at once: the pooled states of its blocks, side by side, from one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.encoders.encoder import Encoder
from cs_aligner_cli.encoders.inputs import ids_and_mask, in_chunks_of_like_length
from cs_aligner_cli.encoders.tokens import pool_tokens

# Further than this from the tower's own embedding of an example, the library's way to inner layers is another model.
_SAME = 1e-4


class BlockStates(Protocol):
    """How a kind of encoder gives its blocks' states; there are ``count`` of them.

    Called with a model's input and ascending numbers of blocks before the last, from 1, it gives the tower's own
    embedding (B, dim) and the pooled state (B, width) of each of those. ``pooling`` is how these are pooled, in a word.
    """

    count: int
    pooling: str

    def __call__(self, inputs: Tensor, inner: Sequence[int]) -> tuple[Tensor, list[Tensor]]: ...


class LayerTower(nn.Module):
    """The pooled states of a tower's blocks ``numbers``, in that order; the last block's is the tower's embedding.

    One is as it comes. Of several each is scaled to unit length and divided by the root of their number, so that the
    cosine of two items is the mean of their cosines in the layers: later blocks, whose states are longer, do not
    outweigh the others.
    """

    def __init__(self, tower: nn.Module, states: BlockStates, numbers: Sequence[int]) -> None:
        super().__init__()
        self.tower, self.states, self.numbers = tower, states, tuple(numbers)
        self._inner = sorted(n for n in numbers if n < states.count)

    def forward(self, inputs: Tensor) -> Tensor:
        """The tower's input to (B, sum of widths)."""
        return in_chunks_of_like_length(self._beside, inputs) if inputs.ndim == 2 else self._beside(inputs)

    def blocks(self, inputs: Tensor) -> list[Tensor]:
        """The (B, width) states of each of ``numbers``, as they come."""
        own, inner = self.states(inputs, self._inner) if self._inner else (self.tower(inputs), [])
        found = {self.states.count: own, **dict(zip(self._inner, inner, strict=True))}
        return [found[n] for n in self.numbers]

    def _beside(self, inputs: Tensor) -> Tensor:
        blocks = self.blocks(inputs)
        if len(blocks) > 1:
            blocks = [l2_normalize(block.float()) / len(blocks) ** 0.5 for block in blocks]
        return torch.cat(blocks, 1)


def with_layers(encoder: Encoder, layers: Sequence[int], key: str) -> Encoder:
    """The encoder whose embedding is that of its ``layers``, from 1 or from the end (``LayerTower``).

    Its identity says which blocks (``layers``), how wide each is (``widths``) and how those before the last are pooled
    (``inner_pooling``). Raises InputError, naming ``key``, where the model has no such layers, or where its library
    gives none.
    """
    tower, example = encoder.module.eval(), _example(encoder)
    with _reading(key):
        states = _STATES[encoder.identity["kind"]](tower, encoder, example)
    numbers = _numbers(layers, states.count, key)
    with _reading(key):
        widths = [block.shape[1] for block in LayerTower(tower, states, numbers).blocks(example)]
        own, plain = LayerTower(tower, states, sorted({1, states.count})).blocks(example)[-1], tower(example)
    if float((own - plain).norm()) > _SAME * float(plain.norm()):
        raise InputError(f"{key}: the model gives another embedding beside its inner layers")
    layout = {"layers": [*numbers], "widths": widths, "inner_pooling": states.pooling}
    identity = {**encoder.identity, **layout}
    return replace(encoder, module=LayerTower(tower, states, numbers), dim=sum(widths), identity=identity)


@contextmanager
def _reading(key: str) -> Iterator[None]:
    """Turn what a library raises where it has no inner layers to give into one message."""
    try:
        with torch.inference_mode():
            yield
    except (ValueError, RuntimeError, AttributeError, AssertionError, TypeError, LookupError) as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{key}: the model gives no inner layers: {why}") from None


def _numbers(layers: Sequence[int], count: int, key: str) -> list[int]:
    """Numbers from 1 of layers of which some count from the end."""
    for n in layers:
        if not 1 <= abs(n) <= count:
            raise InputError(
                f"{key}: the model has {count} layers, and {n} is none of them",
                f"They are 1 to {count}, or -1 (the last) to -{count}.",
            )
    numbers = [n if n > 0 else count + 1 + n for n in layers]
    for i, n in enumerate(numbers):
        if n in numbers[:i]:
            raise InputError(f"{key}: {layers[numbers.index(n)]} and {layers[i]} are one layer of {count}")
    return numbers


def _example(encoder: Encoder) -> Tensor:
    if encoder.modality == "text":
        return encoder.load(pd.DataFrame({"text": ["a few words"]}))
    picture: Tensor = encoder.load.preprocess(Image.new("RGB", (64, 48), "grey"))[None]  # type: ignore[attr-defined]
    return picture


class _OfTransformers:
    """Hidden states, pooled as the tower pools: where it has a head of its own, over the tokens that this reads."""

    def __init__(self, tower: Any, encoder: Encoder, example: Tensor) -> None:
        self.tower, self.how, self.first = tower, tower.pooling, 0
        if tower.pooling in ("features", "pooler"):
            self.how, self.first = _read_by_head(tower, example)
        self.pooling = f"{self.how} from token {self.first}" if self.first else self.how
        output, _ = self.tower.output(example, output_hidden_states=True)
        self.count = len(output.hidden_states) - 1  # the first is that of the embedding table

    def __call__(self, inputs: Tensor, inner: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        output, mask = self.tower.output(inputs, output_hidden_states=True)
        states = [output.hidden_states[n] for n in inner]
        states = [h[:, self.first :] if self.first else h for h in states]
        return self.tower.pooled(output, mask), [pool_tokens(h, self.how, mask) for h in states]


def _read_by_head(tower: Any, example: Tensor) -> tuple[str, int]:
    """How a tower with a head of its own pools the last block's tokens, and of a picture the first that it reads.

    Families differ (the end of a text in CLIP, its first token in ChineseCLIP, the mean of patches in BEiT), so the
    tower itself says it: it reads the tokens of an example that have a gradient. The first alone is a class token, the
    last alone the end of a text; several, by attention or mean, are pooled by their mean.
    """
    with torch.inference_mode(False), torch.enable_grad():
        output, mask = tower.output(example, output_hidden_states=True)
        pooled = tower.pooled(output, mask)[0]
        weights = torch.arange(1, len(pooled) + 1, dtype=pooled.dtype, device=pooled.device)
        states = [output.hidden_states[-1], getattr(output, "last_hidden_state", None)]
        # Weighted, since a plain sum has no gradient behind a layer norm.
        last = [state for state in states if state is not None and state.requires_grad]
        gradients = torch.autograd.grad((pooled * weights).sum(), last, allow_unused=True)
    found = next((gradient for gradient in gradients if gradient is not None), None)
    if found is None or found.ndim != 3:
        return "mean", 0
    read = found[0].ne(0).any(1).nonzero().flatten().tolist()
    if read == [0]:
        return "cls", 0
    if mask is not None:
        return "last" if read == [int(mask[0].sum()) - 1] else "mean", 0
    return "mean", read[0] if read else 0


class _OfSentenceTransformers:
    """Hidden states through the pipeline's own pooling module, without what follows it."""

    def __init__(self, tower: Any, encoder: Encoder, example: Tensor) -> None:
        from sentence_transformers.sentence_transformer.modules import Pooling

        self.tower = tower
        self.pool: Any = next((part for part in tower.pipeline if isinstance(part, Pooling)), None)
        if self.pool is None:
            raise LookupError("its pipeline has no pooling of tokens")
        self.pooling = "pipeline"
        encoder.backbone.config.output_hidden_states = True
        self.count = len(tower.output(example)["all_layer_embeddings"]) - 1

    def __call__(self, inputs: Tensor, inner: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        output = self.tower.output(inputs)
        read = {"attention_mask": output["attention_mask"], "prompt_length": self.tower.unpooled}
        states = (output["all_layer_embeddings"][n] for n in inner)
        pooled = [self.pool({"token_embeddings": h, **read})["sentence_embedding"] for h in states]
        return output["sentence_embedding"], pooled


class _OfTimm:
    """timm's intermediate features: their class token where the model pools by it, else the mean of patches or map."""

    def __init__(self, tower: Any, encoder: Encoder, example: Tensor) -> None:
        self.model, self.run = tower, tower.forward_intermediates
        self.count = len(tower.feature_info)
        self.by_class = _pools_by_class(tower)
        self.pooling = "cls" if self.by_class else "mean"

    def __call__(self, inputs: Tensor, inner: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        options = {"return_prefix_tokens": True} if self.by_class else {}
        last, found = self.run(inputs, indices=[n - 1 for n in inner], **options)
        pooled = [state[1][:, 0] if self.by_class else pool_tokens(state, "mean", None) for state in found]
        return self.model.forward_head(last), pooled


def _pools_by_class(model: Any) -> bool:
    return bool(getattr(model, "global_pool", "") == "token" and getattr(model, "num_prefix_tokens", 0))


class _OfOpenClip:
    """open_clip's intermediate features, pooled as the tower pools, else by their mean."""

    def __init__(self, tower: Any, encoder: Encoder, example: Tensor) -> None:
        self.tower, self.run = tower, tower.forward_intermediates
        self.text = encoder.modality == "text"
        trunk = getattr(tower, "trunk", None)
        stages = len(trunk.feature_info) if trunk is not None else 5  # CLIP's ResNet: its stem and four
        blocks = getattr(getattr(tower, "transformer", None), "resblocks", None)
        self.count = len(blocks) if blocks is not None else stages
        own = getattr(tower, "pool_type", "") == "tok" and getattr(tower, "attn_pool", None) is None
        self.by_class = _pools_by_class(trunk) or own
        self.pooling = "cls" if self.by_class else "mean"
        if self.text:
            self.pooling = "cls" if tower.cls_emb is not None else tower.pool_type

    def __call__(self, inputs: Tensor, inner: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        # With the last block among them: without it open_clip's ResNet stops early, and embeds what it then has.
        indices = [*(n - 1 for n in inner), self.count - 1]
        if self.text:
            ids, _ = ids_and_mask(inputs, self.tower.pad_id)  # it reads whole contexts, where the tower's loader cuts
            ids = nn.functional.pad(ids, (0, self.tower.context_length - ids.shape[1]), value=self.tower.pad_id)
            found = self.run(ids, indices, output_fmt="NLC", output_extra_tokens=True)
            return found["text_features"], self._texts(found, ids)[:-1]
        found = self.run(inputs, indices, output_extra_tokens=self.by_class)
        if self.by_class:
            pooled = [state[:, 0] for state in found["image_intermediates_prefix"]]
        else:
            pooled = [pool_tokens(state, "mean", None) for state in found["image_intermediates"]]
        return found["image_features"], pooled[:-1]

    def _texts(self, found: dict[str, Any], ids: Tensor) -> list[Tensor]:
        from open_clip.transformer import text_global_pool

        if self.tower.cls_emb is not None:
            return [state[:, 0] for state in found["text_intermediates_suffix"]]
        how = {"pool_type": self.tower.pool_type, "eos_token_id": getattr(self.tower, "eos_id", None)}
        return [text_global_pool(state, ids, **how) for state in found["text_intermediates"]]


_STATES: dict[str, Callable[[Any, Encoder, Tensor], BlockStates]] = {
    "transformers": _OfTransformers,
    "sentence_transformers": _OfSentenceTransformers,
    "timm": _OfTimm,
    "open_clip": _OfOpenClip,
}
