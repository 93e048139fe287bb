"""The terms for few pairs against float64 references, POT and finite differences: structure, negatives, teacher."""

from __future__ import annotations

import importlib
import math

import numpy as np
import ot
import pytest
import torch
from samples import random_rows, tensor_rows
from scipy.spatial.distance import jensenshannon
from scipy.special import logsumexp, softmax
from scipy.stats import entropy, ortho_group
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.objectives import (
    Clouds,
    Pairs,
    direction_agreement,
    infonce,
    infonce_with_negatives,
    plan_divergence,
    plan_matching,
    pseudo_pairs,
    row_blocks,
    siglip,
    siglip_with_negatives,
    structure,
)
from cs_aligner_cli.objectives.clouds import IMAGE_TEXT
from cs_aligner_cli.objectives.pseudo_pairs import POTENTIALS, Side
from cs_aligner_cli.objectives.row_blocks import sum_over_blocks
from cs_aligner_cli.objectives.structure import STRUCTURES

# ---- sums over blocks of rows


def test_a_sum_over_blocks_is_the_whole_sum_with_its_gradient_and_no_block_is_larger_than_allowed() -> None:
    x, y = tensor_rows(0, 23, 4).requires_grad_(), tensor_rows(1, 9, 4).requires_grad_()
    whole = (x @ y.T).exp().sum()
    expected = torch.autograd.grad(3 * whole, [x, y])
    shapes = []

    def loss(block: slice, x: Tensor, y: Tensor) -> Tensor:
        tile = (x[block] @ y.T).exp()
        shapes.append(tuple(tile.shape))
        return tile.sum()

    found = sum_over_blocks(loss, 23, 9, x, y, entries=50)
    assert shapes == [(5, 9)] * 4 + [(3, 9)]
    torch.testing.assert_close(found, whole)
    for grad, own in zip(torch.autograd.grad(3 * found, [x, y]), expected, strict=True):
        torch.testing.assert_close(grad, own)
    assert sum_over_blocks(loss, 23, 10**9, x.detach(), y).shape == (), "rows of any length are taken one by one"


# ---- structure


def directions(features: np.ndarray) -> np.ndarray:
    """Unit vectors from the mean of the unit rows."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=1, keepdims=True)


def neighbourhoods(rows: np.ndarray, temperature: float) -> list[np.ndarray]:
    """Of every row the softmax over all others."""
    return [softmax(np.delete(row, i) / temperature) for i, row in enumerate(rows @ rows.T)]


def test_structure_is_the_divergence_of_neighbourhoods() -> None:
    before, after = random_rows(0, 8, 6, unit=False), random_rows(1, 8, 3)
    both = [neighbourhoods(z, 0.3) for z in (directions(before), after)]
    js = np.mean([jensenshannon(p, q) ** 2 for p, q in zip(*both, strict=True)])
    kl = np.mean([entropy(p, q) for p, q in zip(*both, strict=True)])
    assert structure(before, after, "js", 0.3).item() == pytest.approx(js, rel=1e-9)
    assert structure(before, after, "kl", 0.3).item() == pytest.approx(kl, rel=1e-9)


def test_structure_by_second_moments_is_that_by_gram_matrices() -> None:
    before, after = random_rows(0, 9, 6, unit=False), random_rows(1, 9, 3)
    s, t = (z @ z.T for z in (directions(before), after))
    assert structure(before, after, "distance").item() == pytest.approx(((s - t) ** 2).mean(), rel=1e-9)
    centring = np.eye(9) - 1 / 9
    s, t = (centring @ gram @ centring for gram in (s, t))
    cka = (s * t).sum() / math.sqrt((s * s).sum() * (t * t).sum())
    assert structure(before, after, "cka").item() == pytest.approx(1 - cka, rel=1e-9)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_structure_is_zero_for_a_rotation_and_has_the_gradient_of_finite_differences(kind: str) -> None:
    features = tensor_rows(0, 7, 5)
    rotated = directions(features.numpy()) @ ortho_group.rvs(5, random_state=0)
    assert structure(3 * features, rotated, kind).item() == pytest.approx(0, abs=1e-12)
    rows = tensor_rows(1, 7, 3).requires_grad_()
    assert structure(features, rows, kind).item() > 1e-3
    assert torch.autograd.gradcheck(lambda z: structure(features, z, kind, 0.4), [rows])
    assert structure(features.requires_grad_(), rows.detach(), kind).requires_grad is False


def test_structure_is_finite_at_a_low_temperature_and_in_float32() -> None:
    features, rows = random_rows(0, 20, 8).astype(np.float32), random_rows(1, 20, 8).astype(np.float32)
    value = structure(features, rows, "js", 0.001)
    assert value.dtype == torch.float32 and 0 < value.item() <= math.log(2) + 1e-6
    exact = structure(features.astype(np.float64), rows.astype(np.float64), "kl", 0.05).item()
    assert structure(features, rows, "kl", 0.05).item() == pytest.approx(exact, rel=1e-4)


def test_structure_refuses_what_does_not_fit() -> None:
    x = random_rows(0, 5, 3)
    with pytest.raises(InputError, match="features and rows differ in number: 5 against 4"):
        structure(x, x[:4])
    with pytest.raises(InputError, match="at least 2 rows, got 1"):
        structure(x[:1], x[:1])
    with pytest.raises(InputError, match="kind: unknown name 'jss'; did you mean js"):
        structure(x, x, "jss")
    with pytest.raises(InputError, match="temperature: expected a number above 0, got 0"):
        structure(x, x, temperature=0)


# ---- agreement of both directions


def test_agreement_is_the_jeffreys_divergence_of_both_directions() -> None:
    x, y = random_rows(0, 7, 4), random_rows(1, 7, 4)
    logits = 6 * x @ y.T
    expected = np.mean(
        [entropy(p, q) + entropy(q, p) for p, q in zip(softmax(logits, 1), softmax(logits.T, 1), strict=True)]
    )
    assert direction_agreement(x, y, 6.0).item() == pytest.approx(expected, rel=1e-9)
    assert direction_agreement(x, x, 6.0).item() == pytest.approx(0, abs=1e-12), "symmetric similarities agree"
    with pytest.raises(InputError, match="not pairs: 7 against 6"):
        direction_agreement(x, y[:6], 6.0)


def test_agreement_is_over_pairs_and_a_queue_of_past_ones() -> None:
    x, y, u, v = random_rows(0, 5, 4), random_rows(1, 5, 4), random_rows(2, 3, 4), random_rows(3, 3, 4)
    to_texts, to_images = 6 * x @ np.concatenate([y, v]).T, 6 * y @ np.concatenate([x, u]).T
    both = zip(softmax(to_texts, 1), softmax(to_images, 1), strict=True)
    expected = np.mean([entropy(p, q) + entropy(q, p) for p, q in both])
    assert direction_agreement(x, y, 6.0, (u, v)).item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(InputError, match="not pairs: 3 against 2"):
        direction_agreement(x, y, 6.0, (u, v[:2]))
    with pytest.raises(InputError, match="dimension"):
        direction_agreement(x, y, 6.0, (u[:, :3], v[:, :3]))


def test_agreement_has_the_gradient_of_finite_differences() -> None:
    x, y = tensor_rows(0, 6, 3).requires_grad_(), tensor_rows(1, 6, 3).requires_grad_()
    scale = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(direction_agreement, [x, y, scale])
    queue = tensor_rows(2, 3, 3), tensor_rows(3, 3, 3)
    assert torch.autograd.gradcheck(lambda x, y, scale: direction_agreement(x, y, scale, queue), [x, y, scale])


# ---- unpaired negatives


def test_infonce_with_negatives_is_the_cross_entropy_over_pairs_and_unpaired() -> None:
    x, y, u, v = (tensor_rows(seed, rows, 4) for seed, rows in ((0, 5), (1, 5), (2, 3), (3, 7)))
    own = torch.arange(5)
    to_text = cross_entropy(8 * x @ torch.cat([y, v]).T, own)
    to_image = cross_entropy(8 * y @ torch.cat([x, u]).T, own)
    found = infonce_with_negatives(x, y, 8.0, None, u, v)
    torch.testing.assert_close(found, (to_text + to_image) / 2)
    assert found > infonce(x, y, 8.0)
    assert infonce_with_negatives(x, y, 8.0) == infonce(x, y, 8.0)
    one_sided = infonce_with_negatives(x, y, 8.0, None, None, v)
    torch.testing.assert_close(one_sided, (to_text + cross_entropy(8 * y @ x.T, own)) / 2)


def test_pairs_of_one_group_are_no_negatives_but_unpaired_rows_are() -> None:
    x, y, v = tensor_rows(0, 4, 3), tensor_rows(1, 4, 3), tensor_rows(2, 2, 3)
    logits = 5 * x @ torch.cat([y, v]).T
    logits[0, 1] = logits[1, 0] = -math.inf
    back = 5 * y @ x.T
    back[0, 1] = back[1, 0] = -math.inf
    expected = (cross_entropy(logits, torch.arange(4)) + cross_entropy(back, torch.arange(4))) / 2
    torch.testing.assert_close(infonce_with_negatives(x, y, 5.0, [7, 7, 8, 9], None, v), expected)


def test_siglip_with_negatives_adds_the_pairs_with_unpaired_rows() -> None:
    x, y, u, v = (tensor_rows(seed, rows, 4) for seed, rows in ((0, 5), (1, 5), (2, 3), (3, 7)))
    added = -(logsigmoid(-(6 * x @ v.T - 2)).sum() + logsigmoid(-(6 * u @ y.T - 2)).sum()) / 5
    found = siglip_with_negatives(x, y, 6.0, -2.0, None, u, v)
    torch.testing.assert_close(found, siglip(x, y, 6.0, -2.0) + added)
    assert siglip_with_negatives(x, y, 6.0, -2.0) == siglip(x, y, 6.0, -2.0)


def test_gradients_with_negatives_are_those_of_finite_differences() -> None:
    rows = [tensor_rows(seed, 4, 3).requires_grad_() for seed in range(4)]
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (3.0, -1.0))
    groups = [0, 0, 1, 2]
    assert torch.autograd.gradcheck(lambda x, y, u, v, s: infonce_with_negatives(x, y, s, groups, u, v), [*rows, scale])
    assert torch.autograd.gradcheck(
        lambda x, y, u, v, s, b: siglip_with_negatives(x, y, s, b, groups, u, v), [*rows, scale, bias]
    )


def test_what_is_in_no_pair_of_an_edge_is_unpaired() -> None:
    image, text = tensor_rows(0, 5, 3), tensor_rows(1, 4, 3)
    clouds = Clouds({"image": image, "text": text}, {IMAGE_TEXT: Pairs(torch.tensor([0, 0, 2, 1]), None)})
    unpaired_image, unpaired_text = clouds.unpaired(IMAGE_TEXT)
    assert unpaired_image is not None and torch.equal(unpaired_image, image[3:])
    assert unpaired_text is None


# ---- the teacher's plan


def plan(x: np.ndarray, y: np.ndarray, epsilon: float) -> np.ndarray:
    """POT's entropic plan with the cost minus the similarities."""
    weights = [np.full(len(z), 1 / len(z)) for z in (x, y)]
    return ot.sinkhorn(*weights, 1 - x @ y.T, epsilon, method="sinkhorn_log", stopThr=1e-13, numItermax=20000)


def strictly(*arguments: object, epsilon: float = 0.2) -> Tensor:
    return plan_divergence(*arguments, epsilon, iterations=5000, tolerance=1e-13)  # type: ignore[arg-type]


def test_the_plan_divergence_is_that_of_pots_plans_and_its_gradient_their_difference() -> None:
    x, y, s, t = (random_rows(seed, rows, width) for seed, rows, width in ((0, 6, 4), (1, 5, 4), (2, 6, 3), (3, 5, 3)))
    ours, taught = plan(x, y, 0.2), plan(s, t, 0.2)
    image = torch.from_numpy(x).requires_grad_()
    found = strictly(image, y, 7 * s, t)  # the teacher's rows count by their directions
    assert found.item() == pytest.approx(entropy(taught.ravel(), ours.ravel()), rel=1e-6)
    (gradient,) = torch.autograd.grad(2 * found, image)
    np.testing.assert_allclose(gradient.numpy(), 2 * (ours - taught) / 0.2 @ y, rtol=1e-6, atol=1e-10)


def test_its_gradient_is_that_of_finite_differences_though_sinkhorn_is_not_differentiated() -> None:
    x, y = tensor_rows(0, 5, 3).requires_grad_(), tensor_rows(1, 4, 3).requires_grad_()
    s, t = tensor_rows(2, 5, 4), tensor_rows(3, 4, 4)
    assert torch.autograd.gradcheck(lambda x, y: strictly(x, y, s, t), [x, y])


def test_the_plan_divergence_vanishes_at_the_teachers_similarities_and_knows_no_pairs() -> None:
    x, y = tensor_rows(0, 6, 4), tensor_rows(1, 5, 4)
    turned = torch.from_numpy(ortho_group.rvs(4, random_state=1))
    assert strictly(x, y, x @ turned, y @ turned).item() == pytest.approx(0, abs=1e-9)
    s, t, order = tensor_rows(2, 6, 4), tensor_rows(3, 5, 4), torch.randperm(6)
    value = strictly(x, y, s, t)
    assert value.item() > 0.01
    torch.testing.assert_close(strictly(x[order], y, s[order], t), value)


def test_the_plan_is_the_same_block_by_block_and_has_the_marginals(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y, s, t = (tensor_rows(seed, rows, 4) for seed, rows in ((0, 11), (1, 9), (2, 11), (3, 9)))
    whole = strictly(x, y, s, t)
    for kept in (0, 2 * 4 * 9 * 8):  # none of the blocks of four rows, or two of them
        monkeypatch.setattr(row_blocks, "_BLOCK_ENTRIES", 4 * 9)
        monkeypatch.setattr(row_blocks, "_KEPT_BYTES", kept)
        torch.testing.assert_close(strictly(x, y, s, t), whole)
    rows = torch.cat([p for _, p, _ in plan_matching.transport_plan(x, y, 0.05, 1000, 1e-10).blocks()])
    torch.testing.assert_close(rows.sum(dim=1), torch.full((11,), 1 / 11, dtype=torch.float64))
    torch.testing.assert_close(rows.sum(dim=0), torch.full((9,), 1 / 9, dtype=torch.float64))


def test_the_smallest_epsilon_leaves_numbers() -> None:
    x, y = random_rows(0, 30, 4).astype(np.float32), random_rows(1, 20, 4).astype(np.float32)
    value = plan_divergence(x, y, -x, y, epsilon=plan_matching.SMALLEST_EPSILON)
    assert value.dtype == torch.float32 and math.isfinite(value.item())
    assert logsumexp(-2 / plan_matching.SMALLEST_EPSILON) > -700
    with pytest.raises(InputError, match=r"epsilon: expected a number of at least 0\.005, got 0\.001"):
        plan_divergence(x, y, x, y, epsilon=0.001)
    with pytest.raises(InputError, match="image and its teacher differ in rows: 30 against 20"):
        plan_divergence(x, y, y, y)


# ---- pseudo pairs


def side(seed: int, paired: int, unpaired: int) -> Side:
    rows, more = (tensor_rows(seed + i, n, 4) for i, n in ((0, paired), (1, unpaired)))
    features, further = (tensor_rows(seed + i, n, 6) for i, n in ((2, paired), (3, unpaired)))
    return Side(rows, more, features, further)


def label_loss(own: Side, targets: Tensor, scale: float, kind: str, temperature: float) -> Tensor:
    """Unpaired rows against the pairs' rows of the other modality, with the labels of POT or of a softmax."""
    assert own.unpaired is not None and own.unpaired_features is not None
    both = directions(torch.cat([own.paired_features, own.unpaired_features]).numpy())
    known, new = both[: len(own.paired)], both[len(own.paired) :]
    labels = (
        plan(new, known, temperature) * len(new) if kind == "transport" else softmax(new @ known.T / temperature, 1)
    )
    return cross_entropy(scale * own.unpaired @ targets.T, torch.from_numpy(labels))


@pytest.mark.parametrize("kind", POTENTIALS)
def test_pseudo_pairs_are_cross_entropies_towards_soft_labels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(Side.__module__)
    monkeypatch.setattr(module, "_TOLERANCE", 1e-12)
    monkeypatch.setattr(module, "_ITERATIONS", 3000)
    image, text = side(0, 6, 5), side(10, 6, 7)
    scale = torch.tensor(4.0, dtype=torch.float64)
    of_image = label_loss(image, text.paired, 4.0, kind, 0.3)
    of_text = label_loss(text, image.paired, 4.0, kind, 0.3)
    torch.testing.assert_close(pseudo_pairs(image, text, scale, kind, 0.3), (of_image + of_text) / 2)
    one_sided = text._replace(unpaired=None, unpaired_features=None)
    torch.testing.assert_close(pseudo_pairs(image, one_sided, scale, kind, 0.3), of_image)
    nothing = image._replace(unpaired=None, unpaired_features=None)
    assert pseudo_pairs(nothing, one_sided, scale, kind).item() == 0


def test_the_gradient_of_pseudo_pairs_is_that_of_finite_differences_and_labels_have_none() -> None:
    image, text = side(0, 5, 4), side(10, 5, 3)
    leaves = [image.paired, image.unpaired, text.paired, text.unpaired, torch.tensor(3.0, dtype=torch.float64)]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves if leaf is not None]

    def loss(x: Tensor, u: Tensor, y: Tensor, v: Tensor, scale: Tensor) -> Tensor:
        return pseudo_pairs(image._replace(paired=x, unpaired=u), text._replace(paired=y, unpaired=v), scale)

    assert torch.autograd.gradcheck(loss, leaves)
    features = image.paired_features.clone().requires_grad_()
    value = pseudo_pairs(image._replace(paired_features=features), text, leaves[-1])
    assert torch.autograd.grad(value, features, allow_unused=True) == (None,)


def test_pseudo_pairs_refuse_what_does_not_fit() -> None:
    image, text, scale = side(0, 5, 4), side(10, 5, 3), torch.tensor(3.0)
    with pytest.raises(InputError, match="kind: unknown name 'transports'; did you mean transport"):
        pseudo_pairs(image, text, scale, "transports")
    with pytest.raises(InputError, match=r"temperature: expected a number of at least 0\.005, got 0"):
        pseudo_pairs(image, text, scale, temperature=0)
    for change, message in (
        ({"paired": image.paired[:4]}, "image.paired and its features differ in rows: 4 against 5"),
        ({"unpaired_features": None}, "image: expected unpaired rows and their features, or neither"),
        ({"unpaired": image.unpaired[:, :3]}, "image: paired and unpaired rows differ in dimension: 4, 3"),
        ({"paired": image.paired.tolist()}, "image.paired: expected a numpy array or a torch tensor, got a list"),
    ):
        with pytest.raises(InputError, match=message):
            pseudo_pairs(image._replace(**change), text, scale)


def test_pseudo_pairs_take_arrays_as_well_as_tensors() -> None:
    image, text = side(0, 5, 4), side(10, 5, 3)
    arrays = [Side(*(part.numpy() for part in own)) for own in (image, text)]
    assert pseudo_pairs(*arrays, 3.0).item() == pseudo_pairs(image, text, 3.0).item()
    mixed = arrays[1]._replace(paired=arrays[1].paired.astype(np.float32))
    assert pseudo_pairs(arrays[0], mixed, 3.0).item() == pytest.approx(pseudo_pairs(image, text, 3.0).item(), rel=1e-5)
