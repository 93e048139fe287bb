"""InfoNCE plus a weighted Cauchy-Schwarz divergence as one loss, over the same products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.common.arrays import ArrayLike
from cs_aligner_cli.objectives.bandwidths import Bandwidth, resolve_bandwidth
from cs_aligner_cli.objectives.divergences import Estimator, checked_clouds, gram_divergence
from cs_aligner_cli.objectives.gram import GramDivergence, InfoNce, evaluate_pairs
from cs_aligner_cli.objectives.pairwise import Groups, checked_pairs
from cs_aligner_cli.objectives.tiles import Products


def joint_loss(
    image: ArrayLike,
    text: ArrayLike,
    logit_scale: float | Tensor,
    bandwidth: Bandwidth,
    weight: float = 1.0,
    groups: Groups | None = None,
    estimator: Estimator = "v",
    products: Products = "fp32",
) -> Tensor:
    """Return ``infonce(image, text, logit_scale, groups) + weight * cs_divergence(image, text, bandwidth)``.

    A scalar tensor: the objective of Yin et al., arXiv 2502.17028. Value and gradient are those of the sum, but the
    products image_i . text_j are taken once for both terms, and the gradient with the value: 12 N^2 d operations in
    all, where the two functions apart take 16. image and text are (N, d), row by row a pair. On a CUDA device every
    scalar stays there; ``products`` is what its matrix units multiply (the functions' pages say at what error): "fp32",
    "tf32", "bf16", "fp16". Arguments, memory and errors are otherwise those of ``infonce`` and ``cs_divergence``.
    """
    checked_clouds(image, text, estimator, products)
    image, text, scale, labels = checked_pairs(image, text, logit_scale, groups)
    divergence = gram_divergence("cs", resolve_bandwidth(bandwidth, image, text), estimator, products)
    return _JointLoss.apply(image, text, scale, labels, divergence, weight)  # type: ignore[no-any-return]


class _JointLoss(torch.autograd.Function):
    """InfoNCE of row-paired x, y (N, d) plus a weighted divergence between them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, scale: Tensor, groups: Tensor | None, divergence: GramDivergence, weight: float
    ) -> Tensor:
        found = evaluate_pairs(
            x, y, InfoNce(scale, groups), divergence, weights=(1.0, weight), gradient=any(ctx.needs_input_grad)
        )
        ctx.grads = found.x_grad, found.y_grad, found.scale_grad
        ctx.scale_dtype = scale.dtype
        assert found.infonce is not None and found.divergence is not None
        return (found.infonce + weight * found.divergence).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy, d_scale = ctx.grads
        return upstream * dx, upstream * dy, (upstream * d_scale).to(ctx.scale_dtype), None, None, None
