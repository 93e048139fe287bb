"""Tables lose nothing, however narrow the screen is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console as RichConsole

from cs_aligner_cli.common.tables import Table


def drawn(table: Table, width: int) -> list[str]:
    """The lines of a table on a screen of a width, titles left out."""
    console = RichConsole(width=width, color_system=None, emoji=False)
    with console.capture() as capture:
        for _, part in table.within(width):
            console.print(part)
    return capture.get().splitlines()


CLOSING = Table(
    "split test",
    ("store", "i2t R@1", "i2t R@10", "t2i R@1", "t2i R@10", "centroid gap", "paired cosine"),
    (
        ("frozen", "10.0", "100.0", "13.3", "55.0", "0.8541", "0.1234"),
        ("frozen+centred", "10.0", "100.0", "13.3", "55.0", "0.8541", "0.1234"),
        ("pairwise_only+procrustes", "10.0", "100.0", "13.3", "55.0", "0.8541", "0.1234"),
    ),
)


@pytest.mark.parametrize("width", [140, 80, 60, 40])
def test_names_and_numbers_are_whole_at_every_usual_width(width: int) -> None:
    lines = drawn(CLOSING, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    words = re.findall(r"[\w.+@]+", "\n".join(lines))
    for row in CLOSING.rows:
        assert all(cell in words for cell in row)


def test_what_fits_is_one_table_and_what_does_not_goes_on_beside_the_names() -> None:
    assert [title for title, _ in CLOSING.within(140)] == ["split test"]
    titles = [title for title, _ in CLOSING.within(60)]
    assert titles == ["split test", *["split test (continued)"] * (len(titles) - 1)] and len(titles) > 1
    assert "\n".join(drawn(CLOSING, 60)).count("frozen+centred") == len(titles)


def test_rows_that_two_columns_name_can_be_told_apart_in_every_part() -> None:
    rows = [
        (way, metric, "10.0 [9.0, 11.0]", "20.0 [19.0, 21.0]") for way in ("i2t", "t2i") for metric in ("R@1", "R@5")
    ]
    table = Table("t", ("direction", "metric", "frozen", "aligned"), tuple(rows), names=2)
    lines = drawn(table, 42)
    assert [len([line for line in lines if way in line and metric in line]) for way, metric, *_ in rows] == [2] * 4


def test_paths_break_behind_slashes() -> None:
    table = Table("t", ("check", "found"), (("data", "no file /tmp/people/runs/demo_clip/train/aligned here"),))
    cells = [line.split("│")[2].strip() for line in drawn(table, 34) if line.startswith("│")]
    assert "".join(cells).replace(" ", "") == "nofile/tmp/people/runs/demo_clip/train/alignedhere"
    assert all(cell.endswith("/") for cell in cells if "/" in cell and "aligned" not in cell)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text("abc/+_ ", max_size=60), st.floats(0, 1e6), st.text("xyz ", max_size=90)), max_size=5),
    st.integers(24, 160),
)
def test_no_character_is_lost(rows: list[tuple[str, float, str]], width: int) -> None:
    cells = tuple((name, f"{number:.3f}", text) for name, number, text in rows)
    table = Table("t", ("name", "number", "what it says"), cells)
    lines = drawn(table, width)
    assert max(map(len, lines)) <= width
    text = "".join(lines)
    for character in "abcxyz/+_":
        names, others = "".join(row[0] for row in cells), "".join(row[2] for row in cells)
        groups = len(list(table.within(width)))
        heads = "".join(("name", "number", "what it says")).count(character) + "name".count(character) * (groups - 1)
        assert text.count(character) == names.count(character) * groups + others.count(character) + heads
