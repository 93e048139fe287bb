"""The token term: the Cauchy-Schwarz divergence between the tokens of every pair, batched, masked and blockwise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cs_aligner_cli.common.arrays import ArrayLike, as_tensor, type_of_all
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.bandwidths import Bandwidth, resolve_bandwidth
from cs_aligner_cli.objectives.kernels import Gaussian
from cs_aligner_cli.objectives.tiles import slices

# What the kernel matrices and copies of one block of samples may take: memory is that of the inputs and their
# gradients plus this constant (or one sample, where that is larger). On a CPU it should stay in the caches.
_BLOCK_BYTES, _LARGE_BLOCK_BYTES = 8 * 2**20, 128 * 2**20


def token_cs_divergence(
    x: ArrayLike,
    y: ArrayLike,
    bandwidth: Bandwidth,
    x_mask: ArrayLike | None = None,
    y_mask: ArrayLike | None = None,
) -> Tensor:
    """Return ``mean_i D_CS(tokens of x_i; tokens of y_i)`` as a scalar tensor.

    L_token of Yin et al., arXiv 2502.17028: sample i has visual tokens x_i (V, d) and text tokens y_i (L, d), and
    D_CS is that of ``cs_divergence`` with estimator "v" between the two sets of tokens.

    x (B, V, d) and y (B, L, d) are used as given, without normalisation. ``x_mask`` (B, V) and ``y_mask`` (B, L) are
    bool, True where a token stands; None: everywhere. What stands in padding, NaN included, changes no bit of the
    value or the gradient, which is 0 there. ``bandwidth`` is sigma, or several numbers for the mean of their kernels.

    Computed for whole blocks of samples at a time, in float32, or in float64 where x or y is or has tokens beyond 1e9
    (``type_of_all``), whatever the autocast;
    gradients are computed with the value, so that memory is linear in the batch: the inputs, their gradients and one
    block. Raises InputError for shapes or masks that do not fit, a sample without tokens, and a bandwidth that is not
    above 0.
    """
    x, x_mask = _sequences(x, x_mask, "x")
    y, y_mask = _sequences(y, y_mask, "y")
    if x.shape[0] != y.shape[0] or x.shape[2] != y.shape[2]:
        raise InputError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)} differ in samples or in dimension",
            "Expected (samples, tokens, dimensions) each; only the number of tokens may differ.",
        )
    if isinstance(bandwidth, str) and bandwidth == "median":
        raise InputError('bandwidth: "median" is none of tokens; expected a number above 0, or several')
    kernel = Gaussian(resolve_bandwidth(bandwidth, x, y))
    dtype = torch.promote_types(torch.promote_types(x.dtype, y.dtype), torch.float32)
    if dtype == torch.float32 and x.device.type == "cpu":
        block = _block_size(x, y)
        parts = chain(_tokens(x.detach(), x_mask, block), _tokens(y.detach(), y_mask, block))
        if any(type_of_all(part.float()) == torch.float64 for part in parts):
            dtype = torch.float64
    return _TokenLoss.apply(x.to(dtype), y.to(dtype), x_mask, y_mask, kernel)  # type: ignore[no-any-return]


def _tokens(x: Tensor, mask: Tensor, block: int) -> Iterator[Tensor]:
    """Blocks of the tokens (n, d) that stand among samples; all at once where there is no padding."""
    if mask.all():
        yield x
    else:
        yield from (x[part][mask[part]] for part in slices(0, len(x), block))


def _sequences(tokens: ArrayLike, mask: ArrayLike | None, name: str) -> tuple[Tensor, Tensor]:
    """Tokens and their mask as tensors, once both are known to fit."""
    tokens = as_tensor(tokens, name)
    if tokens.ndim != 3 or 0 in tokens.shape or not tokens.is_floating_point():
        raise InputError(
            f"{name}: expected a non-empty floating-point (samples, tokens, dimensions) tensor, got "
            f"{tuple(tokens.shape)} of {tokens.dtype}"
        )
    if mask is None:
        return tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    mask = as_tensor(mask, f"{name}_mask").to(tokens.device)
    if mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
        raise InputError(
            f"{name}_mask: expected bool of shape {tuple(tokens.shape[:2])}, got {tuple(mask.shape)} of {mask.dtype}"
        )
    filled = mask.any(1)
    if not filled.all():
        raise InputError(f"{name}: sample {int((~filled).int().argmax())} (counted from 0) has no token at all")
    return tokens, mask


class _TokenLoss(torch.autograd.Function):
    """The mean over samples; the gradient is computed with the value, block by block."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor, kernel: Gaussian) -> Tensor:
        gradient = any(ctx.needs_input_grad)
        grads = [torch.empty_like(tokens) if gradient else None for tokens in (x, y)]
        total = x.new_zeros(())
        with torch.autocast(device_type=x.device.type, enabled=False):
            for part in slices(0, len(x), _block_size(x, y)):
                samples = _Samples(x[part], y[part], x_mask[part], y_mask[part])
                values, *found = _divergences(samples, kernel, gradient)
                total += values.sum()
                for grad, of_block in zip(grads, found, strict=True):
                    if grad is not None and of_block is not None:
                        torch.div(of_block, len(x), out=grad[part])
        ctx.grads = grads
        return total / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        dx, dy = ctx.grads
        return upstream * dx, upstream * dy, None, None, None


def _block_size(x: Tensor, y: Tensor) -> int:
    """Samples whose kernel matrices (four at a time with several sigmas) and copies fit into the budget."""
    v, (length, d) = x.shape[1], y.shape[1:]
    budget = _BLOCK_BYTES if x.device.type == "cpu" else _LARGE_BLOCK_BYTES
    return max(1, budget // (4 * x.element_size() * (max(v, length) ** 2 + (v + length) * d)))


class _Samples(NamedTuple):
    """A block of samples: tokens (b, V, d) and (b, L, d), and where they stand."""

    x: Tensor
    y: Tensor
    x_mask: Tensor
    y_mask: Tensor


def _divergences(samples: _Samples, kernel: Gaussian, gradient: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(b,) divergences of a block and the gradients of their sum."""
    x, y, x_mask, y_mask = _centred(samples)
    xx, yy, xy = (
        _pair_sums(a, b, a_mask, b_mask, kernel)
        for a, b, a_mask, b_mask in ((x, x, x_mask, x_mask), (y, y, y_mask, y_mask), (x, y, x_mask, y_mask))
    )
    values = xx.log_mean + yy.log_mean - 2 * xy.log_mean
    if not gradient:
        return values, None, None
    return values, _pulled(xx.weights, x, xy.weights, y), _pulled(yy.weights, y, xy.weights.mT, x)


def _centred(samples: _Samples) -> _Samples:
    """Tokens around each sample's centre, zeros in padding: distances do not see a shift, and their expansion into
    products would cancel far from the origin."""
    x, y, x_mask, y_mask = samples
    x, y = x.masked_fill(~x_mask.unsqueeze(2), 0), y.masked_fill(~y_mask.unsqueeze(2), 0)
    counts = (mask.sum(1).view(-1, 1, 1) for mask in (x_mask, y_mask))
    centre = sum(tokens.sum(1, keepdim=True) / count for tokens, count in zip((x, y), counts, strict=True)) / 2
    return _Samples(
        x.sub_(centre).masked_fill_(~x_mask.unsqueeze(2), 0),
        y.sub_(centre).masked_fill_(~y_mask.unsqueeze(2), 0),
        x_mask,
        y_mask,
    )


class _PairSums(NamedTuple):
    """``log_mean`` (b,) of the kernel over a sample's pairs, and ``weights`` (b, n, m), its derivatives with respect
    to ``-||a - b||^2 / 2``."""

    log_mean: Tensor
    weights: Tensor


def _pair_sums(a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor, kernel: Gaussian) -> _PairSums:
    half_squares = [tokens.square().sum(2) / 2 for tokens in (a, b)]
    near = torch.bmm(a, b.mT).sub_(half_squares[0].unsqueeze(2)).sub_(half_squares[1].unsqueeze(1))
    near.mul_(kernel.scale)
    if a is b:
        near.diagonal(dim1=1, dim2=2).zero_()
    near.masked_fill_(~(a_mask.unsqueeze(2) & b_mask.unsqueeze(1)), -math.inf)
    # Log-sum-exp of exponents: relative to the largest one of a sample nothing overflows, and not all underflow.
    reference = near.amax((1, 2), keepdim=True)
    tile = kernel.evaluate(near, reference)
    total = tile.values.sum((1, 2), keepdim=True)
    pairs = a_mask.sum(1) * b_mask.sum(1)
    log_mean = total.log() + reference
    return _PairSums(log_mean.flatten() - pairs.to(a.dtype).log(), tile.slopes.mul_(tile.factor / total))


def _pulled(own_weights: Tensor, own: Tensor, cross_weights: Tensor, other: Tensor) -> Tensor:
    """The gradient to the tokens ``own``: d log mean k(own, own) / d own_i = 2 sum_j w_ij (own_j - own_i), and
    d (-2 log mean k(own, other)) / d own_i = -2 sum_j w_ij (other_j - own_i)."""
    grad = torch.bmm(own_weights, own).sub_(torch.bmm(cross_weights, other))
    shares = cross_weights.sum(2, keepdim=True) - own_weights.sum(2, keepdim=True)
    return grad.addcmul_(shares, own).mul_(2)
