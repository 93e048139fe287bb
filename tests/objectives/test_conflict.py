"""The conflict inside InfoNCE: its split, its gradients, and the toy that shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import random_rows, tensor_rows

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.latent import draw_views
from cs_aligner_cli.objectives import conflict, conflict_sweep, cs_divergence, infonce, mutual_information


def tangential_gradient(loss: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
    """The gradient to rows that are scaled to unit length inside: it has no radial part by itself."""
    leaves = [row.clone().requires_grad_() for row in rows]
    value = loss(*(torch.nn.functional.normalize(leaf) for leaf in leaves))
    return torch.cat(torch.autograd.grad(value, leaves))


@pytest.mark.parametrize("scale", [2.0, 20.0, 100.0, 1000.0])  # at the last, exponents beyond what a float64 holds
def test_pull_and_push_are_gradients_over_the_pair_and_over_negatives_alone(scale: float) -> None:
    x, y = tensor_rows(0, 12, 5), tensor_rows(1, 12, 5)
    negatives = ~torch.eye(12, dtype=torch.bool)

    def softmaxes(image: torch.Tensor, text: torch.Tensor) -> list[torch.Tensor]:
        logits = scale * image @ text.T
        return [logits.softmax(1), logits.softmax(0)]

    weights = [w.detach() for w in softmaxes(x, y)]

    def pull_loss(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        left = 1 - sum(w.diagonal() for w in weights) / 2
        return -scale * (left * (image * text).sum(1)).mean()

    def push_loss(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        logits = scale * image @ text.T
        return sum((w * logits)[negatives].sum() for w in weights) / (2 * 12)

    def divergence(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return cs_divergence(image, text, 0.6)

    found = conflict(x, y, scale, divergence, weight=3.0)
    pull, push = tangential_gradient(pull_loss, x, y), tangential_gradient(push_loss, x, y)
    of_divergence = 3 * tangential_gradient(divergence, x, y)
    pushed = push + of_divergence
    flat = torch.nn.functional.cosine_similarity
    expected = {
        "infonce": infonce(x, y, scale),
        "mutual_information": math.log(12) - infonce(x, y, scale),
        "saturation": torch.cat([w.diagonal() for w in weights]).mean(),
        "cosine": flat(pull.flatten(), push.flatten(), dim=0),
        "cancelled": -(pull * push).sum() / pull.square().sum(),
        **rates(x, y, "pull", pull),
        **rates(x, y, "push", push),
        "divergence": divergence(x, y),
        "cosine_with": flat(pull.flatten(), pushed.flatten(), dim=0),
        "cancelled_with": -(pull * pushed).sum() / pull.square().sum(),
        **rates(x, y, "divergence", of_divergence),
    }
    assert list(found) == list(expected)
    close = 1e-8 if scale <= 100 else 1e-6  # of the rates, which are differences here
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=close, abs=1e-10)
    assert conflict(3 * x, 0.1 * y, scale)["cancelled"] == pytest.approx(found["cancelled"])
    assert list(conflict(x, y, scale)) == list(expected)[:9]


def rates(x: torch.Tensor, y: torch.Tensor, term: str, gradient: torch.Tensor) -> dict[str, torch.Tensor]:
    """The change over a small step of the flow, by finite differences."""
    step = 1e-6
    moved_x, moved_y = x - step * len(x) * gradient[: len(x)], y - step * len(x) * gradient[len(x) :]

    def gap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a.mean(0) - b.mean(0)).norm()

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).square().sum(1).mean()

    back_x, back_y = 2 * x - moved_x, 2 * y - moved_y
    return {
        f"{name}_rate_{term}": (of(moved_x, moved_y) - of(back_x, back_y)) / (2 * step)
        for name, of in (("gap", gap), ("distance", distance))
    }


def test_saturated_pairs_feel_neither_pull_nor_push_with_or_without_a_gap() -> None:
    """Ranked pairs read a conflict of 99.99% where the pair counts among its own negatives, gap or none."""
    x = random_rows(0, 50, 16)
    near = x + 0.05 * random_rows(1, 50, 16)
    low, high = conflict(x, near, 100.0), conflict(x, near, 1.0)
    assert low["saturation"] == pytest.approx(1, abs=1e-6)
    for rate in ("gap_rate_pull", "gap_rate_push", "distance_rate_pull", "distance_rate_push"):
        assert abs(low[rate]) < 1e-3
    assert high["saturation"] < 0.1
    assert low["mutual_information"] == pytest.approx(math.log(50), abs=1e-6)


def test_the_push_opens_a_gap_that_the_pull_and_the_divergence_close() -> None:
    push = 1.5 * np.eye(16)[0]
    x, y = random_rows(0, 50, 16) + push, random_rows(1, 50, 16) - push
    found = conflict(x, y, 10.0, partial(cs_divergence, bandwidth=0.7071))
    assert found["gap_rate_pull"] < 0 < found["gap_rate_push"]
    assert found["gap_rate_divergence"] < 0


def test_the_sweep_is_conflict_at_every_setting() -> None:
    x, y = random_rows(0, 15, 6), random_rows(1, 15, 6) + 0.3
    rows = conflict_sweep(x, y, temperatures=(0.05, 0.5), bandwidths=(0.5, 1.0), weights=(1.0, 4.0))
    assert len(rows) == 8
    for row in rows:
        setting = {name: row.pop(name) for name in ("temperature", "bandwidth", "weight")}
        divergence = partial(cs_divergence, bandwidth=setting["bandwidth"])
        one = conflict(x, y, 1 / setting["temperature"], divergence, setting["weight"])
        assert row == pytest.approx(one)


def test_mutual_information_is_the_best_bound_and_never_negative() -> None:
    x = tensor_rows(0, 40, 8)
    assert mutual_information(x, x) == pytest.approx(math.log(40), abs=1e-6)
    assert mutual_information(x, tensor_rows(1, 40, 8)) == pytest.approx(0, abs=0.2)
    assert mutual_information(x, x.roll(1, 0)) == 0


def test_error_texts() -> None:
    x = random_rows(0, 4, 3)
    with pytest.raises(InputError, match="at least 2 pairs, row by row, got 4 image and 3 text rows"):
        conflict(x, x[:3], 1.0)
    with pytest.raises(InputError, match="at least 2 pairs, row by row, got 1 image and 1 text rows"):
        conflict_sweep(x[:1], x[:1])


def test_latent_pairs_have_the_gap_and_the_shared_part_that_they_are_drawn_with() -> None:
    rng = np.random.default_rng(0)
    image, text = draw_views(20_000, 2, dim=20, latent_dim=6, noise=0.5, gap=3.0, rng=rng)
    offset = image.mean(0) - text.mean(0)
    assert np.linalg.norm(offset) == pytest.approx(3, abs=0.02)
    centred = [rows - rows.mean(0) for rows in (image, text)]
    assert np.square(centred[0] - centred[1]).sum(1).mean() == pytest.approx(2 * 0.5**2, rel=0.02)
    assert np.square(centred[0]).sum(1).mean() == pytest.approx(1 + 0.5**2, rel=0.02)
    spread = np.linalg.svd(centred[0] + centred[1], compute_uv=False)  # six directions of the latent, the rest noise
    assert spread[5] > 2 * spread[6]
    assert np.abs(centred[0] @ offset).mean() < 0.5  # the gap lies outside the latent's span: only noise is there


def test_bent_views_have_the_gaps_and_share_what_no_linear_map_shows_whole() -> None:
    views = draw_views(20_000, 3, dim=20, latent_dim=6, noise=0.0, gap=2.0, rng=np.random.default_rng(0), curvature=1.0)
    means = [rows.mean(0) for rows in views]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert np.linalg.norm(means[first] - means[second]) == pytest.approx(2, abs=0.02)
        x, y = (views[i] - means[i] for i in (first, second))
        fitted = x @ np.linalg.lstsq(x, y, rcond=None)[0]
        explained = 1 - np.square(y - fitted).sum() / np.square(y).sum()
        assert 0.7 < explained < 0.97


def test_the_toy_shows_the_argument(csalign: Callable[..., Any], tmp_path: Path) -> None:
    """The frozen pairs share all they can and lie apart; InfoNCE keeps a gap, CS closes it and costs nothing."""
    quick = (
        "train.epochs=12",
        "gap_report.max_pairs=400",
        "gap_report.baselines={}",
        "gap_report.formats=[]",
        "train.conflict_steps=10",
    )
    settings = [option for setting in (f"run_dir={tmp_path / 'toy'}", *quick) for option in ("--set", setting)]
    done = csalign("run", "conflict_toy", *settings, "--json")
    result = json.loads(done.stdout)
    gap = result["gap_report"]
    assert gap["frozen"]["centroid_gap"] > 1.2
    assert gap["pairwise_only"]["centroid_gap"] > 0.2 > 0.1 > gap["aligned"]["centroid_gap"]
    for store in ("pairwise_only", "aligned"):
        assert gap[store]["mutual_information"] > math.log(400) - 0.1
        assert result["eval_retrieval"][store]["i2t"]["R@1"] > 0.99
    log = (tmp_path / "toy" / "train" / "aligned" / "metrics.jsonl").read_text().splitlines()
    conflicts = [line["conflict"] for line in map(json.loads, log) if "conflict" in line]
    assert len(conflicts) > 6
    assert conflicts[0]["cancelled"] > conflicts[0]["cancelled_with"]
    # On the frozen pairs the push takes back most of what the pull does to the gap; ranked pairs feel neither, gap or
    # not, and CS still closes it.
    report = json.loads((tmp_path / "toy" / "gap_report" / "report.json").read_text())["conflict"]
    setting = {"temperature": 0.01, "bandwidth": 0.7071, "weight": 1.0}
    (frozen, ranked) = (
        next(row for row in report[store] if setting.items() <= row.items()) for store in ("frozen", "pairwise_only")
    )
    assert 0.9 < -frozen["gap_rate_push"] / frozen["gap_rate_pull"] < 1
    assert ranked["saturation"] > 0.99
    assert abs(ranked["gap_rate_pull"] + ranked["gap_rate_push"]) < 0.05 < 1 < -ranked["gap_rate_divergence"]
    page = (tmp_path / "toy" / "gap_report" / "report.html").read_text()
    assert "Why InfoNCE leaves a gap" in page
    assert (
        (tmp_path / "toy" / "gap_report" / "conflict.csv").read_text().startswith("store,temperature,bandwidth,weight")
    )
