"""Mean ranks over data sets: scipy's numbers, published critical values, and the commands that show them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from conftest import Csalign
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cs_aligner_cli.cli.schemas import result_schema
from cs_aligner_cli.experiments.ranks import critical_difference, friedman
from cs_aligner_cli.files.checksums import sealed


@given(st.integers(2, 12), st.integers(3, 6), st.integers(0, 2**32 - 1))
def test_the_statistic_is_scipys_with_and_without_ties(sets: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 8, (sets, count)).astype(float)
    ranks = stats.rankdata(values, axis=1)
    if (ranks == ranks[:, :1]).all():
        assert friedman(ranks) == (0.0, None, 1.0)
    else:
        assert friedman(ranks)[0] == pytest.approx(stats.friedmanchisquare(*values.T).statistic)


def test_demsars_example() -> None:
    """Demsar (JMLR 2006), section 3.2.2: four algorithms on 14 data sets, average ranks 3.143, 2.000, 2.893, 1.964."""
    assert critical_difference(4, 14) == pytest.approx(2.569 * np.sqrt(20 / (6 * 14)), abs=1e-3)
    assert critical_difference(2, 10) == pytest.approx(1.960 * np.sqrt(6 / 60), abs=1e-3)
    assert critical_difference(10, 30) == pytest.approx(3.164 * np.sqrt(110 / 180), abs=1e-3)


def test_equal_rankings_are_as_unlikely_as_chance_makes_them() -> None:
    chi_square, f, p = friedman(np.tile([1.0, 2.0, 3.0], (3, 1)))
    assert (chi_square, f) == (pytest.approx(6), None)
    assert p == pytest.approx(1 / 36)
    assert friedman(np.array([[1.0, 2.0]])) == (0.0, None, 1.0)
    assert friedman(np.tile([1.5, 1.5, 3.0], (3, 1)))[2] == pytest.approx(1 / 9), "two that tie leave three orders"


@pytest.mark.parametrize("count", [170, 200, 1000])
def test_many_configurations_that_all_data_sets_rank_alike(count: int) -> None:
    """200! is no float, and its inverse is none but 0."""
    assert friedman(np.tile(np.arange(1.0, count + 1), (2, 1)))[1:] == (None, pytest.approx(0, abs=1e-300))
    tied = np.append(np.full(count - 1, count / 2), count)
    assert friedman(np.tile(tied, (2, 1)))[2] == pytest.approx(1 / count)


def of_another_data_set(sweep: Path, name: str) -> Path:
    """Let the runs of a copied sweep say that they were measured on another data set."""
    for file in sweep.glob("runs/*/run.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        record.pop("seal")
        record["stages"]["prepare"]["data_set"] = name
        file.write_text(json.dumps(sealed(record)), encoding="utf-8")
    return sweep


def test_sweeps_of_several_data_sets_are_compared_by_their_ranks(
    csalign: Csalign, refused: Callable[..., str], finished_sweep: Path, tmp_path: Path
) -> None:
    sweeps = [finished_sweep]
    for name in ("other", "third"):
        sweeps.append(of_another_data_set(Path(shutil.copytree(finished_sweep, tmp_path / name)), name))
    out = [tmp_path / f"ranks{suffix}" for suffix in (".md", ".tex", ".csv", ".json", ".html")]
    found = csalign("compare", *sweeps, "--json", *(part for path in out for part in ("--out", path))).json
    jsonschema.validate(found, result_schema("compare-data-sets"))
    assert [one["control"] for one in found["comparisons"]] == ["InfoNCE"] * 3
    ranks = found["ranks"]
    assert {row["mean_rank"] for row in ranks["rows"]} == {1.0, 2.0}
    assert (ranks["f"], ranks["p"]) == (None, pytest.approx(0.25))
    assert "shows no difference" in ranks["conclusions"][0]
    texts = [path.read_text(encoding="utf-8") for path in out]
    assert all("InfoNCE" in text and "third" in text for text in texts)
    assert "\\toprule" in texts[1] and "http" not in texts[4].replace("http-equiv", "")
    assert "mean ranks" in csalign("compare", *sweeps).stdout
    for file in (tmp_path / "other" / "states").iterdir():
        state = json.loads(file.read_text(encoding="utf-8"))
        state.pop("seal")
        file.write_text(json.dumps(sealed(state | {"configuration": f"my {state['configuration']}"})), encoding="utf-8")
    message = refused("compare", *sweeps, "--control", "InfoNCE")
    assert "no configuration is named 'InfoNCE'" in message or "fewer than two configurations in common" in message
