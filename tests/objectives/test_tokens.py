"""The token term, ragged sequences and their store, and towers that read tokens."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.token_sequences import Ragged, join_padded, pad_tokens, token_mask
from cs_aligner_cli.objectives import (
    Clouds,
    Logits,
    Pairs,
    Term,
    cs_divergence,
    evaluate_terms,
    infonce,
    on_clouds,
    on_pairs,
    on_tokens,
    token_cs_divergence,
)
from cs_aligner_cli.objectives import tokens as token_term
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT
from cs_aligner_cli.objectives.divergences import gram_divergence
from cs_aligner_cli.recipe.towers import AdapterSpec, BottleneckAdapter, LinearAdapter, ResidualMlpAdapter
from cs_aligner_cli.recipe.towers import TransformerAdapter as TransformerSpec
from cs_aligner_cli.stores.tokens import TokenArray, TokenWriter
from cs_aligner_cli.towers.adapters import make_adapter
from cs_aligner_cli.towers.token_adapters import TokenTower

SIGMAS: list[float | list[float]] = [0.7, [0.5, 1.0, 2.0]]


def sequences(
    seed: int, samples: int = 5, visual: int = 7, text: int = 4, d: int = 6, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit tokens x (B, V, d), y (B, L, d) and masks with holes, at least one token each."""
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(samples, n, d, generator=rng, dtype=torch.float64) for n in (visual, text))
    masks = [torch.rand(samples, n, generator=rng) < 0.6 for n in (visual, text)]
    masks[0][:, 2] = masks[1][:, 1] = True
    x, y = (nn.functional.normalize(tokens, dim=2).to(dtype) for tokens in (x, y))
    return x, y, masks[0], masks[1]


def by_double_loops(x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor, bandwidth: float | list[float]) -> float:
    """The definition, one pair of tokens at a time."""
    sigmas = bandwidth if isinstance(bandwidth, list) else [bandwidth]

    def mean(a: list[npt.NDArray[np.float64]], b: list[npt.NDArray[np.float64]]) -> float:
        kernels = [math.exp(-((p - q) ** 2).sum() / (2 * s**2)) for p in a for q in b for s in sigmas]
        return sum(kernels) / len(kernels)

    values = []
    for i in range(len(x)):
        of_x = [x[i, k].double().numpy() for k in range(x.shape[1]) if x_mask[i, k]]
        of_y = [y[i, k].double().numpy() for k in range(y.shape[1]) if y_mask[i, k]]
        values.append(math.log(mean(of_x, of_x)) + math.log(mean(of_y, of_y)) - 2 * math.log(mean(of_x, of_y)))
    return sum(values) / len(values)


def with_gradients(
    x: Tensor, y: Tensor, bandwidth: float | list[float], x_mask: Tensor | None = None, y_mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = token_cs_divergence(x, y, bandwidth, x_mask, y_mask)
    return (value.detach(), *torch.autograd.grad(value, (x, y)))


# ---- the term


@pytest.mark.parametrize("bandwidth", SIGMAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_it_equals_a_double_loop_over_tokens(bandwidth: float | list[float], dtype: torch.dtype) -> None:
    x, y, x_mask, y_mask = sequences(0, dtype=dtype)
    value = token_cs_divergence(x, y, bandwidth, x_mask, y_mask)
    assert value.dtype == dtype
    assert float(value) == pytest.approx(by_double_loops(x, y, x_mask, y_mask, bandwidth), abs=1e-6)
    x_array, y_array, *masks = (tensor.numpy() for tensor in (x, y, x_mask, y_mask))
    assert token_cs_divergence(x_array, y_array, bandwidth, *masks) == value
    everywhere = torch.ones_like(x_mask), torch.ones_like(y_mask)
    assert float(token_cs_divergence(x, y, bandwidth)) == pytest.approx(
        by_double_loops(x, y, *everywhere, bandwidth), abs=1e-6
    )


@pytest.mark.parametrize("bandwidth", SIGMAS)
def test_its_gradient_is_right(bandwidth: float | list[float]) -> None:
    x, y, x_mask, y_mask = sequences(1, samples=3)
    x, y = x.requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: token_cs_divergence(a, b, bandwidth, x_mask, y_mask), (x, y))


@pytest.mark.parametrize("bandwidth", SIGMAS)
def test_of_one_sample_it_is_the_divergence_of_its_tokens(bandwidth: float | list[float]) -> None:
    x, y, x_mask, y_mask = sequences(2, samples=1)
    value, dx, dy = with_gradients(x, y, bandwidth, x_mask, y_mask)
    rows = [tokens[mask].requires_grad_() for tokens, mask in ((x, x_mask), (y, y_mask))]
    expected = cs_divergence(rows[0], rows[1], bandwidth)
    torch.testing.assert_close(value, expected.detach())
    for ours, theirs in zip((dx[x_mask], dy[y_mask]), torch.autograd.grad(expected, rows), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("bandwidth", SIGMAS)
def test_what_stands_in_padding_changes_no_bit(bandwidth: float | list[float]) -> None:
    x, y, x_mask, y_mask = sequences(3, dtype=torch.float32)
    found = []
    for filling in (0.0, math.nan, math.inf, -3e38, 7.0):
        filled = [t.masked_fill(~m.unsqueeze(2), filling) for t, m in ((x, x_mask), (y, y_mask))]
        found.append(with_gradients(*filled, bandwidth, x_mask, y_mask))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one.numpy().tobytes() == two.numpy().tobytes()
    assert not found[0][1][~x_mask].any() and not found[0][2][~y_mask].any()
    assert found[0][1][x_mask].any(1).all()


def test_blocks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, x_mask, y_mask = sequences(4, samples=11, dtype=torch.float32)
    whole = with_gradients(x, y, 0.7, x_mask, y_mask)
    for budget in (1, 3000, 20_000):
        monkeypatch.setattr(token_term, "_BLOCK_BYTES", budget)
        for ours, expected in zip(with_gradients(x, y, 0.7, x_mask, y_mask), whole, strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-7, rtol=1e-6)


def test_far_from_the_origin_and_with_narrow_kernels_it_stays_exact() -> None:
    x, y, x_mask, y_mask = sequences(5)
    value = float(token_cs_divergence(x, y, 0.7, x_mask, y_mask))
    far = token_cs_divergence((x + 100).float(), (y + 100).float(), 0.7, x_mask, y_mask)
    assert float(far) == pytest.approx(value, abs=1e-4)
    narrow = token_cs_divergence(x.float(), y.float(), 0.02, x_mask, y_mask)  # exp(-d^2 / (2 sigma^2)) is 0 in float32
    distances = [torch.cdist(x[i][x_mask[i]], y[i][y_mask[i]]).square() / (2 * 0.02**2) for i in range(len(x))]
    cross = sum(float((-d).flatten().logsumexp(0)) - math.log(d.numel()) for d in distances) / len(x)
    own = -sum(math.log(int(m[i].sum())) for m in (x_mask, y_mask) for i in range(len(x))) / len(x)
    assert float(narrow) == pytest.approx(own - 2 * cross, rel=1e-4)


def test_it_is_computed_in_float32_under_autocast_and_of_halves() -> None:
    x, y, x_mask, y_mask = sequences(6, dtype=torch.float32)
    expected = with_gradients(x, y, 0.7, x_mask, y_mask)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(with_gradients(x, y, 0.7, x_mask, y_mask), expected, strict=True):
            assert torch.equal(ours, theirs)
    value, dx, _ = with_gradients(x.bfloat16(), y.bfloat16(), 0.7, x_mask, y_mask)
    assert (value.dtype, dx.dtype) == (torch.float32, torch.bfloat16)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_it_is_symmetric_never_negative_and_0_for_equal_tokens(b: int, v: int, n: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(b, count, 3, generator=rng, dtype=torch.float64) for count in (v, n))
    value = float(token_cs_divergence(x, y, 1.0))
    assert value >= -1e-12
    assert float(token_cs_divergence(y, x, 1.0)) == pytest.approx(value)
    shuffled = x[:, torch.randperm(v, generator=rng)]
    assert float(token_cs_divergence(x, shuffled, 1.0)) == pytest.approx(0, abs=1e-12)


X, Y = torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)
NO_TOKEN = torch.tensor([[True, True, False], [False, False, False]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (X[0], Y, 1.0),
            r"x: expected a non-empty floating-point \(samples, tokens, dimensions\) tensor, got \(3, 4\)",
        ),
        ((X, Y.long(), 1.0), "y: expected a non-empty floating-point .* of torch.int64"),
        ((X, Y[:, :0], 1.0), "y: expected a non-empty"),
        ((X, Y[:1], 1.0), "differ in samples or in dimension"),
        ((X, Y[..., :3], 1.0), "differ in samples or in dimension"),
        ((X, Y, 1.0, NO_TOKEN), r"x: sample 1 \(counted from 0\) has no token at all"),
        ((X, Y, 1.0, NO_TOKEN[:1]), r"x_mask: expected bool of shape \(2, 3\), got \(1, 3\)"),
        ((X, Y, 1.0, None, torch.ones(2, 5)), r"y_mask: expected bool of shape \(2, 5\), got .* of torch.float32"),
        ((X, Y, 0.0), "bandwidth: expected a finite number above 0"),
        ((X, Y, []), "a mixture needs at least one sigma"),
        ((X, Y, "median"), '"median" is none of tokens'),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        token_cs_divergence(*arguments)  # type: ignore[arg-type]


_PEAK = """
import resource, sys, torch
from cs_aligner_cli.objectives import token_cs_divergence
torch.set_num_threads(1)
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def step(x, y): torch.autograd.grad(token_cs_divergence(x, y, 0.7), (x, y))
step(*(torch.randn(4, 8, 16, requires_grad=True) for _ in "xy"))
x, y = (torch.randn(int(sys.argv[1]), 128, 16, requires_grad=True) for _ in "xy")
before = peak()
step(x, y)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux counts it")
def test_memory_grows_with_the_batch_by_its_gradients_alone() -> None:
    added = {}
    for batch in (512, 2048):
        run = subprocess.run([sys.executable, "-c", _PEAK, str(batch)], capture_output=True, text=True, check=True)
        added[batch] = float(run.stdout)
    megabytes_of_inputs = {batch: 2 * batch * 128 * 16 * 4 / 2**20 for batch in added}
    # Gradients, and once more those times the upstream gradient; kernel matrices would add 128 MB for each of four.
    grown = 2 * (megabytes_of_inputs[2048] - megabytes_of_inputs[512])
    assert added[2048] - added[512] < grown + 40, added
    assert added[512] < 2 * megabytes_of_inputs[512] + 8 + 40, added


# ---- the term in the objective


@pytest.mark.parametrize("shared_tiles", [True, False])
def test_in_an_objective_its_gradient_adds_to_the_others(shared_tiles: bool) -> None:
    x, y, x_mask, y_mask = sequences(7, samples=6)
    image, text = (nn.functional.normalize(torch.randn(6, 5, dtype=torch.float64), dim=1) for _ in "xy")
    padded = {"image": pad_tokens(x, x_mask), "text": pad_tokens(y, y_mask)}
    order = None if shared_tiles else torch.tensor([3, 1, 2, 0, 5])
    clouds = Clouds({"image": image, "text": text}, {IMAGE_TEXT: Pairs(order, order)}, tokens=padded)
    logits = Logits(torch.tensor(10.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64))
    terms = [
        Term("infonce", 1.0, on_pairs(lambda a, b, s, groups: infonce(a, b, s.scale, groups)), sums="infonce"),
        Term("cs", 0.5, on_clouds(lambda a, b: cs_divergence(a, b, 0.7)), sums=gram_divergence("cs", (0.7,))),
        Term("tokens", 0.3, on_tokens(0.7)),
    ]
    found = evaluate_terms(terms, clouds, logits, separate=False)
    apart = evaluate_terms(terms, clouds, logits, separate=True)
    assert list(apart.grad_norms) == ["infonce", "cs", "tokens"] and bool(found.grad_norms) != shared_tiles
    chosen = torch.arange(6) if order is None else order
    value, dx, dy = with_gradients(x[chosen], y[chosen], 0.7, x_mask[chosen], y_mask[chosen])
    for values in (found, apart):
        torch.testing.assert_close(values.values["tokens"], value)
        for modality, expected in (("image", dx), ("text", dy)):
            torch.testing.assert_close(values.token_grads[modality][chosen], 0.3 * expected)
            torch.testing.assert_close(values.grads[modality], found.grads[modality])
        torch.testing.assert_close(values.total, apart.total)
    if order is not None:
        assert not found.token_grads["image"][4].any(), "an item in no pair"
    assert evaluate_terms(terms[:2], clouds, logits).token_grads["text"].count_nonzero() == 0


# ---- ragged sequences and their store


def ragged(seed: int, rows: int, dim: int = 3, longest: int = 6) -> Ragged:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, rows)
    return Ragged(rng.standard_normal((int(lengths.sum()), dim)).astype(np.float32), lengths)


def sequence(tokens: Ragged, row: int) -> npt.NDArray[np.float32]:
    start = int(tokens.lengths[:row].sum())
    values: npt.NDArray[np.float32] = tokens.values[start : start + int(tokens.lengths[row])]
    return values


def assert_padded(padded: npt.NDArray[np.float32], tokens: Ragged, rows: npt.NDArray[np.int64]) -> None:
    """``padded`` holds the sequences asked for, NaN behind each, and is as long as the longest of them."""
    assert padded.dtype == np.float32
    assert padded.shape[1] == max(int(tokens.lengths[row]) for row in rows)
    for i, row in enumerate(rows):
        length = int(tokens.lengths[row])
        np.testing.assert_array_equal(padded[i, :length], sequence(tokens, int(row)))
        assert np.isnan(padded[i, length:]).all()


@given(st.integers(0, 99), st.integers(1, 9), st.data())
@settings(max_examples=40, deadline=None)
def test_ragged_and_padded_are_two_forms_of_one_thing(seed: int, rows: int, data: st.DataObject) -> None:
    tokens = ragged(seed, rows)
    wanted = np.array(data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=12)))
    taken = tokens.take(wanted)
    padded = np.full((len(wanted), int(taken.lengths.max()), 3), np.nan, np.float32)
    taken.pad_into(padded, np.arange(len(wanted)))
    assert_padded(padded, tokens, wanted)
    again = Ragged.from_padded(padded)
    np.testing.assert_array_equal(again.values, taken.values)
    np.testing.assert_array_equal(again.lengths, taken.lengths)


def test_padding_says_where_tokens_are_and_a_token_that_is_not_finite_is_none() -> None:
    tokens = torch.tensor([[[1.0, 2.0], [math.nan, 3.0]], [[4.0, 5.0], [6.0, 7.0]]], requires_grad=True)
    padded = pad_tokens(tokens, torch.tensor([[True, True], [True, False]]))
    assert token_mask(padded).tolist() == [[True, True], [True, False]]
    assert padded[0, 1].tolist() == [math.inf, 3.0] and padded[1, 1].isnan().all()
    (gradient,) = torch.autograd.grad(padded[torch.isfinite(padded)].sum(), tokens)
    assert gradient[1].tolist() == [[1.0, 1.0], [0.0, 0.0]]
    joined = join_padded([padded[:, :1], padded])
    assert token_mask(joined).tolist() == [[True, False], [True, False], [True, True], [True, False]]


def written(folder: Path, tokens: Ragged, shard_rows: int, dtype: str = "float32") -> TokenWriter:
    writer = TokenWriter(folder, len(tokens), shard_rows, dtype)
    for number, rows in writer.missing():
        writer.write_tokens(number, tokens.take(rows))
    return writer


@pytest.mark.parametrize("shard_rows", [1, 3, 10, 11, 5000])
def test_tokens_come_back_from_any_number_of_shards_in_the_order_asked_for(tmp_path: Path, shard_rows: int) -> None:
    tokens = ragged(0, 11)
    written(tmp_path / "image", tokens, shard_rows)
    stored = TokenArray(tmp_path / "image")
    assert (len(stored), stored.dim) == (11, 3)
    np.testing.assert_array_equal(stored.lengths, tokens.lengths)
    for rows in (np.arange(11), np.array([10, 0, 3, 3, 2, 9, 0]), np.array([4])):
        assert_padded(stored.take(rows), tokens, rows)
    assert stored.take(np.arange(0)).shape[0] == 0
    with pytest.raises(IndexError, match="but there are 11"):
        stored.take(np.array([0, 11]))


def test_tokens_are_stored_in_the_type_asked_for(tmp_path: Path) -> None:
    tokens = ragged(1, 5)
    written(tmp_path, tokens, 2, "float16")
    assert np.load(tmp_path / "values-00000.npy").dtype == np.float16
    halves = Ragged(tokens.values.astype(np.float16).astype(np.float32), tokens.lengths)
    assert_padded(TokenArray(tmp_path).take(np.array([4, 1])), halves, np.array([4, 1]))


@pytest.mark.parametrize(("value", "dtype"), [(70_000.0, "float16"), (np.nan, "float32"), (np.inf, "float32")])
def test_what_the_type_cannot_hold_is_refused_with_its_row(tmp_path: Path, value: float, dtype: str) -> None:
    tokens = ragged(2, 7)
    tokens.values[int(tokens.lengths[:5].sum()), 1] = value
    with pytest.raises(InputError, match=f"image row 5 of the token store has no token, or one that is not .* {dtype}"):
        written(tmp_path / "image", tokens, 3, dtype)
    assert sorted(path.name for path in (tmp_path / "image").glob("[!.]*")) == ["lengths-00000.npy", "values-00000.npy"]
    with pytest.raises(InputError, match="image row 1 of the token store has no token"):
        TokenWriter(tmp_path / "image", 7, 9, dtype).write_tokens(
            0, Ragged(np.ones((1, 2), np.float32), np.array([1, 0]))
        )


def test_only_missing_shards_are_named(tmp_path: Path) -> None:
    writer = written(tmp_path, ragged(3, 10), 3)
    assert list(writer.missing()) == []
    (tmp_path / "values-00001.npy").unlink()  # as after a kill between lengths and values
    (tmp_path / "values-00003.npy").unlink()
    (tmp_path / "lengths-00003.npy").unlink()
    assert [(number, list(rows)) for number, rows in writer.missing()] == [(1, [3, 4, 5]), (3, [9])]


def test_shards_whose_lengths_are_missing_or_do_not_add_up_are_refused_by_name(tmp_path: Path) -> None:
    tokens = ragged(4, 6)
    written(tmp_path, tokens, 3)
    path = tmp_path / "lengths-00001.npy"
    lengths = np.load(path)
    for wrong, message in (
        (
            np.append(lengths[:-1], lengths[-1] + 1),
            r"lengths-00001\.npy: the lengths add up to \d+ tokens, but values-0",
        ),
        (lengths.astype(float), r"lengths-00001\.npy: expected whole numbers of at least 1"),
        (np.append(lengths, 0), r"lengths-00001\.npy: expected whole numbers of at least 1"),
    ):
        np.save(path, wrong)
        with pytest.raises(InputError, match=message):
            TokenArray(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"values-00001\.npy: its lengths \(lengths-00001\.npy\) are missing"):
        TokenArray(tmp_path)
    with pytest.raises(InputError, match="holds no files values-"):
        TokenArray(tmp_path / "none")


# ---- towers that read tokens

SPECS: list[AdapterSpec] = [
    LinearAdapter(kind="linear"),
    ResidualMlpAdapter(hidden_dim=9),
    BottleneckAdapter(kind="bottleneck", hidden_dim=4),
    TransformerSpec(kind="transformer", width=16, layers=2, heads=4),
    TransformerSpec(kind="transformer", width=16, layers=1, heads=2, pooling="query"),
]


def tower(spec: AdapterSpec, in_dim: int = 6, out_dim: int = 5) -> TokenTower:
    torch.manual_seed(0)
    made = TokenTower(None, make_adapter(spec, in_dim, out_dim))
    with torch.no_grad():
        for parameter in made.parameters():  # nothing starts at zero, where it would hide an influence
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{getattr(spec, 'pooling', '')}")
def test_a_tower_maps_each_sequence_as_if_it_were_alone(spec: AdapterSpec) -> None:
    x, _, mask, _ = sequences(8, dtype=torch.float32)
    made = tower(spec)
    found = made.mapped(pad_tokens(x, mask))
    assert torch.equal(found.mask, mask) and torch.equal(made(pad_tokens(x, mask)), found.pooled)
    for i in range(len(x)):
        alone = made.mapped(x[i][mask[i]].unsqueeze(0))
        torch.testing.assert_close(found.pooled[i], alone.pooled[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.tokens[i][mask[i]], alone.tokens[0], atol=1e-5, rtol=1e-5)
        if getattr(spec, "pooling", "mean") == "mean":
            torch.testing.assert_close(alone.pooled[0], alone.tokens[0].mean(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{getattr(spec, 'pooling', '')}")
def test_further_padding_changes_nothing_and_gets_no_gradient(spec: AdapterSpec) -> None:
    x, _, mask, _ = sequences(9, dtype=torch.float32)
    made = tower(spec)
    results = []
    for longer in (0, 3):
        padded = nn.functional.pad(pad_tokens(x, mask), (0, 0, 0, longer), value=math.nan).requires_grad_()
        found = made.mapped(padded)
        loss = found.pooled.square().sum() + found.tokens[found.mask].sin().sum()
        gradients = torch.autograd.grad(loss, [padded, *made.parameters()], allow_unused=True)
        assert not gradients[0][~found.mask].any()
        results.append([loss.detach(), gradients[0][:, : x.shape[1]], *(g for g in gradients[1:] if g is not None)])
    for one, two in zip(*results, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_a_transformer_of_eclipses_size_has_its_number_of_parameters() -> None:
    adapter = make_adapter(TransformerSpec(kind="transformer", width=512, layers=10, heads=8), 768, 768)
    assert round(sum(p.numel() for p in adapter.parameters()) / 1e6, 1) == 32.3
