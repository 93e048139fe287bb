"""recipes/photos_few_pairs.yaml from files to report: on drawn photos through small models of the same libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from test_encoder_kinds import BERT_SPECIAL, SMALL, WORDS, word_tokenizer


def drawn_photos(root: Path) -> None:
    """Forty training photos and ten of dev, with two captions each, no two alike."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    captions = (" ".join(words) for words in product(WORDS, repeat=3))
    rows = []
    for i in range(50):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(root / "images" / f"{i}.png")
        rows += [(f"{i}.png", next(captions), "train" if i < 40 else "dev") for _ in range(2)]
    pd.DataFrame(rows, columns=["image", "caption", "split"]).to_csv(root / "captions.csv", index=False)


def sentence_model(folder: Path) -> None:
    """A pipeline as MiniLM's: a small BERT, the mean over its tokens, unit length."""
    config = transformers.BertConfig(vocab_size=4 + len(WORDS), max_position_embeddings=16, **SMALL)
    transformers.BertModel(config).save_pretrained(folder / "bert")
    word_tokenizer(**BERT_SPECIAL).save_pretrained(folder / "bert")
    parts = [modules.Transformer(str(folder / "bert")), modules.Pooling(32, pooling_mode="mean"), modules.Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder))


def test_few_pairs_of_drawn_photos_go_from_files_to_report(csalign: Callable[..., Any], tmp_path: Path) -> None:
    drawn_photos(tmp_path / "photos")
    sentence_model(tmp_path / "sentences")
    settings = {
        "data.root": tmp_path / "photos",
        "run_dir": tmp_path / "run",
        "encoders.image": "{kind: timm, model: test_efficientnet, random_init: true}",
        "encoders.text.model": f"local-dir:{tmp_path / 'sentences'}",
        "data.unpaired.paired_fraction": 0.5,
        "train.batch_size": 8,
        "train.epochs": 2,
        "gap_report.max_pairs": 10,
    }
    called = csalign("run", "photos_few_pairs", "--json", "-q", *(f"--set={k}={v}" for k, v in settings.items()))
    assert called.exit_code == 0, called.stderr
    found = json.loads(called.stdout)
    trained = found["train"]["aligned"]
    assert (trained["train_images"], trained["val_images"]) == (19, 1), "half of the photos keep their captions"
    assert trained["unpaired_items"] == {"image": 20, "text": 40}
    assert {"frozen+cca", "pairwise_only", "aligned"} <= set(found["gap_report"])
    assert found["eval_retrieval"]["aligned"]["t2i"]["queries"] == 20
    assert Path(found["report"]).is_file()
