"""The matching loss against float64 sums and finite differences; hard negatives by how often they are drawn."""

from __future__ import annotations

import math

import pytest
import torch
from samples import tensor_rows

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives.matching import hard_negatives, matching_loss

X, Y = tensor_rows(0, 5, 3), tensor_rows(1, 5, 3)


def test_the_loss_is_binary_cross_entropy_and_holds_far_out() -> None:
    positives, negatives = [0.3, -2.0], [1.5, 0.1, -4.0]
    p = [1 / (1 + math.exp(-s)) for s in positives]
    q = [1 - 1 / (1 + math.exp(-s)) for s in negatives]
    expected = -sum(map(math.log, p + q)) / 5
    found = matching_loss(*(torch.tensor(part, dtype=torch.float64) for part in (positives, negatives)))
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert float(matching_loss(torch.tensor([500.0, -500.0]), torch.tensor([-500.0]))) == pytest.approx(500 / 3)
    assert torch.autograd.gradcheck(matching_loss, (X[0].clone().requires_grad_(), Y[0].clone().requires_grad_()))
    with pytest.raises(InputError, match="there are neither"):
        matching_loss(torch.empty(0), torch.empty(0))


def test_negatives_are_drawn_in_proportion_to_similarity_and_never_from_the_own_group() -> None:
    groups = torch.tensor([7, 7, 8, 9, 9])
    torch.manual_seed(0)
    image, text = hard_negatives(X, Y, 4_000, 0.5, groups)
    assert len(image) == len(text) == 2 * 5 * 4_000
    assert not (groups[image] == groups[text]).any()
    drawn = torch.zeros(2, 5, 5)
    for part, (own, other) in enumerate(((image[:20_000], text[:20_000]), (text[20_000:], image[20_000:]))):
        assert torch.equal(own, torch.arange(5).repeat_interleave(4_000))
        drawn[part].index_put_((own, other), torch.full((len(own),), 1 / 4_000), accumulate=True)
    weights = (X @ Y.T / 0.5).exp() * (groups[:, None] != groups)
    for part, expected in enumerate((weights, weights.T)):
        torch.testing.assert_close(drawn[part].double(), expected / expected.sum(1, keepdim=True), atol=0.03, rtol=0)


def test_what_is_of_one_group_alone_has_no_negatives() -> None:
    image, text = hard_negatives(X, Y, 2, 0.1, torch.zeros(5, dtype=torch.long))
    assert len(image) == len(text) == 0
    image, text = hard_negatives(X[:2], Y[:2], 1, 0.1)
    assert image.tolist() == [0, 1, 1, 0] and text.tolist() == [1, 0, 0, 1]
