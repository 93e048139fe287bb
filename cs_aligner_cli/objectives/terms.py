"""An objective as a weighted sum of named terms, evaluated together with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import as_rows
from cs_aligner_cli.common.token_sequences import token_mask
from cs_aligner_cli.objectives.bandwidths import Bandwidth
from cs_aligner_cli.objectives.gram import GramDivergence, InfoNce, evaluate_pairs
from cs_aligner_cli.objectives.tokens import token_cs_divergence

Edge: TypeAlias = tuple[str, str]
IMAGE_TEXT: Edge = ("image", "text")


class Logits(NamedTuple):
    """What turns cosines into logits: ``scale * cosine + bias``, both 0-d tensors."""

    scale: Tensor
    bias: Tensor


class Pairs(NamedTuple):
    """Which rows of two modalities belong together: row ``first[p]`` and row ``second[p]``, (P,) each.

    None stands for all rows in order. Pairs of one of the (P,) ``groups`` are no negatives of each other.
    """

    first: Tensor | None = None
    second: Tensor | None = None
    groups: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Clouds:
    """The embeddings that the terms of one step see.

    ``rows``: modality to (N, d), N being any number for each. ``pairs``: for every edge, which rows are pairs; what
    is in no pair is seen by divergences alone. ``memory``: modality to (K, d) further rows that divergences see,
    and that no gradient reaches. ``tokens``: modality to the tokens (N, L, d) behind the rows, padded with NaN
    (``ragged.pad_tokens``), where a term sees them.
    """

    rows: Mapping[str, Tensor]
    pairs: Mapping[Edge, Pairs]
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    tokens: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_pairs(cls, image: Tensor, text: Tensor, groups: Tensor | None = None) -> Clouds:
        """Images (N, d) and texts (N, d), row by row a pair."""
        return cls({"image": image, "text": text}, {IMAGE_TEXT: Pairs(groups=groups)})

    def pair(self, edge: Edge) -> tuple[Tensor, Tensor, Tensor | None]:
        """The pairs of one edge, row by row (P, d) each, and their groups."""
        first, second, groups = self.pairs[edge]
        x, y = (self.rows[modality] for modality in edge)
        return x if first is None else x[first], y if second is None else y[second], groups

    def cloud(self, modality: str) -> Tensor:
        """All rows of a modality, its memory at the end."""
        rows, past = self.rows[modality], self.memory.get(modality)
        return rows if past is None else torch.cat([rows, past.to(rows.dtype)])

    @property
    def only_pairs(self) -> bool:
        """Whether there are just images and texts, row by row a pair, so that both kinds of terms see the same."""
        pairs = self.pairs.get(IMAGE_TEXT, Pairs())
        return len(self.rows) == 2 and pairs.first is pairs.second is None and not self.memory


PairLoss: TypeAlias = Callable[[Tensor, Tensor, Logits, Tensor | None], Tensor]
TermLoss: TypeAlias = Callable[[Clouds, Logits], Tensor]


def on_pairs(loss: PairLoss, edges: Sequence[Edge] = (IMAGE_TEXT,)) -> TermLoss:
    """``loss(x, y, logits, groups)`` of row-paired x and y, averaged over edges."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        values = []
        for edge in edges:
            x, y, groups = clouds.pair(edge)
            values.append(loss(x, y, logits, groups))
        return torch.stack(values).mean()

    return term


def on_clouds(divergence: Callable[[Tensor, Tensor], Tensor], edges: Sequence[Edge] = (IMAGE_TEXT,)) -> TermLoss:
    """``divergence(x, y)`` between all rows of two modalities, averaged over edges."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        return torch.stack([divergence(clouds.cloud(first), clouds.cloud(second)) for first, second in edges]).mean()

    return term


def on_tokens(bandwidth: Bandwidth, edge: Edge = IMAGE_TEXT) -> TermLoss:
    """``token_cs_divergence`` of the tokens of an edge's pairs."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        first, second, _ = clouds.pairs[edge]
        x, y = (clouds.tokens[modality] for modality in edge)
        x, y = x if first is None else x[first], y if second is None else y[second]
        return token_cs_divergence(x, y, bandwidth, token_mask(x), token_mask(y))

    return term


@dataclass(frozen=True)
class Term:
    """One summand ``weight * loss(clouds, logits)``; the loss returns a scalar tensor.

    ``relative``, where given, replaces the weight: it is chosen so that the tangential norm of the term's weighted
    gradient (``TermValues.grad_norms``) is ``relative`` times that of the first term's. ``sums`` says that the loss is
    one of the sums over pairs that ``evaluate_pairs`` can take together, and which.
    """

    name: str
    weight: float
    loss: TermLoss
    relative: float | None = None
    sums: Literal["infonce"] | GramDivergence | None = None


@dataclass(frozen=True, eq=False)
class TermValues:
    """What an objective is worth on one batch, and its gradient with respect to the embeddings.

    ``values``: name to unweighted loss, a detached scalar. ``weights``: name to the weight it had. ``grad_norms``:
    name to the L2 norm of the gradient of weight * loss with respect to all rows together, without each row's radial
    part, which the normalisation of rows takes away; empty unless the terms were evaluated separately. ``total``: the
    weighted sum. ``grads``: modality to the gradient of ``total``, in the shape and dtype of the rows that went in;
    ``token_grads`` and ``logit_grads`` likewise.
    """

    values: dict[str, Tensor]
    weights: dict[str, float]
    grad_norms: dict[str, Tensor]
    total: Tensor
    grads: dict[str, Tensor]
    token_grads: dict[str, Tensor]
    logit_grads: Logits


def evaluate_terms(terms: Sequence[Term], clouds: Clouds, logits: Logits, *, separate: bool = True) -> TermValues:
    """Evaluate every term on the clouds' rows and tokens and the logits' scalars, with the gradient of their sum.

    The inputs' graphs are neither used nor freed: the caller sends the gradient on through them by
    ``torch.autograd.backward([image, text, *logits], [grads["image"], grads["text"], *logit_grads])``, which equals
    ``total.backward()`` of the summed loss. Gradients are summed in float32 or better.

    ``separate`` takes every term by itself, which tells its gradient's norm; a term with a ``relative`` weight
    needs that. Otherwise InfoNCE and a divergence of kernel sums that stand first share their tiles, which is faster,
    where both see the same rows.

    A term of weight 0 is valued, but adds neither to the total nor to the gradient, even where its value is
    not finite; its gradient norm is 0. Raises ValueError if two terms share a name.
    """
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise ValueError(f"terms must have distinct names, got {names}")
    leaves = _leaves(clouds, logits)
    if separate or not (clouds.only_pairs and _share_tiles(terms)):
        found = _separately(terms, clouds, leaves)
    else:
        found = _together(terms[:2], clouds, leaves)
        if len(terms) > 2:
            found = _added(found, _separately(terms[2:], clouds, leaves))
    inputs = [*clouds.rows.values(), *clouds.tokens.values(), *logits]
    dtypes = [given.dtype for given in inputs]
    grads = [grad.to(dtype) for grad, dtype in zip(found.grads, dtypes, strict=True)]
    weights = {term.name: weight for term, weight in zip(terms, found.weights, strict=True)}
    total = sum((weights[n] * value for n, value in found.values.items() if weights[n]), leaves[0].new_zeros(()))
    of_rows = dict(zip(clouds.rows, grads, strict=False))
    of_tokens = dict(zip(clouds.tokens, grads[len(of_rows) :], strict=False))
    return TermValues(found.values, weights, found.norms, total, of_rows, of_tokens, Logits(*grads[-2:]))


class _Found(NamedTuple):
    values: dict[str, Tensor]
    weights: list[float]
    norms: dict[str, Tensor]
    grads: list[Tensor]


def _separately(terms: Sequence[Term], clouds: Clouds, leaves: Sequence[Tensor]) -> _Found:
    values: dict[str, Tensor] = {}
    weights: list[float] = []
    norms: dict[str, Tensor] = {}
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    tokens = dict(zip(clouds.tokens, leaves[len(clouds.rows) :], strict=False))
    seen = replace(clouds, rows=dict(zip(clouds.rows, leaves, strict=False)), tokens=tokens)
    logits = Logits(*leaves[-2:])
    for term in terms:
        counts = term.weight != 0 or term.relative is not None
        with torch.set_grad_enabled(counts):
            value = term.loss(seen, logits)
        values[term.name] = value.detach()
        grads = _gradients(value, leaves) if counts else [torch.zeros_like(leaf) for leaf in leaves]
        norm = _tangential_norm(grads[:-2], leaves)
        weight = term.weight
        if term.relative is not None:
            weight = term.relative * float(norms[terms[0].name] / norm) if norm > 0 else 0.0
        weights.append(weight)
        norms[term.name] = abs(weight) * norm
        if weight != 0:
            sums = [total + weight * grad for total, grad in zip(sums, grads, strict=True)]
    return _Found(values, weights, norms, sums)


def _tangential_norm(grads: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """The L2 norm of gradients (..., d), projected to the tangent space of the sphere that each row lies on."""
    squares = grads[0].new_zeros(())
    for grad, row in zip(grads, rows, strict=False):
        at = row.detach().nan_to_num()  # tokens are padded with NaN, which no gradient reaches
        along = (grad * at).sum(dim=-1, keepdim=True) / at.square().sum(dim=-1, keepdim=True).clamp(min=1e-30)
        squares = squares + (grad - along * at).square().sum()
    return squares.sqrt()


def _share_tiles(terms: Sequence[Term]) -> bool:
    """Whether the terms begin with InfoNCE and a divergence of kernel sums, both with a weight that is known."""
    return (
        len(terms) >= 2
        and terms[0].sums == "infonce"
        and isinstance(terms[1].sums, GramDivergence)
        and all(term.weight != 0 and term.relative is None for term in terms[:2])
    )


def _together(terms: Sequence[Term], clouds: Clouds, leaves: Sequence[Tensor]) -> _Found:
    pairwise, divergence = terms
    assert isinstance(divergence.sums, GramDivergence)
    image, text, *tokens, scale, bias = leaves
    dtype = torch.promote_types(image.dtype, text.dtype)
    weights = [pairwise.weight, divergence.weight]
    found = evaluate_pairs(
        image.to(dtype),
        text.to(dtype),
        InfoNce(scale, clouds.pairs[IMAGE_TEXT].groups),
        divergence.sums,
        weights=(weights[0], weights[1]),
    )
    assert found.infonce is not None and found.divergence is not None
    assert found.x_grad is not None and found.y_grad is not None and found.scale_grad is not None
    values = {pairwise.name: found.infonce, divergence.name: found.divergence}
    unseen = [torch.zeros_like(leaf) for leaf in tokens]
    grads = [found.x_grad, found.y_grad, *unseen, found.scale_grad, torch.zeros_like(bias)]
    return _Found({name: value.to(dtype) for name, value in values.items()}, weights, {}, grads)


def _added(one: _Found, other: _Found) -> _Found:
    """Both, without norms: those of the first were not taken apart."""
    grads = [a + b for a, b in zip(one.grads, other.grads, strict=True)]
    return _Found({**one.values, **other.values}, one.weights + other.weights, {}, grads)


def _leaves(clouds: Clouds, logits: Logits) -> list[Tensor]:
    """Fresh leaves with the inputs' values; half precisions are widened so that gradients are not rounded."""
    rows = [as_rows(rows.detach(), modality) for modality, rows in clouds.rows.items()]
    others = [*clouds.tokens.values(), *logits]
    widened = [given.detach().to(torch.promote_types(given.dtype, torch.float32)) for given in others]
    # Detached once more: where nothing was widened, rows may be the caller's own tensors.
    return [leaf.detach().requires_grad_() for leaf in (*rows, *widened)]


def _gradients(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]
