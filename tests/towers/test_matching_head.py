"""The matching head against a loop in float64, what it begins with, and the file that it comes back from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from samples import tensor_rows
from torch import Tensor
from torch.nn.functional import normalize

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import pad_tokens, token_mask
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.towers import matching_head
from cs_aligner_cli.towers.matching_head import Items, Matcher, MatchingHead, load_head, save_head


def items(seed: int, lengths: list[int]) -> Items:
    """Unit rows (N, 4) and unit tokens (N, L, 4) in float64, padded with NaN."""
    tokens = tensor_rows(seed, len(lengths) * max(lengths), 4).unflatten(0, (len(lengths), -1))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
    return Items(tensor_rows(seed + 9, len(lengths), 4), pad_tokens(tokens, mask))


def trained_head() -> MatchingHead:
    """A head with a judgement, as training leaves one."""
    torch.manual_seed(0)
    head = MatchingHead(4, 6).double()
    torch.nn.init.normal_(head.judge.weight)
    return head


X, Y = items(0, [3, 1, 2]), items(1, [2, 4, 1])


def judged(head: MatchingHead, x: Tensor, y: Tensor, row: Tensor, other: Tensor) -> Tensor:
    """The logit of one pair, token by token; its tokens (L, 4) and (K, 4) without padding."""
    means = []
    for own, theirs in ((x, y), (y, x)):
        found = []
        for u in own:
            weights = (10 * theirs @ u).exp()
            v = (weights[:, None] * theirs).sum(0) / weights.sum()
            found.append(head.compare(torch.cat([2 * u, 2 * v, 4 * u * v, 2 * (u - v)])))
        means.append(torch.stack(found).mean(dim=0))
    return 10 * row @ other + head.judge(torch.cat(means))[0]


def test_it_is_cross_attention_compared_token_by_token() -> None:
    head = trained_head()
    pairs = zip(X.tokens, Y.tokens, X.rows, Y.rows, strict=True)
    expected = [judged(head, x[token_mask(x[None])[0]], y[token_mask(y[None])[0]], a, b) for x, y, a, b in pairs]
    torch.testing.assert_close(head(X, Y), torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_padding_and_the_order_of_tokens_change_nothing() -> None:
    head = trained_head()
    longer = Items(X.rows, torch.nn.functional.pad(X.tokens.flip(1).nan_to_num(), (0, 0, 0, 2)))
    mask = torch.nn.functional.pad(token_mask(X.tokens).flip(1), (0, 2))
    longer = Items(X.rows, pad_tokens(longer.tokens, mask))
    torch.testing.assert_close(head(longer, Y), head(X, Y))
    leaf = X.tokens.clone().requires_grad_()
    head(Items(X.rows, leaf), Y).sum().backward()
    assert leaf.grad is not None and leaf.grad.isfinite().all() and (leaf.grad[~token_mask(X.tokens)] == 0).all()


def test_it_begins_with_the_order_of_the_cosines() -> None:
    cosines = (X.rows * Y.rows).sum(dim=1)
    torch.testing.assert_close(MatchingHead(4, 6).double()(X, Y), 10 * cosines - 5)
    same = Items(normalize(X.rows, dim=1), X.tokens)
    torch.testing.assert_close(MatchingHead(4, 6).double()(same, same), torch.full((3,), 5.0, dtype=torch.float64))


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    head = trained_head().float()
    save_head(tmp_path / "head.safetensors", head)
    again = load_head(tmp_path / "head.safetensors")
    assert (again.dim, again.width) == (4, 6)
    for name, tensor in head.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], tensor)
    with pytest.raises(InputError, match="no such weights file"):
        load_head(tmp_path / "gone.safetensors")
    torch.save({}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_head(tmp_path / "other.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "towers.safetensors")
    with pytest.raises(InputError, match="is no matching head of this csalign"):
        load_head(tmp_path / "towers.safetensors")


class CountedTowers(torch.nn.Module):
    """Towers whose outputs are drawn before, tokens of 1 to 4 an item; which rows went through is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.log_logit_scale = torch.zeros(())
        self.made = {m: items(seed, [1 + n % 4 for n in range(30)]) for seed, m in enumerate(("image", "text"))}
        self.seen: dict[str, list[int]] = {"image": [], "text": []}

    def forward_tokens(self, modality: str, rows: Tensor) -> Items:
        self.seen[modality] += rows.tolist()
        found = self.made[modality].take(rows)
        return Items(found.rows, found.tokens[:, : int(token_mask(found.tokens).sum(dim=1).max())])


def read(modality: str, split: object, rows: Ints) -> Tensor:
    return torch.from_numpy(rows)


@pytest.mark.parametrize("kept", [2**26, 40])
def test_a_matcher_maps_every_item_about_once(monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    """20 texts of each of 30 images, in the order of the images; with little memory, in parts."""
    monkeypatch.setattr(matching_head, "_ITEMS", 7)
    monkeypatch.setattr(matching_head, "_KEPT", kept)
    rng = np.random.default_rng(0)
    image = np.repeat(np.arange(30), 20)
    text = np.concatenate([rng.choice(25, 20, replace=False) for _ in range(30)])
    towers, head = CountedTowers(), trained_head()
    scores = Matcher(head, towers, read, None)(image, text)  # type: ignore[arg-type]
    made = towers.made
    expected = head(made["image"].take(torch.from_numpy(image)), made["text"].take(torch.from_numpy(text)))
    np.testing.assert_allclose(scores, expected.detach(), rtol=1e-5)
    assert sorted(towers.seen["text"]) == list(range(25))
    parts = 1 if kept > 40 else 4
    assert sorted(towers.seen["image"]) == sorted([*range(30)] * parts)
