"""An objective as a weighted sum of named terms, evaluated together with every term's gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cs_aligner_cli.arrays import as_rows

TermLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Term:
    """One summand ``weight * loss(image, text, logit_scale, groups)``; the loss returns a scalar tensor."""

    name: str
    weight: float
    loss: TermLoss


@dataclass(frozen=True, eq=False)
class TermValues:
    """What an objective is worth on one batch, and its gradient with respect to the embeddings.

    ``values``: name to unweighted loss, a detached scalar. ``grad_norms``: name to the L2 norm of the
    gradient of weight * loss with respect to image and text together. ``total``: the weighted sum.
    ``image_grad``, ``text_grad``, ``logit_scale_grad``: gradients of ``total``, in the shape and dtype of
    what went in.
    """

    values: dict[str, Tensor]
    grad_norms: dict[str, Tensor]
    total: Tensor
    image_grad: Tensor
    text_grad: Tensor
    logit_scale_grad: Tensor


def evaluate_terms(
    terms: Sequence[Term], image: Tensor, text: Tensor, logit_scale: Tensor, groups: Tensor | None = None
) -> TermValues:
    """Evaluate every term on image (M, d), text (N, d) and the 0-d logit_scale, each term with its gradient.

    The inputs' graphs are neither used nor freed: the caller sends the gradient on through them by
    ``torch.autograd.backward([image, text, logit_scale], [image_grad, text_grad, logit_scale_grad])``,
    which equals ``total.backward()`` of the summed loss. Gradients are summed in float32 or better.

    A term of weight 0 is valued, but adds neither to the total nor to the gradient, even where its value is
    not finite; its gradient norm is 0. Raises ValueError if two terms share a name.
    """
    names = [term.name for term in terms]
    if len(set(names)) < len(names):
        raise ValueError(f"terms must have distinct names, got {names}")
    leaves = _leaves(image, text, logit_scale)
    total = leaves[0].new_zeros(())
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    values: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    for term in terms:
        with torch.set_grad_enabled(term.weight != 0):
            value = term.loss(*leaves, groups)
        values[term.name] = value.detach()
        norms[term.name] = total.new_zeros(())
        if term.weight == 0:
            continue
        total = total + term.weight * value.detach()
        grads = _gradients(value, leaves, term.weight)
        norms[term.name] = _norm(grads[:2])
        sums = [total_grad + grad for total_grad, grad in zip(sums, grads, strict=True)]
    return TermValues(
        values, norms, total, sums[0].to(image.dtype), sums[1].to(text.dtype), sums[2].to(logit_scale.dtype)
    )


def _leaves(image: Tensor, text: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fresh leaves with the inputs' values; half precisions are widened so that gradients are not rounded."""
    image, text = as_rows(image.detach(), "image"), as_rows(text.detach(), "text")
    scale = logit_scale.detach().to(torch.promote_types(logit_scale.dtype, torch.float32))
    return image.clone().requires_grad_(), text.clone().requires_grad_(), scale.clone().requires_grad_()


def _gradients(value: Tensor, leaves: Sequence[Tensor], weight: float) -> list[Tensor]:
    grads = torch.autograd.grad(value, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else weight * grad for leaf, grad in zip(leaves, grads, strict=True)]


def _norm(grads: Sequence[Tensor]) -> Tensor:
    return torch.sqrt(sum((grad.square().sum() for grad in grads), grads[0].new_zeros(())))
