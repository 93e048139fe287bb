"""Levels of alignment: groups of tokens, late interaction and clouds of groups, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
from samples import tensor_rows
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import pad_tokens, token_mask
from cs_aligner_cli.objectives import Clouds, Logits, Pairs, cs_divergence, on_clouds, row_blocks
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT
from cs_aligner_cli.objectives.levels import group_tokens, late_interaction_infonce, on_group_clouds, on_level
from cs_aligner_cli.recipe.objective import Objective


def sequences(seed: int, lengths: list[int], width: int = 3) -> Tensor:
    """Unit tokens (B, L, d) in float64, padded with NaN at the end."""
    tokens = tensor_rows(seed, len(lengths) * max(lengths), width).unflatten(0, (len(lengths), -1))
    return pad_tokens(tokens, torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1))


def similarity(own: Tensor, other: Tensor) -> float:
    """Mean over one item's tokens of the cosine with the nearest of the other's."""
    own, other = (tokens[token_mask(tokens[None])[0]] for tokens in (own, other))
    return sum(max(float(u @ v) for v in other) for u in own) / len(own)


def test_a_divergence_between_groups_sees_unpaired_items() -> None:
    assert Objective.model_validate({"divergence": {"weight": 0}, "levels": [{"divergence": 1}]}).sees_unpaired
    assert not Objective.model_validate({"divergence": {"weight": 0}, "levels": [{}]}).sees_unpaired


def test_groups_are_unit_means_of_neighbours_and_keep_their_padding() -> None:
    tokens = sequences(0, [5, 2, 3])
    groups = group_tokens(tokens, 2)
    assert groups.shape == (3, 3, 3)
    assert token_mask(groups).sum(dim=1).tolist() == [3, 1, 2]
    torch.testing.assert_close(groups[0, 1], normalize(tokens[0, 2:4].mean(dim=0), dim=0))
    torch.testing.assert_close(groups[2, 1], tokens[2, 2])  # a group of one
    torch.testing.assert_close(group_tokens(tokens, 1), tokens, equal_nan=True)
    torch.testing.assert_close(group_tokens(tokens, 9)[1, 0], normalize(tokens[1, :2].mean(dim=0), dim=0))


@pytest.mark.parametrize("entries", [2**22, 1])
def test_late_interaction_is_infonce_of_nearest_tokens(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(row_blocks.sum_over_blocks.__kwdefaults__, "entries", entries)  # at once, or row by row
    x, y = sequences(1, [4, 1, 3, 2]), sequences(2, [2, 5, 1, 3])
    to_text = 7 * torch.tensor([[similarity(i, j) for j in y] for i in x], dtype=torch.float64)
    to_image = 7 * torch.tensor([[similarity(j, i) for i in x] for j in y], dtype=torch.float64)
    own = torch.arange(4)
    expected = (cross_entropy(to_text, own) + cross_entropy(to_image, own)) / 2
    torch.testing.assert_close(late_interaction_infonce(x, y, 7.0), expected, rtol=1e-9, atol=0)
    to_text[0, 2] = to_text[2, 0] = to_image[0, 2] = to_image[2, 0] = -math.inf
    expected = (cross_entropy(to_text, own) + cross_entropy(to_image, own)) / 2
    found = late_interaction_infonce(x, y, 7.0, torch.tensor([5, 1, 5, 2]))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_its_gradient_is_that_of_finite_differences_and_nothing_in_padding() -> None:
    x, y = sequences(3, [3, 2, 1]).requires_grad_(), sequences(4, [1, 2, 3]).requires_grad_()
    kept = [tokens.detach()[token_mask(tokens)].requires_grad_() for tokens in (x, y)]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def loss(of_x: Tensor, of_y: Tensor, scale: Tensor) -> Tensor:
        filled = []
        for tokens, values in ((x, of_x), (y, of_y)):
            filled.append(tokens.detach().masked_scatter(token_mask(tokens).unsqueeze(2), values))
        return late_interaction_infonce(group_tokens(filled[0], 2), filled[1], scale)

    assert torch.autograd.gradcheck(loss, [*kept, scale])
    late_interaction_infonce(group_tokens(x, 2), y, 3.0).backward()
    assert x.grad is not None and (x.grad[~token_mask(x)] == 0).all()


def test_the_terms_see_the_pairs_and_all_groups() -> None:
    x, y = sequences(5, [2, 3, 1, 2]), sequences(6, [3, 2, 2])
    order = Pairs(torch.tensor([2, 0, 1]), None, torch.tensor([0, 1, 2]))  # the last image is unpaired
    rows = {"image": tensor_rows(7, 4, 3), "text": tensor_rows(8, 3, 3)}
    clouds = Clouds(rows, {IMAGE_TEXT: order}, {"image": rows["image"]}, {"image": x, "text": y})
    logits = Logits(torch.tensor(5.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    expected = late_interaction_infonce(group_tokens(x, 2)[[2, 0, 1]], group_tokens(y, 2), 5.0)
    torch.testing.assert_close(on_level(2)(clouds, logits), expected)
    of_groups = on_group_clouds(on_clouds(lambda a, b: cs_divergence(a, b, 0.7)), 1)(clouds, logits)
    torch.testing.assert_close(of_groups, cs_divergence(x[token_mask(x)], y[token_mask(y)], 0.7))


def test_sequences_that_do_not_fit_are_refused() -> None:
    x = sequences(0, [2, 1])
    with pytest.raises(InputError, match="differ in number or dimension"):
        late_interaction_infonce(x, x[:1], 1.0)
    with pytest.raises(InputError, match="a sequence has no token"):
        late_interaction_infonce(x, torch.full_like(x, math.nan), 1.0)
