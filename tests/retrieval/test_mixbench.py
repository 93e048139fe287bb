"""A corpus in MixBench's layout, from its files to its numbers; and what is said where it does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.mixbench import read_mixed_corpus
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.stores.embeddings import Store

# Corpus: three images, three texts and three of both; queries: texts, and one of both.
_CORPUS = [(f"{i}.png" if i < 6 else None, f"text number {i}" if i > 2 else None) for i in range(9)]
_QUERIES = [(None, f"what is asked {i}") for i in range(8)] + [("9.png", "what is asked with a picture")]
_ANSWERS = [(q, (4 * q) % 9) for q in range(9)] + [(0, 7)]


@pytest.fixture
def mixbench(tmp_path: Path) -> Path:
    """A folder in the layout, keys that are null left out of some lines, and spaces after what is asked."""
    root = tmp_path / "bench"
    (root / "qrels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in (*range(6), 9):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(root / f"{i}.png")
    lines = {
        "mixed_corpus.jsonl": [{"corpus_id": f"c{i}", "image": m, "text": t} for i, (m, t) in enumerate(_CORPUS)],
        "queries.jsonl": [{"query_id": i, "image": m, "text": f"{t} "} for i, (m, t) in enumerate(_QUERIES)],
    }
    for query in lines["queries.jsonl"][:-1]:
        del query["image"]
    for name, items in lines.items():
        (root / name).write_text("".join(json.dumps(item) + "\n" for item in items))
    judged = "".join(f"{q}\tc{c}\t1\n" for q, c in _ANSWERS)
    (root / "qrels" / "qrels.tsv").write_text(f"query_id\tcorpus_id\tscore\n{judged}1\tc8\t0\n")
    return root


@pytest.fixture
def recipe(mixbench: Path, tmp_path: Path, tiny_clip_config: dict[str, Any], write_yaml: Callable[..., Path]) -> Path:
    write_yaml("bench.yaml", name="bench", kind="mixbench", root=str(mixbench))
    return write_yaml(
        "recipe.yaml",
        name="mixed",
        run_dir=str(tmp_path / "run"),
        data={"manifest": str(tmp_path / "bench.yaml")},
        encoders={"image": {"kind": "open_clip", "random_init": True, "config": tiny_clip_config}},
        train=None,
        eval_retrieval={"ks": [1, 3], "mixed": {"corpus": str(mixbench)}},
    )


def test_a_corpus_in_mixbenchs_layout_is_read_as_it_is(recipe: Path, tmp_path: Path, csalign: Any) -> None:
    for stage in ("prepare", "embed"):
        assert csalign(stage, recipe).exit_code == 0
    found = csalign("eval-retrieval", recipe, "--json").json
    mixed = found["eval_retrieval"]["frozen"]["mixed"]
    store = Store(tmp_path / "run" / "embeddings" / "frozen" / "test")
    rows = {m: store.array(m).all().astype(np.float64) for m in ("image", "text")}
    rows = {m: x / np.linalg.norm(x, axis=1, keepdims=True) for m, x in rows.items()}
    split = PreparedData(tmp_path / "run" / "data").split("test", "x")
    place = {name: i for i, name in enumerate(split.images["image_id"])}
    places = {text.strip(): i for i, text in enumerate(split.captions["text"])}

    def row(image: str | None, text: str | None) -> np.ndarray[Any, Any]:
        parts = [rows["image"][place[image]]] if image else []
        whole = np.sum([*parts, rows["text"][places[text]]] if text else parts, axis=0)
        return whole / np.linalg.norm(whole)

    scores = np.array([row(*query) for query in _QUERIES]) @ np.array([row(*item) for item in _CORPUS]).T
    order = np.argsort(-scores, axis=1, kind="stable")
    answers = [{c for q, c in _ANSWERS if q == query} for query in range(9)]
    for k in (1, 3):
        hits = [bool(answers[q] & set(order[q, :k])) for q in range(9)]
        assert mixed[f"R@{k}"] == pytest.approx(np.mean(hits))
        for kind, those in (("image", {0, 1, 2}), ("both", {3, 4, 5}), ("text", {6, 7, 8})):
            asked = [q for q in range(9) if answers[q] & those]
            hits = [bool(answers[q] & those & set(order[q, :k])) for q in asked]
            assert mixed[kind][f"R@{k}"] == pytest.approx(np.mean(hits))
    assert found["intervals"]["frozen"]["mixed"]["image"]["R@1"]
    assert found["protocol"]["mixed"].startswith("queries, corpus and judgements of ")
    assert csalign("eval-retrieval", recipe, "--json").json["status"] == "fresh"


def test_what_does_not_fit_the_layout_is_refused(mixbench: Path, recipe: Path, csalign: Any, tmp_path: Path) -> None:
    assert csalign("prepare", recipe).exit_code == 0
    split = PreparedData(tmp_path / "run" / "data").split("test", "x")
    corpus, judged = mixbench / "mixed_corpus.jsonl", mixbench / "qrels" / "qrels.tsv"
    right = {path: path.read_text() for path in (corpus, judged)}
    for path, text, message in (
        (corpus, right[corpus].replace('"0.png"', '"0.jpg"'), "corpus_id 'c0': its image '0.jpg' is not in"),
        (corpus, right[corpus].replace("number 8", "number 80"), "corpus_id 'c8': its text 'text number 80' is not in"),
        (corpus, right[corpus].replace('"c1"', '"c0"'), "corpus_id 'c0' is used twice"),
        (corpus, right[corpus].replace('"0.png"', "null"), "corpus_id 'c0': its item, which is empty, is not in split"),
        (corpus, right[corpus] + "{", "cannot be read as JSON lines"),
        (judged, right[judged].replace("c7", "c77"), "row 4: no corpus_id 'c77' in mixed_corpus.jsonl"),
        (judged, right[judged].replace("\t1\n", "\thigh\n"), "row 0 has the score 'high'; expected a number"),
        (judged, right[judged].replace("\t1\n", "\t0\n"), "no row has a score above 0"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            read_mixed_corpus(mixbench, split)
        assert message in str(caught.value)
        path.write_text(right[path])
    judged.unlink()
    with pytest.raises(InputError, match=r"qrels\.tsv"):
        read_mixed_corpus(mixbench, split)
