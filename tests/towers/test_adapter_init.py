"""Closed-form starts do what their formulas say, and training begins at them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.recipe.towers import BottleneckAdapter, LinearAdapter, ResidualMlpAdapter
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stores.embeddings import Store
from cs_aligner_cli.towers.adapter_init import closed_form
from cs_aligner_cli.towers.adapters import make_adapter

KINDS = ("centre", "whiten", "procrustes", "cca", "ridge")
QUIET = Console(quiet=True)


def unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def paired(n: int = 300, image_dim: int = 9, text_dim: int = 6, seed: int = 0) -> dict[str, Floats]:
    """Rows that share four factors, away from the origin, with noise."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((n, 4))
    rows = {}
    for m, d in (("image", image_dim), ("text", text_dim)):
        rows[m] = unit(factors @ rng.standard_normal((4, d)) + 2 + 0.3 * rng.standard_normal((n, d)))
    return rows


def plain(out_dim: int, rows: dict[str, Floats]) -> dict[str, Floats]:
    rng = np.random.default_rng(1)
    return {m: rng.standard_normal((out_dim, x.shape[1])) for m, x in rows.items()}


def apply(kind: str, rows: dict[str, Floats], out_dim: int, fixed: str | None = None) -> dict[str, Floats]:
    maps = closed_form(kind, rows, plain(out_dim, rows), fixed, out_dim)
    assert set(maps) == {m for m in rows if m != fixed}
    return {m: rows[m] @ w.T + b for m, (w, b) in maps.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_centred_and_of_unit_length_on_average(kind: str) -> None:
    for values in apply(kind, paired(), 6).values():
        np.testing.assert_allclose(values.mean(0), 0, atol=1e-12)
        assert np.linalg.norm(values, axis=1).mean() == pytest.approx(1)


def test_centring_is_the_plain_map_of_the_centred_rows() -> None:
    rows = paired()
    maps, given_ = closed_form("centre", rows, plain(5, rows), None, 5), plain(5, rows)
    for m, (w, b) in maps.items():
        scale = np.linalg.norm(w) / np.linalg.norm(given_[m])
        np.testing.assert_allclose(w, scale * given_[m])
        np.testing.assert_allclose(b, -w @ rows[m].mean(0))


def test_whitening_leaves_no_correlation_and_equal_variances() -> None:
    values = apply("whiten", paired(n=2000), 4)["text"]
    covariance = values.T @ values / len(values)
    np.testing.assert_allclose(covariance / covariance[0, 0], np.eye(4), atol=0.05)


@given(st.integers(0, 1000), st.integers(4, 8))
@settings(max_examples=20, deadline=None)
def test_procrustes_finds_a_rotation_that_was_put_in(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    image = unit(rng.standard_normal((50, d)) @ np.diag(np.linspace(1, 2, d)))
    rows = {"image": image, "text": image @ rotation}
    both = apply("procrustes", rows, d)
    np.testing.assert_allclose(both["image"], both["text"], atol=1e-8)
    onto_text = apply("procrustes", rows, d, fixed="text")["image"]
    np.testing.assert_allclose(onto_text, rows["text"], atol=1e-8)


def test_procrustes_onto_a_fixed_side_beats_every_other_orthogonal_map() -> None:
    rows = paired(image_dim=6)
    centred = {m: x - x.mean(0) for m, x in rows.items()}
    w, _ = closed_form("procrustes", rows, plain(6, rows), "text", 6)["image"]
    np.testing.assert_allclose(w @ w.T, np.eye(6), atol=1e-10)
    best = np.linalg.norm(centred["image"] @ w.T - centred["text"])
    rng = np.random.default_rng(0)
    for _ in range(50):
        other = np.linalg.qr(rng.standard_normal((6, 6)))[0]
        assert np.linalg.norm(centred["image"] @ other.T - centred["text"]) > best


def test_cca_axes_have_the_canonical_correlations_of_a_slow_reference() -> None:
    """One pair of axes at a time: each correlates with its partner and with no other."""
    values = apply("cca", paired(n=500), 4)
    together = np.corrcoef(values["image"].T, values["text"].T)[:4, 4:]
    assert (np.diag(together) > 0.5).all()
    lengths = [np.linalg.norm(values["image"][:, k]) for k in range(4)]
    assert lengths == sorted(lengths, reverse=True), "the better correlated axes weigh more"


def test_ridge_is_the_least_squares_solution() -> None:
    rows = paired()
    w, b = closed_form("ridge", rows, plain(6, rows), "text", 6)["image"]
    x, y = (rows[m] - rows[m].mean(0) for m in ("image", "text"))
    d = x.shape[1]
    penalty = np.trace(x.T @ x) / d
    stacked_x = np.vstack([x, np.sqrt(penalty) * np.eye(d)])
    stacked_y = np.vstack([y, np.zeros((d, 6))])
    reference = np.linalg.lstsq(stacked_x, stacked_y, rcond=None)[0].T
    np.testing.assert_allclose(w, reference, atol=1e-10)
    np.testing.assert_allclose(b, rows["text"].mean(0) - w @ rows["image"].mean(0))


@pytest.mark.parametrize("kind", ["whiten", "procrustes", "cca"])
def test_a_shared_space_wider_than_the_features_is_filled_with_zeros(kind: str) -> None:
    values = apply(kind, paired(), 12)["text"]
    assert values.shape[1] == 12
    assert not values[:, 9:].any()


@pytest.mark.parametrize(
    "spec",
    [
        LinearAdapter(kind="linear"),
        ResidualMlpAdapter(hidden_dim=8),
        BottleneckAdapter(kind="bottleneck", hidden_dim=8),
    ],
)
def test_every_adapter_can_be_put_there(spec: Any) -> None:
    import torch

    adapter, (w, b) = make_adapter(spec, 6, 4), (torch.randn(4, 6), torch.randn(4))
    adapter.start_at(w, b)  # type: ignore[operator]
    x = torch.nn.functional.normalize(torch.randn(5, 6))
    ours, expected = (torch.nn.functional.normalize(y) for y in (adapter.eval()(x), x @ w.T + b))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


# ---- in training


@pytest.mark.parametrize("kind", ["procrustes", "cca", "ridge", "spectral"])
def test_training_begins_far_above_the_plain_start(kind: str, features_recipe: Path, tmp_path: Path) -> None:
    """With a learning rate of next to nothing the aligned store is the start itself."""
    found = {}
    for start in ("plain", kind):
        settings_ = [f"train.start={start}", f"run_dir={tmp_path / start}", "train.lr=1e-9", "train.epochs=1"]
        recipe = load_recipe(str(features_recipe), [*settings_, "train.embed_dim=16"])
        for stage in ("prepare", "embed", "train", "embed"):
            run_stage(stage, recipe, QUIET)
        results = run_stage("eval_retrieval", recipe, QUIET).data()["eval_retrieval"]["aligned"]
        found[start] = results["t2i"]["R@1"]
    assert found["plain"] < 0.2
    assert found[kind] > found["plain"] + 0.2


def test_a_start_onto_a_frozen_tower(features_recipe: Path, tmp_path: Path) -> None:
    settings_ = ["train.text.tune=frozen", "train.embed_dim=16", "train.start=ridge", "train.lr=1e-9", "train.epochs=1"]
    recipe = load_recipe(str(features_recipe), settings_)
    for stage in ("prepare", "embed", "train", "embed"):
        run_stage(stage, recipe, QUIET)
    store = Store(Layout(recipe).aligned("aligned", "dev").path)
    image, text = (store.array(m).all() for m in ("image", "text"))
    own = np.repeat(np.arange(40), 5)
    assert (image[own] * text).sum(1).mean() > (np.roll(image, 1, axis=0)[own] * text).sum(1).mean() + 0.1


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        (
            ["train.start=cca", "train.text.tune=frozen", "train.embed_dim=16"],
            "cca maps both towers, but train.text has",
        ),
        (["train.start=ridge"], "ridge maps images onto the text features"),
        (["train.start=whiten", "train.image.adapter={kind: linear, bias: false}"], "adapter.bias: false denies"),
    ],
)
def test_starts_that_do_not_exist_are_refused(settings_: list[str], message: str, features_recipe: Path) -> None:
    recipe = load_recipe(str(features_recipe), settings_)
    for stage in ("prepare", "embed"):
        run_stage(stage, recipe, QUIET)
    with pytest.raises(InputError, match=message):
        run_stage("train", recipe, QUIET)
