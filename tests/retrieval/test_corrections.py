"""Score corrections against their formulas on full matrices; nothing of the measured split helps itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.recipe.eval_retrieval import Correction
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.retrieval import Rows
from cs_aligner_cli.retrieval.corrections import CORRECTIONS, Bank, corrected
from cs_aligner_cli.retrieval.metrics import summarise
from cs_aligner_cli.retrieval.protocol import caption_protocol, evaluate


def unit(seed: int, count: int, hub: float = 0.0) -> torch.Tensor:
    drawn = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + hub
    return torch.nn.functional.normalize(drawn, dim=1)


IMAGE, TEXT = unit(0, 9, 0.4), unit(1, 14, -0.2)
BANK = Bank(unit(2, 40, 0.4), unit(3, 50, -0.2), neighbors=5, beta=20.0)


def scores(name: str, image=IMAGE, text=TEXT):
    searched = corrected(name, Rows(image.numpy(), "i"), Rows(text.numpy(), "t"), BANK)
    return {d: (x.all().double() @ y.all().double().T).numpy() for d, (x, y) in searched.items()}


def test_the_table_names_what_the_recipe_names() -> None:
    assert set(CORRECTIONS) == set(Correction.__args__)  # type: ignore[attr-defined]


def test_csls_is_its_formula() -> None:
    cosine, to_text, to_image = IMAGE @ TEXT.T, IMAGE @ BANK.text.T, TEXT @ BANK.image.T
    r_image, r_text = (m.sort(dim=1, descending=True).values[:, :5].mean(dim=1) for m in (to_text, to_image))
    expected = 2 * cosine - r_image[:, None] - r_text[None]
    for found in scores("csls").values():
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_inverted_softmax_ranks_as_the_ratio_of_exponentials() -> None:
    cosine = (IMAGE @ TEXT.T).double()
    mass_text = torch.exp(20 * (BANK.image @ TEXT.T).double()).sum(dim=0)
    mass_image = torch.exp(20 * (BANK.text @ IMAGE.T).double()).sum(dim=0)
    found = scores("inverted_softmax")
    i2t = (torch.exp(20 * cosine) / mass_text[None]).numpy()
    np.testing.assert_array_equal(np.argsort(-found["i2t"], axis=1), np.argsort(-i2t, axis=1))
    t2i = (torch.exp(20 * cosine) / mass_image[:, None]).numpy()
    np.testing.assert_array_equal(np.argsort(-found["t2i"], axis=0), np.argsort(-t2i, axis=0))


def test_qb_norm_corrects_only_queries_whose_first_item_the_bank_draws_too() -> None:
    cosine = (IMAGE @ TEXT.T).double()
    mass = torch.logsumexp(20 * (BANK.image @ TEXT.T).double(), dim=0) / 20
    drawn = set((BANK.image @ TEXT.T).argmax(dim=1).tolist())
    found = scores("qb_norm")["i2t"]
    first = cosine.argmax(dim=1).tolist()
    assert 0 < sum(item in drawn for item in first) < len(first)  # both cases occur
    for row, item in enumerate(first):
        expected = cosine[row] - mass if item in drawn else cosine[row]
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_centring_takes_off_the_mean_of_the_bank() -> None:
    image = torch.nn.functional.normalize(IMAGE - BANK.image.mean(dim=0), dim=1)
    text = torch.nn.functional.normalize(TEXT - BANK.text.mean(dim=0), dim=1)
    np.testing.assert_allclose(scores("centred")["t2i"], image @ text.T, atol=1e-5)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_query_gets_the_same_scores_whatever_else_is_asked(name: str) -> None:
    """With more queries in the split, those of the first stay: nothing is learnt from what is measured."""
    alone, together = scores(name, image=IMAGE[:4])["i2t"], scores(name)["i2t"][:4]
    np.testing.assert_allclose(alone, together, atol=1e-6)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_corrected_rows_go_through_the_exact_pass(name: str) -> None:
    owner = np.arange(14) % 9
    searched = corrected(name, Rows(IMAGE.numpy(), "i"), Rows(TEXT.numpy(), "t"), BANK)
    found = evaluate(searched, caption_protocol(owner, 9, 14), (1, 3))
    full = scores(name)
    for direction, matrix in (("i2t", full["i2t"]), ("t2i", full["t2i"].T)):
        order = np.argsort(-matrix.astype(np.float32), axis=1, kind="stable")
        true = (owner[order] == np.arange(9)[:, None]) if direction == "i2t" else (order == owner[:, None])
        np.testing.assert_array_equal(found[direction].scores.ranks, true.argmax(axis=1) + 1)
    assert summarise({d: e.scores for d, e in found.items()})["i2t"]["queries"] == 9


def test_csls_needs_a_bank_of_enough_rows() -> None:
    small = Bank(BANK.image[:3], BANK.text, neighbors=5)
    with pytest.raises(InputError, match="neighbors = 5, but the bank holds 3 images and 50 texts"):
        corrected("csls", Rows(IMAGE.numpy(), "i"), Rows(TEXT.numpy(), "t"), small)


@pytest.mark.parametrize("beta", ["0", "1e-300", "1e300", ".inf", ".nan"])
def test_a_temperature_that_float32_cannot_take_is_refused_by_its_key(beta: str) -> None:
    with pytest.raises(InputError, match=r"eval_retrieval\.query_bank\.beta"):
        load_recipe("scenes", [f"eval_retrieval.query_bank.beta={beta}"])


@pytest.mark.parametrize("beta", [0.01, 1e6])
@pytest.mark.parametrize("name", ["inverted_softmax", "qb_norm"])
def test_the_ends_of_the_temperature_give_numbers(name: str, beta: float) -> None:
    found = corrected(name, Rows(IMAGE.numpy(), "i"), Rows(TEXT.numpy(), "t"), Bank(BANK.image, BANK.text, 10, beta))
    assert all(rows.all().isfinite().all() for pair in found.values() for rows in pair)
