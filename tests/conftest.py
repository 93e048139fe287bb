"""What the tests share: small data sets on disk, recipes for them, and the command line called in process."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from trials import Trial
from typer.testing import CliRunner

# Threads that wait for each other make tiny problems slow, and on a busy machine fifty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
# readline, which pytest imports, states a width of 80 to the workers of xdist; output in a pipe has none.
os.environ.pop("COLUMNS", None)

SPLITS = {"train": 120, "dev": 40, "test": 40}
CAPTIONS_PER_IMAGE = 5
IMAGE_DIM, TEXT_DIM = 24, 16


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none; torch is asked only if such tests were collected.

    The longest tests are those of the whole: they come first, since nothing would fill the other core at the end.
    """
    items.sort(key=lambda item: "whole" not in item.path.parts)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device: make test-gpu runs it where there is one"))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A fifth of the suite's time would be os.fsync, and nothing but a loss of power can tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@dataclass(frozen=True)
class Called:
    """What a call of csalign gave back."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """stdout read as one JSON value."""
        return json.loads(self.stdout)


Csalign = Callable[..., Called]


@pytest.fixture
def csalign() -> Csalign:
    """``csalign("train", recipe, "--json")``: the command line in process; a bug in csalign raises here."""
    from cs_aligner_cli.cli.main import app

    def call(*arguments: object) -> Called:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert "Traceback" not in result.stderr
        return Called(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def refused(csalign: Csalign) -> Callable[..., str]:
    """``refused("prepare", recipe)``: the message of a call that must end with exit code 2, stdout empty."""

    def call(*arguments: object) -> str:
        called = csalign(*arguments)
        assert (called.exit_code, called.stdout) == (2, ""), called
        assert called.stderr.count("csalign:") == 1
        return called.stderr.removeprefix("csalign: ").strip()

    return call


@pytest.fixture
def write_yaml(tmp_path: Path) -> Callable[..., Path]:
    """``write_yaml("my.yaml", name="x", data={...})``: a recipe or manifest file in tmp_path."""

    def write(file: str, **content: Any) -> Path:
        (tmp_path / file).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return tmp_path / file

    return write


@pytest.fixture
def trial(tmp_path: Path, csalign: Csalign, write_yaml: Callable[..., Path]) -> Trial:
    """``trial.put("a.jpg", ...)``, then ``trial(kind="folder")``: the outcome of prepare."""
    return Trial(tmp_path, csalign, write_yaml)


def make_features(root: Path, splits: dict[str, int] = SPLITS, seed: int = 0) -> Path:
    """Write a folder laid out like Flickr8k's features: both modalities see the same factors, with noise."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    count = sum(splits.values())
    factors = rng.standard_normal((count, 8))
    image_map, text_map = rng.standard_normal((8, IMAGE_DIM)), rng.standard_normal((8, TEXT_DIM))
    images = factors @ image_map + 0.1 * rng.standard_normal((count, IMAGE_DIM))
    per_caption = np.repeat(factors, CAPTIONS_PER_IMAGE, axis=0)
    texts = (per_caption + 0.2 * rng.standard_normal(per_caption.shape)) @ text_map
    names = [f"{i:04d}.jpg" for i in range(count)]
    split_of = [split for split, n in splits.items() for _ in range(n)]
    of_image = np.repeat(np.arange(count), CAPTIONS_PER_IMAGE)
    pd.DataFrame({"image": names, "split": split_of}).to_csv(root / "images.csv", index=False)
    pd.DataFrame(
        {
            "image": [names[i] for i in of_image],
            "caption": [f"caption {k % CAPTIONS_PER_IMAGE} of picture {i}" for k, i in enumerate(of_image)],
            "split": [split_of[i] for i in of_image],
        }
    ).to_csv(root / "captions.csv", index=False)
    np.save(root / "image_mobilenet_v2.npy", images.astype(np.float16))
    np.save(root / "text_minilm.npy", texts.astype(np.float16))
    return root


@pytest.fixture
def features_root(tmp_path: Path) -> Path:
    """Features of 120 train, 40 dev, 40 test images x 5 captions, laid out like Flickr8k's, in tmp_path.

    Image features (200, 24) and text features (1000, 16), float16; a test may change them.
    """
    return make_features(tmp_path / "features")


def features_recipe_content(root: Path, run_dir: Path) -> dict[str, Any]:
    """A recipe over such features that learns well above chance in about a second."""
    adapter = {"adapter": {"kind": "residual_mlp", "hidden_dim": 32}}
    return {
        "name": "tiny",
        "run_dir": str(run_dir),
        "data": {"manifest": "flickr8k", "root": str(root)},
        "encoders": {"image": {"kind": "features", "power": 0.5}, "text": {"kind": "features"}},
        "train": {"epochs": 16, "batch_size": 32, "embed_dim": 12, "image": adapter, "text": adapter},
        "eval_retrieval": {"split": "dev"},
        "gap_report": {"max_pairs": 40, "baselines": {"frozen": ["cca"]}, "formats": []},
    }


@pytest.fixture
def features_recipe(features_root: Path, tmp_path: Path, write_yaml: Callable[..., Path]) -> Path:
    """A recipe file over ``features_root``; its run goes to tmp_path / "run"."""
    return write_yaml("features.yaml", **features_recipe_content(features_root, tmp_path / "run"))


PHOTO_SPLITS = {"train": 8, "dev": 4, "test": 4}


def make_photos(root: Path) -> Path:
    """Write ``images/*`` (JPEG, PNG, several sizes and modes) and ``captions.csv`` (image,caption,split)."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for i, split in enumerate(split for split, n in PHOTO_SPLITS.items() for _ in range(n)):
        mode, suffix = [("RGB", "jpg"), ("RGB", "png"), ("L", "jpg"), ("RGBA", "png")][i % 4]
        pixels = rng.integers(0, 256, (30 + i, 40 + 2 * i, len(Image.new(mode, (1, 1)).getbands())), np.uint8)
        Image.fromarray(pixels.squeeze(), mode=None).save(root / "images" / f"{i:02d}.{suffix}")
        rows += [(f"{i:02d}.{suffix}", f"noise number {i}, told the {k}. time", split) for k in range(2)]
    pd.DataFrame(rows, columns=["image", "caption", "split"]).to_csv(root / "captions.csv", index=False)
    return root


@pytest.fixture
def photos_root(tmp_path: Path) -> Path:
    """16 photos (8 train, 4 dev, 4 test) x 2 captions in tmp_path / "photos"; a test may change them."""
    return make_photos(tmp_path / "photos")


# The smallest useful open_clip architecture, as the recipe's ``encoders.*.config`` takes it.
TINY_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 2},
}


@pytest.fixture
def tiny_clip_config() -> dict[str, Any]:
    """``TINY_CLIP``, for a test to change."""
    return copy.deepcopy(TINY_CLIP)


def photos_recipe_content(root: Path, run_dir: Path) -> dict[str, Any]:
    """A recipe over such photos with a tiny random open_clip model."""
    return {
        "name": "photos",
        "run_dir": str(run_dir),
        "data": {"manifest": "flickr8k_images", "root": str(root)},
        "encoders": {"image": {"kind": "open_clip", "random_init": True, "config": copy.deepcopy(TINY_CLIP)}},
        "train": {"epochs": 2, "batch_size": 4},
        "eval_retrieval": {"split": "dev", "ks": [1, 2]},
        "gap_report": {"formats": []},
    }


@pytest.fixture
def photos_recipe(photos_root: Path, tmp_path: Path, write_yaml: Callable[..., Path]) -> Path:
    """A recipe file over ``photos_root``; its run goes to tmp_path / "run"."""
    return write_yaml("photos.yaml", **photos_recipe_content(photos_root, tmp_path / "run"))


WEIGHT = "train.objective.divergence.weight"
SWEEP = {"settings": {"InfoNCE": {WEIGHT: 0}, "CS": {WEIGHT: 30.0}}, "seeds": 2, "control": "InfoNCE"}


def sweep_recipe_content(root: Path, folder: Path) -> dict[str, Any]:
    """Two configurations with two seeds, which learn for three epochs, over such features."""
    content = features_recipe_content(root, folder)
    content["train"]["epochs"] = 3
    content["eval_retrieval"] = {"split": "dev", "bootstrap": 0}
    return {**content, "sweep": SWEEP}


@pytest.fixture
def sweep_recipe(features_root: Path, tmp_path: Path, write_yaml: Any) -> Path:
    """The recipe of a sweep in tmp_path / "sweep"."""
    return write_yaml("sweep.yaml", **sweep_recipe_content(features_root, tmp_path / "sweep"))


@pytest.fixture(scope="session")
def finished_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep that no test may change.

    Beside its folder lie the recipe (sweep.yaml) and what it printed when planned and run (planned.json, printed.json).
    """
    from cs_aligner_cli.cli.main import app

    here = tmp_path_factory.mktemp("finished")
    file = here / "sweep.yaml"
    file.write_text(
        yaml.safe_dump(sweep_recipe_content(make_features(here / "features"), here / "sweep"), sort_keys=False)
    )
    for name, option in (("planned", ["--dry-run"]), ("printed", [])):
        done = CliRunner().invoke(app, ["sweep", str(file), "--json", *option])
        assert done.exit_code == 0, done.stderr
        (here / f"{name}.json").write_text(done.stdout, encoding="utf-8")
    return here / "sweep"
