"""Token exchange against loops in float64 and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from samples import tensor_rows
from torch import Tensor
from torch.nn.functional import normalize

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import pad_tokens, token_mask
from cs_aligner_cli.objectives import Clouds, Logits, Pairs, infonce
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT
from cs_aligner_cli.objectives.token_exchange import on_token_exchange, token_exchange


def sequences(seed: int, lengths: list[int]) -> Tensor:
    """Unit tokens (B, L, 3) in float64, padded with NaN at the end."""
    tokens = tensor_rows(seed, len(lengths) * max(lengths), 3).unflatten(0, (len(lengths), -1))
    return pad_tokens(tokens, torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1))


def mixtures(tokens: Tensor, partners: Tensor, chosen: Tensor) -> Tensor:
    """Unit means, token by token."""
    means = []
    for own, other, picked in zip(tokens, partners, chosen, strict=True):
        there = other[token_mask(other[None])[0]]
        kept = [there[(there @ u).argmax()] if pick else u for u, pick in zip(own, picked, strict=True) if u[0] == u[0]]
        means.append(normalize(torch.stack(kept).mean(dim=0), dim=0))
    return torch.stack(means)


X, Y, ROWS = sequences(0, [3, 1, 2]), sequences(1, [2, 4, 1]), tensor_rows(2, 3, 3)
CHOSEN = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])


def test_it_is_infonce_between_mixtures_and_rows() -> None:
    expected = infonce(mixtures(X, Y, CHOSEN), ROWS, 6.0)
    torch.testing.assert_close(token_exchange(X, Y, ROWS, CHOSEN, 6.0), expected)
    groups = torch.tensor([4, 4, 9])
    expected = infonce(mixtures(X, Y, CHOSEN), ROWS, 6.0, groups)
    torch.testing.assert_close(token_exchange(X, Y, ROWS, CHOSEN, 6.0, groups), expected)
    with pytest.raises(InputError, match="differ in number: 3, 2, 3 and 3"):
        token_exchange(X, Y[:2], ROWS, CHOSEN, 6.0)


def test_its_gradient_is_that_of_finite_differences_with_none_in_padding() -> None:
    leaves = [z.detach()[token_mask(z)].requires_grad_() for z in (X, Y)]
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)

    def loss(of_x: Tensor, of_y: Tensor, rows: Tensor, scale: Tensor) -> Tensor:
        x, y = (z.masked_scatter(token_mask(z).unsqueeze(2), v) for z, v in ((X, of_x), (Y, of_y)))
        return token_exchange(x, y, rows, CHOSEN, scale)

    assert torch.autograd.gradcheck(loss, [*leaves, ROWS.clone().requires_grad_(), scale])
    x = X.clone().requires_grad_()
    token_exchange(x, Y, ROWS, CHOSEN, 3.0).backward()
    assert x.grad is not None and (x.grad[~token_mask(x)] == 0).all()


def test_partners_are_pairs_or_the_nearest_of_all_items() -> None:
    images, texts = sequences(3, [2, 3, 1, 2]), sequences(4, [1, 2, 2])
    rows = {"image": tensor_rows(5, 4, 3), "text": tensor_rows(6, 3, 3)}
    first, labels = torch.tensor([2, 0, 1]), torch.tensor([7, 8, 7])  # the last image is unpaired
    clouds = Clouds(rows, {IMAGE_TEXT: Pairs(first, None, labels)}, tokens={"image": images, "text": texts})
    logits = Logits(torch.tensor(5.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    every = [torch.ones(3, 3, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)]
    forth = infonce(mixtures(images[first], texts, every[0]), rows["image"][first], 5.0, labels)
    back = infonce(mixtures(texts, images[first], every[1]), rows["text"], 5.0, labels)
    torch.testing.assert_close(on_token_exchange(1.0, "pair")(clouds, logits), (forth + back) / 2)
    near = [(rows["image"] @ rows["text"].T).argmax(dim=1), (rows["text"] @ rows["image"].T).argmax(dim=1)]
    of_images = torch.tensor([8, 7, 7, 100])  # each pair's group stands at its image
    forth = infonce(mixtures(images, texts[near[0]], torch.ones(4, 3) > 0), rows["image"], 5.0, of_images)
    back = infonce(mixtures(texts, images[near[1]], every[1]), rows["text"], 5.0, labels)
    torch.testing.assert_close(on_token_exchange(1.0, "nearest")(clouds, logits), (forth + back) / 2)
    torch.manual_seed(0)
    one = on_token_exchange(0.5, "pair")(clouds, logits)
    assert math.isfinite(float(one)) and one != on_token_exchange(0.5, "pair")(clouds, logits), "drawn anew"
    torch.manual_seed(0)
    assert one == on_token_exchange(0.5, "pair")(clouds, logits)
