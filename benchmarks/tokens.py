"""The token term against a loop over samples, value and gradient, in one run: time, memory and error.

python benchmarks/tokens.py [--batch 256] [--repeats 3]

A ViT-B/32's 49 patch tokens against captions of 5 to 30 text tokens, 512 dimensions, float32. The loop calls
cs_divergence on the tokens of one sample after the other, as one would without a batched term; the direct expression
holds every kernel matrix of the batch and leaves the gradient to autograd. Peak memory is what a call adds to the
process (Linux).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from objectives import peak_megabytes, seconds
from torch import Tensor

from cs_aligner_cli.objectives import cs_divergence, token_cs_divergence

VISUAL, TEXT, DIM, SIGMA = 49, 30, 512, 0.7071
Term = Callable[[Tensor, Tensor, Tensor], Tensor]


def batched(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Ours."""
    return token_cs_divergence(x, y, SIGMA, None, mask)


def looped(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """One sample after the other."""
    return torch.stack([cs_divergence(a, b[kept], SIGMA) for a, b, kept in zip(x, y, mask, strict=True)]).mean()


def direct(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """Whole kernel matrices, autograd."""
    everywhere = torch.ones(x.shape[:2], dtype=torch.bool)

    def log_mean(a: Tensor, b: Tensor, a_mask: Tensor, b_mask: Tensor) -> Tensor:
        squares = a.square().sum(2).unsqueeze(2) + b.square().sum(2).unsqueeze(1) - 2 * a @ b.mT
        both = a_mask.unsqueeze(2) & b_mask.unsqueeze(1)
        exponents = (squares / (-2 * SIGMA**2)).masked_fill(~both, -math.inf)
        return torch.logsumexp(exponents.flatten(1), 1) - both.sum((1, 2)).log()

    own = log_mean(x, x, everywhere, everywhere) + log_mean(y, y, mask, mask)
    return (own - 2 * log_mean(x, y, everywhere, mask)).mean()


def with_gradient(term: Term, mask: Tensor) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Value and gradients, end to end."""

    def call(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        leaves = [tokens.detach().requires_grad_() for tokens in (x, y)]
        loss = term(leaves[0], leaves[1], mask)
        return loss.detach(), torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, leaves)])

    return call


def main() -> None:
    """Measure by turns and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(options.batch, n, DIM) + 1.0, dim=2) for n in (VISUAL, TEXT))
    mask = torch.arange(TEXT) < torch.randint(5, TEXT + 1, (options.batch, 1))
    calls = {term.__name__: with_gradient(term, mask) for term in (batched, looped, direct)}
    value, gradient = calls["direct"](x.double(), y.double())
    turns = [{name: seconds(call, x, y, 1) for name, call in calls.items()} for _ in range(options.repeats)]
    best = {name: min(turn[name] for turn in turns) for name in calls}
    print(f"{torch.get_num_threads()} threads; {options.batch} pairs of {VISUAL} and 5 to {TEXT} tokens, d = {DIM}")
    for name, call in calls.items():
        found, found_gradient = call(x, y)
        memory = peak_megabytes(call, x, y)
        errors = abs(float(found / value) - 1), float((found_gradient - gradient).norm() / gradient.norm())
        print(
            f"{name:8s} {best[name] * 1e3:8.1f} ms ({best[name] / best['batched']:5.1f} x ours) "
            f"{memory:6.0f} MB, relative error of value {errors[0]:.0e}, of gradient {errors[1]:.0e}"
        )


if __name__ == "__main__":
    main()
