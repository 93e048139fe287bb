"""An objective as a weighted sum of named terms, evaluated together with its gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import as_rows
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.row_exchange import RowExchange
from cs_aligner_cli.common.token_sequences import token_mask
from cs_aligner_cli.objectives.bandwidths import Bandwidth
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT, Clouds, Edge, Logits
from cs_aligner_cli.objectives.gram import GramDivergence, GramLoss, InfoNce, InfoNceLoss, evaluate_pairs
from cs_aligner_cli.objectives.pseudo_pairs import Side
from cs_aligner_cli.objectives.tokens import token_cs_divergence

# What a pairwise loss takes: image, text, the logits, and the groups; with unpaired negatives these of both, too.
PairLoss: TypeAlias = Callable[..., Tensor]
TermLoss: TypeAlias = Callable[[Clouds, Logits], Tensor]
Sums: TypeAlias = Literal["infonce"] | GramDivergence


def on_pairs(loss: PairLoss, edges: Sequence[Edge] = (IMAGE_TEXT,)) -> TermLoss:
    """``loss(x, y, logits, groups)`` of row-paired x and y, averaged over edges."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        values = []
        for edge in edges:
            x, y, groups = clouds.pair(edge)
            values.append(loss(x, y, logits, groups))
        return torch.stack(values).mean()

    return term


def on_pairs_and_unpaired(loss: PairLoss, edges: Sequence[Edge] = (IMAGE_TEXT,)) -> TermLoss:
    """``loss(x, y, logits, groups, unpaired_x, unpaired_y)`` of pairs and of what is in none, averaged over edges."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        values = []
        for edge in edges:
            x, y, groups = clouds.pair(edge)
            values.append(loss(x, y, logits, groups, *clouds.unpaired(edge)))
        return torch.stack(values).mean()

    return term


def on_pairs_and_queue(loss: PairLoss, edges: Sequence[Edge] = (IMAGE_TEXT,)) -> TermLoss:
    """``loss(x, y, logit_scale, queue)`` of pairs and of those that the memory remembers, averaged over edges."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        values = [loss(*clouds.pair(edge)[:2], logits.scale, clouds.memory_pair(edge)) for edge in edges]
        return torch.stack(values).mean()

    return term


def on_features(loss: Callable[[Tensor, Tensor], Tensor]) -> TermLoss:
    """``loss(features, rows)`` of every modality by itself, over all of its rows, averaged over modalities."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        return torch.stack([loss(clouds.feature_cloud(m), clouds.cloud(m)) for m in clouds.rows]).mean()

    return term


def on_pseudo_pairs(loss: Callable[[Side, Side, Tensor], Tensor]) -> TermLoss:
    """``loss(image, text, logit_scale)`` of the rows and features of images and texts, in pairs and in none."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        features = replace(clouds, rows=clouds.features)
        columns = [view.pair(IMAGE_TEXT)[:2] for view in (clouds, features)]
        unpaired = [view.unpaired(IMAGE_TEXT) for view in (clouds, features)]
        image, text = (Side(columns[0][i], unpaired[0][i], columns[1][i], unpaired[1][i]) for i in (0, 1))
        return loss(image, text, logits.scale)

    return term


def on_clouds(divergence: Callable[[Tensor, Tensor], Tensor], edges: Sequence[Edge] = (IMAGE_TEXT,)) -> TermLoss:
    """``divergence(x, y)`` between all rows of two modalities, averaged over edges."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        return torch.stack([divergence(clouds.cloud(first), clouds.cloud(second)) for first, second in edges]).mean()

    return term


def on_sums(sums: Sums, edges: Sequence[Edge] = (IMAGE_TEXT,)) -> TermLoss:
    """InfoNCE of pairs or a divergence of kernel sums, averaged over edges, also of clouds that several ranks hold."""

    def term(clouds: Clouds, logits: Logits) -> Tensor:
        values = []
        for edge in edges:
            if sums == "infonce":
                x, y, groups, shares = clouds.shared_pairs(edge)
                values.append(InfoNceLoss.apply(x, y, logits.scale, groups, shares))
            else:
                x, y, shares = clouds.shared_clouds(edge)
                values.append(GramLoss.apply(x, y, sums, shares))
        return torch.stack(values).mean()

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
    one of the sums over pairs that ``evaluate_pairs`` can take together (``on_sums``), and which.
    """

    name: str
    weight: float
    loss: TermLoss
    relative: float | None = None
    sums: Sums | None = None

    @property
    def counts(self) -> bool:
        """Whether the term may have a share in the total and its gradient; its weight is 0 otherwise."""
        return self.weight != 0 or self.relative is not None


@dataclass(frozen=True, eq=False)
class TermValues:
    """What an objective is worth on one batch, and its gradient with respect to the embeddings.

    ``values``: name to unweighted loss, a detached scalar, of every term that was valued. ``weights``: name to the
    weight it had. ``grad_norms``: name to the L2 norm of the gradient of weight * loss with respect to all rows
    together, without each row's radial part, which the normalisation of rows takes away; empty unless the terms were
    evaluated separately. ``total``: the weighted sum. ``grads``: modality to the gradient of ``total``, in the shape
    and dtype of the rows that went in; ``token_grads`` and ``logit_grads`` likewise.
    """

    values: dict[str, Tensor]
    weights: dict[str, float]
    grad_norms: dict[str, Tensor]
    total: Tensor
    grads: dict[str, Tensor]
    token_grads: dict[str, Tensor]
    logit_grads: Logits


def evaluate_terms(
    terms: Sequence[Term], clouds: Clouds, logits: Logits, *, separate: bool = True, idle: bool = True
) -> TermValues:
    """Evaluate every term on the clouds' rows and tokens and the logits' scalars, with the gradient of their sum.

    The inputs' graphs are neither used nor freed: the caller sends the gradient on through them by
    ``torch.autograd.backward([image, text, *logits], [grads["image"], grads["text"], *logit_grads])``, which equals
    ``total.backward()`` of the summed loss. Gradients are summed in float32 or better.

    ``separate`` takes every term by itself, which tells its gradient's norm; a term with a ``relative`` weight
    needs that. Otherwise InfoNCE and a divergence of kernel sums that stand first share their tiles, which is faster,
    where both see the same rows.

    Of clouds that several ranks hold, values are those of the whole and gradients those of this rank's rows. Where all
    terms are sums over pairs, rows of other ranks pass by; else they are gathered, and every rank takes the whole.

    A term of weight 0 adds neither to the total nor to the gradient, even where its value is not finite, or NaN
    because the term refuses these rows (it does not converge, say); its gradient norm is 0. Such terms are valued after
    all others, whose random draws they leave as they are; without ``idle`` they are not valued at all, and nothing else
    changes, in no bit.

    Raises ValueError if two terms share a name.
    """
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise ValueError(f"terms must have distinct names, got {names}")
    if clouds.exchange.size > 1 and not all(term.sums for term in terms):
        of_all = evaluate_terms(terms, clouds.whole, logits, separate=separate, idle=idle)
        return replace(of_all, grads=clouds.own(of_all.grads), token_grads=clouds.own(of_all.token_grads))
    leaves = _leaves(clouds, logits)
    if separate or not (clouds.only_pairs and _share_tiles(terms)):
        found = _separately(terms, clouds, leaves, idle)
    else:
        found = _together(terms[0], terms[1], clouds, leaves)
        if len(terms) > 2:
            found = _added(found, _separately(terms[2:], clouds, leaves, idle))
    weighted = [found.weights[name] * value for name, value in found.values.items() if found.weights[name]]
    grads = {leaf: found.grads[leaf].to(given.dtype) for leaf, given in _inputs(clouds, logits).items()}
    return TermValues(
        found.values,
        found.weights,
        found.norms,
        sum(weighted, next(iter(leaves.values())).new_zeros(())),
        grads={modality: grads["rows", modality] for modality in clouds.rows},
        token_grads={modality: grads["tokens", modality] for modality in clouds.tokens},
        logit_grads=Logits(grads["logits", "scale"], grads["logits", "bias"]),
    )


# One input of the terms: rows or tokens of a modality, or the logits' scale or bias.
_Leaf: TypeAlias = tuple[Literal["rows", "tokens", "logits"], str]


@dataclass(frozen=True, eq=False)
class _Found:
    """What some terms are worth: value, weight and gradient norm by term, and the sum's gradient by input."""

    values: dict[str, Tensor]
    weights: dict[str, float]
    norms: dict[str, Tensor]
    grads: dict[_Leaf, Tensor]


def _inputs(clouds: Clouds, logits: Logits) -> dict[_Leaf, Tensor]:
    return {
        **{("rows", modality): rows for modality, rows in clouds.rows.items()},
        **{("tokens", modality): tokens for modality, tokens in clouds.tokens.items()},
        ("logits", "scale"): logits.scale,
        ("logits", "bias"): logits.bias,
    }


def _leaves(clouds: Clouds, logits: Logits) -> dict[_Leaf, Tensor]:
    """Fresh leaves with the inputs' values; half precisions are widened so that gradients are not rounded."""
    leaves = {}
    for (kind, name), given in _inputs(clouds, logits).items():
        checked = as_rows(given.detach(), name) if kind == "rows" else given.detach()
        widened = checked.to(torch.promote_types(given.dtype, torch.float32))
        # Detached once more: where nothing was widened, rows may be the caller's own tensors.
        leaves[kind, name] = widened.detach().requires_grad_()
    return leaves


def _separately(terms: Sequence[Term], clouds: Clouds, leaves: dict[_Leaf, Tensor], idle: bool) -> _Found:
    zero = next(iter(leaves.values())).new_zeros(())
    # In the order of the terms, whichever of them are valued first.
    weights = {term.name: term.weight for term in terms}
    norms = {term.name: zero for term in terms}
    values: dict[str, Tensor] = {}
    sums = {leaf: torch.zeros_like(tensor) for leaf, tensor in leaves.items()}
    seen = replace(
        clouds,
        rows={modality: leaves["rows", modality] for modality in clouds.rows},
        tokens={modality: leaves["tokens", modality] for modality in clouds.tokens},
    )
    logits = Logits(leaves["logits", "scale"], leaves["logits", "bias"])
    for term in (term for term in terms if term.counts):
        with torch.enable_grad():
            value = term.loss(seen, logits)
        values[term.name] = value.detach()
        grads = _gradients(value, leaves)
        norm = _tangential_norm(grads, leaves, clouds.exchange)
        weight = term.weight
        if term.relative is not None:
            weight = term.relative * float(norms[terms[0].name] / norm) if norm > 0 else 0.0
        weights[term.name], norms[term.name] = weight, abs(weight) * norm
        if weight != 0:
            sums = {leaf: total + weight * grads[leaf] for leaf, total in sums.items()}
    if idle:
        values |= {term.name: _idle_value(term, seen, logits) for term in terms if not term.counts}
    return _Found({name: values[name] for name in weights if name in values}, weights, norms, sums)


@torch.no_grad()
def _idle_value(term: Term, clouds: Clouds, logits: Logits) -> Tensor:
    try:
        return term.loss(clouds, logits)
    except InputError:
        return logits.scale.new_full((), float("nan"))


def _tangential_norm(grads: dict[_Leaf, Tensor], leaves: dict[_Leaf, Tensor], exchange: RowExchange) -> Tensor:
    """The L2 norm of all ranks' gradients of rows and tokens (..., d), along the sphere that each row lies on."""
    squares = []
    for (kind, name), grad in grads.items():
        if kind != "logits":
            at = leaves[kind, name].detach().nan_to_num()  # tokens are padded with NaN, which no gradient reaches
            along = (grad * at).sum(dim=-1, keepdim=True) / at.square().sum(dim=-1, keepdim=True).clamp(min=1e-30)
            squares.append((grad - along * at).square().sum())
    return exchange.all_reduce(torch.stack(squares).sum(), "sum").sqrt()


def _share_tiles(terms: Sequence[Term]) -> bool:
    """Whether the terms begin with InfoNCE and a divergence of kernel sums, both with a weight that is known."""
    return (
        len(terms) >= 2
        and terms[0].sums == "infonce"
        and isinstance(terms[1].sums, GramDivergence)
        and all(term.weight != 0 and term.relative is None for term in terms[:2])
    )


def _together(pairwise: Term, divergence: Term, clouds: Clouds, leaves: dict[_Leaf, Tensor]) -> _Found:
    assert isinstance(divergence.sums, GramDivergence)
    image, text, scale = leaves["rows", "image"], leaves["rows", "text"], leaves["logits", "scale"]
    dtype = torch.promote_types(image.dtype, text.dtype)
    _, _, groups, shares = clouds.shared_pairs(IMAGE_TEXT)
    found = evaluate_pairs(
        image.to(dtype),
        text.to(dtype),
        InfoNce(scale, groups),
        divergence.sums,
        weights=(pairwise.weight, divergence.weight),
        shares=shares,
    )
    assert found.infonce is not None and found.divergence is not None
    assert found.x_grad is not None and found.y_grad is not None and found.scale_grad is not None
    grads = {leaf: torch.zeros_like(tensor) for leaf, tensor in leaves.items()}
    grads |= {("rows", "image"): found.x_grad, ("rows", "text"): found.y_grad, ("logits", "scale"): found.scale_grad}
    values = {pairwise.name: found.infonce.to(dtype), divergence.name: found.divergence.to(dtype)}
    return _Found(values, {pairwise.name: pairwise.weight, divergence.name: divergence.weight}, {}, grads)


def _added(one: _Found, other: _Found) -> _Found:
    """Both, without norms: those of the first were not taken apart."""
    grads = {leaf: grad + other.grads[leaf] for leaf, grad in one.grads.items()}
    return _Found({**one.values, **other.values}, {**one.weights, **other.weights}, {}, grads)


def _gradients(value: Tensor, leaves: dict[_Leaf, Tensor]) -> dict[_Leaf, Tensor]:
    grads = torch.autograd.grad(value, [*leaves.values()], allow_unused=True)
    return {
        leaf: torch.zeros_like(tensor) if grad is None else grad
        for (leaf, tensor), grad in zip(leaves.items(), grads, strict=True)
    }
