"""Adapters: the small modules that are trained on top of an encoder's embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.recipe.towers import AdapterSpec, BottleneckAdapter, LinearAdapter, ResidualMlpAdapter
from cs_aligner_cli.towers.prior_adapter import PriorAdapter
from cs_aligner_cli.towers.token_adapters import TransformerAdapter


def _skip(in_dim: int, out_dim: int, bias: bool = False) -> nn.Linear:
    """A linear map that keeps what it can of its input: the identity, or a random (semi-)orthogonal map."""
    linear = nn.Linear(in_dim, out_dim, bias=bias)
    with torch.no_grad():
        if in_dim == out_dim:
            nn.init.eye_(linear.weight)
        else:
            nn.init.orthogonal_(linear.weight)
        if bias:
            linear.bias.zero_()
    return linear


def _put(parameter: Tensor, values: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(values)


class Linear(nn.Module):
    """x -> W x + b on L2-normalised rows; the identity at the start where the dimensions agree."""

    def __init__(self, spec: LinearAdapter, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.map = _skip(in_dim, out_dim, spec.bias)

    @property
    def linear(self) -> nn.Linear:
        """The linear path."""
        return self.map

    def start_at(self, weight: Tensor, bias: Tensor) -> None:
        """Compute weight x + bias: weight (out_dim, in_dim), bias (out_dim,)."""
        _put(self.map.weight, weight)
        _put(self.map.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) to (B, out_dim)."""
        return self.map(l2_normalize(x))  # type: ignore[no-any-return]


class ResidualMlp(nn.Module):
    """x -> S x + W2 dropout(gelu(W1 x + b1)) + b2 on L2-normalised rows; W2 = 0 at the start."""

    def __init__(self, spec: ResidualMlpAdapter, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.skip = _skip(in_dim, out_dim)
        self.expand = nn.Linear(in_dim, spec.hidden_dim)
        self.dropout = nn.Dropout(spec.dropout)
        self.project = nn.Linear(spec.hidden_dim, out_dim)
        # Unit rows have entries of size 1/sqrt(d); this makes the hidden units see entries of size 1.
        self.input_scale = in_dim**0.5
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    @property
    def linear(self) -> nn.Linear:
        """The linear path."""
        return self.skip

    def start_at(self, weight: Tensor, bias: Tensor) -> None:
        """Compute weight x + bias at the start: weight (out_dim, in_dim), bias (out_dim,)."""
        _put(self.skip.weight, weight)
        _put(self.project.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) to (B, out_dim)."""
        x = l2_normalize(x)
        hidden = nn.functional.gelu(self.expand(x * self.input_scale))
        return self.skip(x) + self.project(self.dropout(hidden))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """x -> (1 - r) (S x + b) + r W2 relu(W1 x) on L2-normalised rows, r the sigmoid of a learned number.

    CLIP-Adapter (Gao et al. 2021, arXiv 2110.04544), whose residual ratio r is a fixed number, 0.2 for images.
    """

    def __init__(self, spec: BottleneckAdapter, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.skip = _skip(in_dim, out_dim, bias=True)
        self.down = nn.Linear(in_dim, spec.hidden_dim, bias=False)
        self.up = nn.Linear(spec.hidden_dim, out_dim, bias=False)
        self.ratio_logit = nn.Parameter(torch.tensor(spec.ratio).logit(), requires_grad=spec.learn_ratio)

    @property
    def linear(self) -> nn.Linear:
        """The linear path."""
        return self.skip

    def start_at(self, weight: Tensor, bias: Tensor) -> None:
        """Compute the direction of weight x + bias at the start; the MLP begins at zero for that."""
        _put(self.skip.weight, weight)
        _put(self.skip.bias, bias)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) to (B, out_dim)."""
        x = l2_normalize(x)
        ratio = self.ratio_logit.sigmoid()
        return (1 - ratio) * self.skip(x) + ratio * self.up(self.down(x).relu())  # type: ignore[no-any-return]


ADAPTERS: dict[str, type[nn.Module]] = {
    "linear": Linear,
    "residual_mlp": ResidualMlp,
    "bottleneck": Bottleneck,
    "transformer": TransformerAdapter,
    "prior": PriorAdapter,
}


def make_adapter(spec: AdapterSpec, in_dim: int, out_dim: int) -> nn.Module:
    """The adapter of a recipe, (B, in_dim) to (B, out_dim), weights drawn from torch's global generator.

    Transformers (``ReadsSequence``) take tokens and their mask instead.
    """
    return ADAPTERS[spec.kind](spec, in_dim, out_dim)
