"""The weighted sum of terms: its gradient, apart and over shared tiles, and weights relative to the first term."""

from __future__ import annotations

import math

import pytest
import torch
from samples import tensor_rows
from torch import Tensor

from cs_aligner_cli.objectives import (
    Logits,
    Term,
    TermValues,
    cs_divergence,
    energy_distance,
    evaluate_terms,
    infonce,
    siglip,
)
from cs_aligner_cli.objectives.divergences import gram_divergence

INFONCE = Term("infonce", 0.7, lambda image, text, logits, groups: infonce(image, text, logits.scale, groups))
CS = Term("cs", 2.5, lambda image, text, logits, groups: cs_divergence(image, text, 0.5))
TERMS = (
    INFONCE,
    CS,
    Term("image norm", -0.1, lambda image, text, logits, groups: image.square().mean()),
    Term("siglip", 0.3, lambda image, text, logits, groups: siglip(image, text, *logits, groups)),
)


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
    total = sum(term.weight * term.loss(image, text, found, groups) for term in TERMS)
    expected = torch.autograd.grad(total, parameters)

    image, text, found = embedded()
    result = evaluate_terms(TERMS, image, text, found, groups)
    assert (result.image_grad.dtype, result.logit_grads.scale.shape) == (dtype, ())
    torch.autograd.backward([image, text, *found], [result.image_grad, result.text_grad, *result.logit_grads])
    rtol = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(result.total.double(), total.detach().double(), rtol=rtol, atol=rtol)
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=rtol, atol=rtol)


def test_every_value_weight_and_gradient_norm_is_named() -> None:
    image, text = tensor_rows(0, 5, 4), tensor_rows(1, 5, 4)
    with torch.no_grad():  # the gradient is taken whether or not the caller records one
        result = evaluate_terms(TERMS, image, text, logits())
    names = ["infonce", "cs", "image norm", "siglip"]
    assert list(result.values) == list(result.grad_norms) == list(result.weights) == names
    for term in TERMS:
        leaves = [image.clone().requires_grad_(), text.clone().requires_grad_()]
        value = term.loss(*leaves, logits(), None)
        grads = torch.autograd.grad(value, leaves, allow_unused=True)
        norm = abs(term.weight) * math.sqrt(sum(g.square().sum().item() for g in grads if g is not None))
        assert result.values[term.name].item() == pytest.approx(value.item())
        assert not result.values[term.name].requires_grad
        assert result.weights[term.name] == term.weight
        assert result.grad_norms[term.name].item() == pytest.approx(norm)
    assert not image.requires_grad


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
        Term(kind, 2.5, lambda image, text, _, groups: loss(image, text, [0.4, 0.9])),
    )
    shared = (
        Term("infonce", 0.7, apart[0].loss, sums="infonce"),
        Term(kind, 2.5, apart[1].loss, sums=divergence),
    )
    image, text = tensor_rows(0, 700, 4), tensor_rows(1, 700, 4)
    groups = torch.arange(700) // (2 if grouped else 1)
    expected = evaluate_terms(apart, image, text, logits(scale), groups)
    together = evaluate_terms(shared, image, text, logits(scale), groups, separate=False)
    assert together.grad_norms == {} and together.weights == {"infonce": 0.7, kind: 2.5}
    _assert_equal(together, expected)
    again = evaluate_terms(shared, image, text, logits(scale), groups, separate=True)
    assert set(again.grad_norms) == {"infonce", kind}
    _assert_equal(again, expected)


def _assert_equal(ours: TermValues, theirs: TermValues) -> None:
    for name, value in theirs.values.items():
        torch.testing.assert_close(ours.values[name], value, rtol=1e-9, atol=1e-12)
    pairs = [(ours.total, theirs.total), (ours.image_grad, theirs.image_grad), (ours.text_grad, theirs.text_grad)]
    for one, other in [*pairs, *zip(ours.logit_grads, theirs.logit_grads, strict=True)]:
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_a_relative_weight_sets_the_ratio_of_the_gradients() -> None:
    image, text = tensor_rows(0, 9, 4), tensor_rows(1, 9, 4)
    relative = Term("cs", 0.0, CS.loss, relative=0.25, sums=gram_divergence("cs", (0.5,)))
    first = Term("infonce", 0.7, INFONCE.loss, sums="infonce")
    result = evaluate_terms((first, relative), image, text, logits(), separate=False)
    ratio = result.grad_norms["cs"] / result.grad_norms["infonce"]
    assert ratio.item() == pytest.approx(0.25)
    fixed = Term("cs", result.weights["cs"], CS.loss)
    _assert_equal(evaluate_terms((first, fixed), image, text, logits()), result)
    still = Term("still", 0.0, lambda image, text, logits, groups: 0 * image.sum(), relative=0.25)
    assert evaluate_terms((first, still), image, text, logits()).weights["still"] == 0.0


def test_a_term_of_weight_zero_is_valued_and_nothing_else() -> None:
    def broken(image: Tensor, text: Tensor, logits: Logits, groups: Tensor | None) -> Tensor:
        return (image.sum() + logits.scale) * torch.inf

    image, text = tensor_rows(0, 5, 4), tensor_rows(1, 5, 4)
    alone = evaluate_terms(TERMS[:1], image, text, logits())
    beside = evaluate_terms((*TERMS[:1], Term("broken", 0.0, broken)), image, text, logits())
    assert beside.values["broken"].isinf()
    assert beside.grad_norms["broken"] == 0
    for name in ("total", "image_grad", "text_grad"):
        assert torch.equal(getattr(alone, name), getattr(beside, name))
    assert torch.equal(alone.logit_grads.scale, beside.logit_grads.scale)
    only_zero = evaluate_terms((Term("broken", 0.0, broken),), image, text, logits())
    assert only_zero.total == 0
    assert only_zero.image_grad.abs().sum() == 0


def test_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="distinct names"):
        evaluate_terms((TERMS[0], TERMS[0]), tensor_rows(0, 2, 2), tensor_rows(1, 2, 2), logits())
