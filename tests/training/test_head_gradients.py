"""The gradient of a matching head in parts of a batch is that of the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.token_sequences import pad_tokens
from cs_aligner_cli.objectives.matching import hard_negatives, matching_loss
from cs_aligner_cli.towers.matching_head import Items, MatchingHead
from cs_aligner_cli.training.matching import add_gradients


@pytest.mark.parametrize("size", [None, 1, 3, 100])
def test_parts_of_a_batch_add_up_to_it(size: int | None) -> None:
    torch.manual_seed(0)
    items = {}
    for modality, length in zip(MODALITIES, (4, 3), strict=True):
        tokens = normalize(torch.randn(7, length, 5, dtype=torch.float64), dim=2)
        mask = torch.rand(7, length) < 0.7
        mask[:, 0] = True
        items[modality] = Items(normalize(tokens.sum(1), dim=1), pad_tokens(tokens, mask))
    head = MatchingHead(5, 6).double()
    torch.nn.init.normal_(head.judge.weight)
    negatives = hard_negatives(items["image"].rows, items["text"].rows, 2, 0.1)
    of_image, of_text = negatives
    others = head(items["image"].take(of_image), items["text"].take(of_text))
    loss = matching_loss(head(items["image"], items["text"]), others)
    expected = torch.autograd.grad(loss, [*head.parameters()])
    assert add_gradients(head, items, negatives, size) == pytest.approx(loss.item(), rel=1e-12)
    for parameter, wanted in zip(head.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-13)


def test_negatives_are_drawn_from_the_whole_batch_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of rows sees all columns: with a low temperature every row has its most similar one, wherever it is."""
    torch.manual_seed(0)
    image, text = (normalize(torch.randn(9, 4, dtype=torch.float64), dim=1) for _ in "xy")
    monkeypatch.setattr("cs_aligner_cli.objectives.matching._ENTRIES", 18)
    rows, columns = hard_negatives(image, text, 1, 1e-3)
    cosines = (image @ text.T).fill_diagonal_(-2)
    assert torch.equal(rows[:9], torch.arange(9)) and torch.equal(columns[:9], cosines.argmax(dim=1))
    assert torch.equal(columns[9:], torch.arange(9)) and torch.equal(rows[9:], cosines.argmax(dim=0))
