"""Numbers with their nouns, in the singular and the plural."""

from __future__ import annotations

import pytest

from cs_aligner_cli.common.counted import counted


@pytest.mark.parametrize(
    ("nouns", "one"),
    [
        ("items", "item"),
        ("gps items", "gps item"),
        ("unpaired gps items of split test", "unpaired gps item of split test"),
        ("captions of a split", "caption of a split"),
        ("contents of images", "content of images"),
        ("class names", "class name"),
        ("classes", "class"),
        ("batches", "batch"),
        ("branches", "branch"),
        ("caches", "cache"),
        ("cases", "case"),
        ("sizes", "size"),
        ("indexes", "index"),
        ("queries", "query"),
        ("bytes", "byte"),
        ("sheep", "sheep"),
    ],
)
def test_one_of_a_plural_is_its_last_noun(nouns: str, one: str) -> None:
    assert counted(1, nouns) == counted(1, nouns, of=1).replace("1 of 1", "1") == f"1 {one}"
    assert counted(2, nouns) == f"2 {nouns}"
    assert counted(1, nouns, of=5) == f"1 of 5 {nouns}"


def test_verbs_follow_the_number() -> None:
    assert [counted(n, "gps items", "are", of=5) for n in (1, 2)] == ["1 of 5 gps items is", "2 of 5 gps items are"]
    assert [counted(n, "images", "look") for n in (1, 2)] == ["1 image looks", "2 images look"]
