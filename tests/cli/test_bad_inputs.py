"""Every bad input of docs/bad-inputs.md: one message, the right exit code, no traceback; and the page is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
from bad_inputs import CASES, PAGE, Case, outcome, page, run

ALL = [pytest.param(group, case, id=f"{group}: {case.name}") for group, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("group", "case"), ALL)
def test_a_bad_input_gets_one_message(group: str, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSALIGN_RECIPE", raising=False)
    name, command, code, message = outcome(case, tmp_path)
    assert code in (2, 3)
    assert "Traceback" not in message and "bug in csalign" not in message
    assert str(Path.cwd()) not in message or Path.cwd() == tmp_path
    row = page({group: [(name, command, code, message)]}).splitlines()[-1]
    assert row in PAGE.read_text(encoding="utf-8").splitlines(), "run make docs"


def test_the_page_holds_these_cases_and_no_others() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(ALL) >= 60
    assert f"says to {len(ALL)} bad inputs" in text
    cases = text.partition("## Faults found in the field")[0]
    rows = [line.split(" | ")[0].removeprefix("| ") for line in cases.splitlines() if line.startswith("| ")]
    assert [row for row in rows if row != "input"] == [case.name for cases in CASES.values() for case in cases]


def test_what_was_there_before_is_not_damaged(tmp_path: Path) -> None:
    """A refused second prepare leaves the first one's output as it is."""
    from bad_inputs import HEAD, Bench

    bench = Bench(tmp_path)
    assert run(bench.table(HEAD + "a.png,x,train\n"), tmp_path)[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "data").iterdir()}
    assert run(bench.table(HEAD + "a.png,x\n"), tmp_path)[0] == 2
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "data").iterdir()} == before
