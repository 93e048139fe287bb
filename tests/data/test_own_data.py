"""docs/own-data.md, followed literally, with its model of random weights in place of the one that would be fetched."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trials import picture

PAGE = Path(__file__).parents[2] / "docs" / "own-data.md"


def test_from_a_folder_to_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, csalign: Callable[..., Any]
) -> None:
    manifest, recipe, random_weights = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(manifest.splitlines()) <= 6 and len(recipe.splitlines()) <= 10
    (tmp_path / "pictures").mkdir()
    for i in range(40):
        (tmp_path / "pictures" / f"{i}.png").write_bytes(picture(i))
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"picture number {i}\nanother caption of {i}\n")
    (tmp_path / "mine.yaml").write_text(manifest)
    fetched = re.compile(r"encoders:\n  image: .*\n")
    assert fetched.search(recipe)
    (tmp_path / "recipe.yaml").write_text(fetched.sub(random_weights, recipe))
    monkeypatch.chdir(tmp_path)
    quick = ("--set", "train.epochs=1", "--set", "train.batch_size=8", "--set", "train.device=cpu")
    prepared = csalign("prepare", "--json")
    assert prepared.exit_code == 0, prepared.stderr
    assert prepared.json["splits"] == {"train": {"images": 32, "captions": 64}, "test": {"images": 8, "captions": 16}}
    ran = csalign("run", *quick)
    assert ran.exit_code == 0, ran.stderr
    assert (tmp_path / "runs" / "mine" / "gap_report" / "report.html").is_file()
