"""Data sets of Hugging Face's hub: read in its cache, and a clear message where they are not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_inputs import picture
from conftest import Csalign
from huggingface_hub import constants

from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.runs.layout import Layout

STORED = {"encoders": {"image": {"kind": "open_clip", "random_init": True, "config": {}}}}


def _shards(folder: Path, numbers: list[int], of: int) -> None:
    """Shards of two images with two captions each, as the hub has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        images = [{"bytes": picture(10 * number + i), "path": f"{number}{i}.png"} for i in range(2)]
        captions = [[f"the {k}. caption of {number}{i}" for k in range(2)] for i in range(2)]
        pq.write_table(
            pa.table({"image": images, "caption": captions}), folder / f"train-{number:05d}-of-{of:05d}.parquet"
        )


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_yaml: Callable[..., Path]) -> tuple[Path, Path]:
    """A recipe over hf:org/pictures, and the snapshot's folder in a cache; there is no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tables = {"train": "data/train-*.parquet"}
    write_yaml("m.yaml", name="m", kind="table", root="hf:org/pictures", tables=tables)
    recipe = write_yaml("r.yaml", name="r", run_dir=str(tmp_path / "run"), data={"manifest": "m.yaml"}, **STORED)
    return recipe, tmp_path / "hub" / "datasets--org--pictures" / "snapshots" / "abc"


def _publish(snapshot: Path) -> None:
    refs = snapshot.parents[1] / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc")


def test_a_data_set_of_the_hub_is_read_in_its_cache(hub: tuple[Path, Path], csalign: Csalign) -> None:
    recipe, snapshot = hub
    _shards(snapshot / "data", [0, 1], of=2)
    _publish(snapshot)
    found: Any = csalign("prepare", recipe, "--json", "-q").json
    assert found["splits"]["train"]["images"] == 4 and found["splits"]["train"]["captions"] == 8
    assert csalign("prepare", recipe, "--json", "-q").json["status"] == "fresh"
    own = Layout(load_recipe(str(recipe))).prepared.wanted()
    assert own != Layout(load_recipe(str(recipe), ["data.root=hf:org/others"])).prepared.wanted()


@pytest.mark.parametrize("there", ["nothing", "a shard of two"])
def test_what_is_not_whole_in_the_cache_is_refused_without_a_network(
    there: str, hub: tuple[Path, Path], refused: Callable[..., str]
) -> None:
    recipe, snapshot = hub
    if there != "nothing":
        _shards(snapshot / "data", [0], of=2)
        _publish(snapshot)
    message = refused("prepare", recipe)
    assert message.startswith(f"data.root: hf:org/pictures is not whole in {constants.HF_HUB_CACHE}")
    assert "hf download --repo-type dataset org/pictures" in message and "--set data.root=FOLDER" in message


def test_names_of_data_sets_are_checked(hub: tuple[Path, Path], refused: Callable[..., str]) -> None:
    message = refused("prepare", hub[0], "--set", "data.root=hf:pictures")
    assert "expected hf:ORG/NAME, or hf:ORG/NAME@REVISION" in message
