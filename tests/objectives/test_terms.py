"""The weighted sum of terms: its gradient, apart and over shared tiles, and weights relative to the first term."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from samples import tensor_rows
from torch import Tensor

from cs_aligner_cli.common.errors import InputError, NotConvergedError
from cs_aligner_cli.objectives import (
    Clouds,
    Logits,
    Pairs,
    Term,
    TermValues,
    cs_divergence,
    energy_distance,
    evaluate_terms,
    infonce,
    nystroem_cs,
    on_clouds,
    on_pairs,
    siglip,
)
from cs_aligner_cli.objectives.divergences import gram_divergence

INFONCE = Term("infonce", 0.7, on_pairs(lambda image, text, logits, groups: infonce(image, text, logits.scale, groups)))
CS = Term("cs", 2.5, on_clouds(lambda image, text: cs_divergence(image, text, 0.5)))
TERMS = (
    INFONCE,
    CS,
    Term("image norm", -0.1, lambda clouds, logits: clouds.rows["image"].square().mean()),
    Term("siglip", 0.3, on_pairs(lambda image, text, logits, groups: siglip(image, text, *logits, groups))),
)
of_pairs = Clouds.of_pairs


def logits(scale: float = 3.0, bias: float = -1.0, dtype: torch.dtype = torch.float64) -> Logits:
    return Logits(torch.tensor(scale, dtype=dtype), torch.tensor(bias, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_is_that_of_the_summed_loss(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    towers = [torch.nn.Linear(6, 4, dtype=dtype) for _ in range(2)]
    wide = torch.promote_types(dtype, torch.float32)
    scalars = [torch.nn.Parameter(torch.tensor(value, dtype=wide)) for value in (2.0, -1.0)]
    parameters = [*towers[0].parameters(), *towers[1].parameters(), *scalars]
    groups = torch.tensor([0, 0, 1, 2, 3])
    features = [tensor_rows(seed, 5, 6).to(dtype) for seed in (0, 1)]

    def embedded() -> tuple[Tensor, Tensor, Logits]:
        image, text = (tower(x) for tower, x in zip(towers, features, strict=True))
        return image, text, Logits(scalars[0].exp(), scalars[1] * 1)

    image, text, found = embedded()
    total = sum(term.weight * term.loss(of_pairs(image, text, groups), found) for term in TERMS)
    expected = torch.autograd.grad(total, parameters)

    image, text, found = embedded()
    result = evaluate_terms(TERMS, of_pairs(image, text, groups), found)
    assert (result.grads["image"].dtype, result.logit_grads.scale.shape) == (dtype, ())
    torch.autograd.backward([image, text, *found], [*result.grads.values(), *result.logit_grads])
    rtol = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(result.total.double(), total.detach().double(), rtol=rtol, atol=rtol)
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=rtol, atol=rtol)


def test_every_value_weight_and_gradient_norm_is_named() -> None:
    image, text = tensor_rows(0, 5, 4), tensor_rows(1, 5, 4)
    with torch.no_grad():  # the gradient is taken whether or not the caller records one
        result = evaluate_terms(TERMS, of_pairs(image, text), logits())
    names = ["infonce", "cs", "image norm", "siglip"]
    assert list(result.values) == list(result.grad_norms) == list(result.weights) == names
    for term in TERMS:
        value = term.loss(of_pairs(image, text), logits())
        norm = abs(term.weight) * tangential_norm(term, image, text)
        assert result.values[term.name].item() == pytest.approx(value.item())
        assert not result.values[term.name].requires_grad
        assert result.weights[term.name] == term.weight
        assert result.grad_norms[term.name].item() == pytest.approx(norm)
    assert not image.requires_grad


def tangential_norm(term: Term, image: Tensor, text: Tensor) -> float:
    """The gradient's norm where only each row's direction can change: its length is put back by autograd itself."""
    leaves = [image.clone().requires_grad_(), text.clone().requires_grad_()]
    lengths = [rows.norm(dim=1, keepdim=True) for rows in (image, text)]
    rows = [length * leaf / leaf.norm(dim=1, keepdim=True) for length, leaf in zip(lengths, leaves, strict=True)]
    grads = torch.autograd.grad(term.loss(of_pairs(*rows), logits()), leaves, allow_unused=True)
    return math.sqrt(sum(grad.square().sum().item() for grad in grads if grad is not None))


@pytest.mark.parametrize("kind", ["cs", "mmd", "energy"])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("scale", [3.0, 200.0])
def test_shared_tiles_give_what_the_terms_give_apart(kind: str, grouped: bool, scale: float) -> None:
    divergence = gram_divergence(kind, () if kind == "energy" else (0.4, 0.9))  # type: ignore[arg-type]
    loss = {"cs": cs_divergence, "energy": lambda i, t, _: energy_distance(i, t)}.get(kind)
    if loss is None:
        from cs_aligner_cli.objectives import mmd as loss
    apart = (
        INFONCE,
        Term(kind, 2.5, on_clouds(lambda image, text: loss(image, text, [0.4, 0.9]))),
    )
    shared = (
        Term("infonce", 0.7, apart[0].loss, sums="infonce"),
        Term(kind, 2.5, apart[1].loss, sums=divergence),
    )
    image, text = tensor_rows(0, 700, 4), tensor_rows(1, 700, 4)
    groups = torch.arange(700) // (2 if grouped else 1)
    expected = evaluate_terms(apart, of_pairs(image, text, groups), logits(scale))
    together = evaluate_terms(shared, of_pairs(image, text, groups), logits(scale), separate=False)
    assert together.grad_norms == {} and together.weights == {"infonce": 0.7, kind: 2.5}
    _assert_equal(together, expected)
    again = evaluate_terms(shared, of_pairs(image, text, groups), logits(scale), separate=True)
    assert set(again.grad_norms) == {"infonce", kind}
    _assert_equal(again, expected)


def _assert_equal(ours: TermValues, theirs: TermValues) -> None:
    for name, value in theirs.values.items():
        torch.testing.assert_close(ours.values[name], value, rtol=1e-9, atol=1e-12)
    pairs = [(ours.total, theirs.total), *zip(ours.grads.values(), theirs.grads.values(), strict=True)]
    for one, other in [*pairs, *zip(ours.logit_grads, theirs.logit_grads, strict=True)]:
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_a_relative_weight_sets_the_ratio_of_the_gradients() -> None:
    """The gradients along the sphere: with the radial parts that normalisation takes away it would be another ratio."""
    image, text = (tensor_rows(seed, 9, 4) for seed in (0, 1))
    relative = Term("cs", 0.0, CS.loss, relative=0.25, sums=gram_divergence("cs", (0.5,)))
    first = Term("infonce", 0.7, INFONCE.loss, sums="infonce")
    result = evaluate_terms((first, relative), of_pairs(image, text), logits(), separate=False)
    ratio = result.grad_norms["cs"] / result.grad_norms["infonce"]
    assert ratio.item() == pytest.approx(0.25)
    fixed = Term("cs", result.weights["cs"], CS.loss)
    tangential = [term.weight * tangential_norm(term, image, text) for term in (fixed, first)]
    assert tangential[0] / tangential[1] == pytest.approx(0.25)
    _assert_equal(evaluate_terms((first, fixed), of_pairs(image, text), logits()), result)
    still = Term("still", 0.0, lambda clouds, logits: 0 * clouds.rows["image"].sum(), relative=0.25)
    assert evaluate_terms((first, still), of_pairs(image, text), logits()).weights["still"] == 0.0


def test_a_term_of_weight_zero_is_valued_and_nothing_else() -> None:
    def broken(clouds: Clouds, logits: Logits) -> Tensor:
        return (clouds.rows["image"].sum() + logits.scale) * torch.inf

    image, text = tensor_rows(0, 5, 4), tensor_rows(1, 5, 4)
    alone = evaluate_terms(TERMS[:1], of_pairs(image, text), logits())
    beside = evaluate_terms((*TERMS[:1], Term("broken", 0.0, broken)), of_pairs(image, text), logits())
    assert beside.values["broken"].isinf()
    assert beside.grad_norms["broken"] == 0
    assert torch.equal(alone.total, beside.total)
    assert all(torch.equal(alone.grads[modality], beside.grads[modality]) for modality in ("image", "text"))
    assert torch.equal(alone.logit_grads.scale, beside.logit_grads.scale)
    only_zero = evaluate_terms((Term("broken", 0.0, broken),), of_pairs(image, text), logits())
    assert only_zero.total == 0
    assert only_zero.grads["image"].abs().sum() == 0


def test_idle_terms_may_be_left_out_and_change_no_bit_of_the_others() -> None:
    def drawing(clouds: Clouds, logits: Logits) -> Tensor:
        return (clouds.rows["image"] * torch.rand(5, 4)).sum()

    def left_out(clouds: Clouds, logits: Logits) -> Tensor:
        raise AssertionError

    clouds = of_pairs(tensor_rows(0, 5, 4), tensor_rows(1, 5, 4))
    found = []
    for idle in (True, False):
        torch.manual_seed(0)
        terms = [Term("idle", 0.0, drawing if idle else left_out), Term("drawing", 0.3, drawing), *TERMS]
        found.append(evaluate_terms(terms, clouds, logits(), idle=idle))
    with_idle, without = found
    names = [term.name for term in terms]
    assert [*with_idle.values] == [*with_idle.weights] == [*without.weights] == [*without.grad_norms] == names
    assert [*without.values] == names[1:] and without.grad_norms["idle"] == without.weights["idle"] == 0
    assert torch.equal(with_idle.total, without.total)
    assert all(torch.equal(with_idle.grads[m], without.grads[m]) for m in ("image", "text"))


def test_what_does_not_converge_is_nan_at_weight_zero_and_refused_at_any_other() -> None:
    def endless(clouds: Clouds, logits: Logits) -> Tensor:
        raise NotConvergedError("still off")

    clouds = of_pairs(tensor_rows(0, 5, 4), tensor_rows(1, 5, 4))
    found = evaluate_terms((TERMS[0], Term("endless", 0.0, endless)), clouds, logits())
    assert found.values["endless"].isnan() and found.total == evaluate_terms(TERMS[:1], clouds, logits()).total
    with pytest.raises(NotConvergedError, match="still off"):
        evaluate_terms((TERMS[0], Term("endless", 0.1, endless)), clouds, logits())


def test_a_term_that_refuses_rows_is_nan_at_weight_zero_and_refuses_at_any_other() -> None:
    image, text = tensor_rows(0, 5, 4), -tensor_rows(0, 5, 4)
    lost = on_clouds(lambda x, y: nystroem_cs(x, y, bandwidth=0.05))
    found = evaluate_terms((TERMS[0], Term("lost", 0.0, lost)), of_pairs(image, text), logits())
    assert found.values["lost"].isnan() and found.total.isfinite()
    with pytest.raises(InputError, match=r"not above .*, its noise"):
        evaluate_terms((TERMS[0], Term("lost", 0.1, lost)), of_pairs(image, text), logits())


def test_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct names"):
        evaluate_terms((TERMS[0], TERMS[0]), of_pairs(tensor_rows(0, 2, 2), tensor_rows(1, 2, 2)), logits())


def test_pairwise_terms_see_the_pairs_and_divergences_all_rows_and_the_memory() -> None:
    """Three pairs in any order, further images and texts, and past embeddings that no gradient reaches."""
    image, text, past = tensor_rows(0, 7, 4), tensor_rows(1, 5, 4), tensor_rows(2, 6, 4)
    first, second, groups = torch.tensor([6, 0, 0]), torch.tensor([1, 4, 2]), torch.tensor([9, 3, 3])
    clouds = Clouds({"image": image, "text": text}, {("image", "text"): Pairs(first, second, groups)}, {"image": past})
    leaves = [image.clone().requires_grad_(), text.clone().requires_grad_()]
    ranked = infonce(leaves[0][first], leaves[1][second], 3.0, groups)
    spread = cs_divergence(torch.cat([leaves[0], past]), leaves[1], 0.5)
    (0.7 * ranked + 2.5 * spread).backward()
    shared = (replace(INFONCE, sums="infonce"), replace(CS, sums=gram_divergence("cs", (0.5,))))
    for separate in (True, False):
        found = evaluate_terms(shared, clouds, logits(), separate=separate)
        torch.testing.assert_close(found.values["infonce"], ranked.detach())
        torch.testing.assert_close(found.values["cs"], spread.detach())
        for leaf, modality in zip(leaves, ("image", "text"), strict=True):
            torch.testing.assert_close(found.grads[modality], leaf.grad)
