"""A WebDataset of 300 Flickr8k photos: one shard truncated, one image corrupted, and exactly those reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import webdataset

from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.stores.embeddings import Store

ROOT = Path(__file__).resolve().parents[3] / "shared" / "data" / "flickr8k"
pytestmark = pytest.mark.skipif(not (ROOT / "images").is_dir(), reason=f"the Flickr8k photos are not in {ROOT}")
PHOTOS, PER_SHARD = 300, 60


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Five shards of photos, five captions each, written by the webdataset library."""
    folder = tmp_path / "shards"
    folder.mkdir()
    captions = pd.read_csv(ROOT / "captions.csv").groupby("image")["caption"].agg(list)
    photos = sorted((ROOT / "images").iterdir())[:PHOTOS]
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=PER_SHARD, verbose=0) as writer:
        for photo in photos:
            metadata = {"captions": captions[photo.name], "image_id": photo.name}
            writer.write({"__key__": photo.stem, "jpg": photo.read_bytes(), "json": metadata})
    return folder


@pytest.fixture
def recipe(shards: Path, write_yaml: Callable[..., Path], tiny_clip_config: dict[str, Any]) -> Path:
    write_yaml("shards.yaml", name="photos", kind="webdataset", root=str(shards), shards={"test": "*.tar"})
    image = {"kind": "open_clip", "random_init": True, "config": tiny_clip_config}
    return write_yaml(
        "recipe.yaml", name="r", run_dir="run", data={"manifest": "shards.yaml"}, encoders={"image": image}, train=None
    )


def test_real_shards(recipe: Path, shards: Path, csalign: Callable[..., Any], refused: Callable[..., str]) -> None:
    called = csalign("prepare", recipe, "--json")
    assert called.exit_code == 0, called.stderr
    assert called.json["splits"] == {"test": {"images": PHOTOS, "captions": 5 * PHOTOS}}
    assert csalign("embed", recipe).exit_code == 0
    frozen = recipe.parent / "run" / "embeddings" / "frozen" / "test"
    whole = Store(frozen).array("image").all()

    # Corrupt the 42nd photo of shard 1 in its pixel data, and cut shard 3 in the middle of its 31st.
    locators = PreparedData(recipe.parent / "run" / "data").images["locator"]
    corrupted, cut = locators[1 * PER_SHARD + 41], locators[3 * PER_SHARD + 30]
    offset, size = map(int, corrupted.rpartition("@")[2].split("+"))
    content = bytearray((shards / "00001.tar").read_bytes())
    content[offset : offset + size] = content[offset : offset + 200] + bytes(size - 200)
    (shards / "00001.tar").write_bytes(content)
    name = corrupted.split("::")[1].split("@")[0]
    # embed, on data that were prepared before: the image by shard and member.
    message = refused("embed", recipe, "--force")
    assert message.startswith(f"{shards}/{corrupted}: damaged: ")

    middle = int(cut.rpartition("@")[2].split("+")[0]) + 1000
    (shards / "00003.tar").write_bytes((shards / "00003.tar").read_bytes()[:middle])
    called = csalign("prepare", recipe, "--json")
    assert called.exit_code == 3
    first, second = json.loads((recipe.parent / "run" / "data" / "report.json").read_text())["bad_items"]
    assert (first["kind"], first["item"]) == ("shard", str(shards / "00003.tar"))
    assert first["reason"].startswith(f"truncated inside {cut.split('::')[1].split('@')[0]}, after 1000 of its ")
    assert (second["kind"], second["item"]) == ("image", f"{shards}/{corrupted}")
    assert second["reason"].startswith("damaged: ")
    assert name in second["item"]
    assert called.json["splits"] == {"test": {"images": PHOTOS - 1 - 30, "captions": 5 * (PHOTOS - 1 - 30)}}

    # What is whole is embedded, to the same values as before.
    assert csalign("embed", recipe).exit_code == 0
    keep = np.ones(PHOTOS, bool)
    keep[[1 * PER_SHARD + 41, *range(3 * PER_SHARD + 30, 4 * PER_SHARD)]] = False
    np.testing.assert_allclose(Store(frozen).array("image").all(), whole[keep], atol=1e-6)
