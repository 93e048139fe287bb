"""The prior-shaped text adapter: its size, that it is causal, and that padding does not show."""

from __future__ import annotations

import pytest
import torch

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.towers import PriorAdapter as Spec
from cs_aligner_cli.towers.prior_adapter import PriorAdapter


@pytest.mark.parametrize(("dim", "millions"), [(768, 33.14), (1280, 34.19)])
def test_it_has_the_size_of_eclipses_prior(dim, millions):
    with torch.device("meta"):
        adapter = PriorAdapter(Spec(), dim, dim)
    assert sum(p.numel() for p in adapter.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.fixture
def small() -> PriorAdapter:
    torch.manual_seed(0)
    return PriorAdapter(Spec(width=16, layers=2, heads=2, max_tokens=9), 6, 5).double().eval()


def items(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randn(len(lengths), max(lengths), 6, generator=torch.Generator().manual_seed(1)).double()
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens.masked_fill(~mask[..., None], 0), mask


def test_padding_has_no_influence(small):
    tokens, mask = items([3, 7])
    together = small(tokens, mask)
    alone = small(tokens[:1, :3], mask[:1, :3])
    torch.testing.assert_close(together.pooled[:1], alone.pooled)
    torch.testing.assert_close(together.tokens[:1, :3], alone.tokens)
    assert together.pooled.shape == (2, 5)


def test_a_token_sees_what_is_before_it_and_the_output_sees_all(small):
    tokens, mask = items([6])
    before = small(tokens, mask)
    changed = tokens.clone()
    changed[0, 3] += 1
    after = small(changed, mask)
    torch.testing.assert_close(before.tokens[0, :3], after.tokens[0, :3])
    assert (before.tokens[0, 3:] - after.tokens[0, 3:]).abs().amax(dim=1).min() > 1e-6
    assert (before.pooled - after.pooled).abs().max() > 1e-6


def test_every_weight_gets_a_gradient(small):
    tokens, mask = items([4, 6])
    small(tokens, mask).pooled.square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    unused = {name for name, p in small.named_parameters() if not p.grad.abs().sum() > 0}
    assert unused == set()


def test_longer_captions_are_refused(small):
    with pytest.raises(InputError, match=r"prior has places for 9 tokens, but a caption has 12"):
        small(*items([12]))
