"""search, zero-shot, eval-retrieval's options and compare from the command line, on real files."""

# ruff: noqa: E501 (a message is easier to read on one line)
from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import features_recipe_content, make_features, make_photos, photos_recipe_content
from PIL import Image
from typer.testing import CliRunner

from cs_aligner_cli.cli.main import app
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.results import flattened
from cs_aligner_cli.files.checksums import SEAL, digest, sealed
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.retrieval import evaluate_mixed
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.search.index_folder import open_index
from cs_aligner_cli.search.query_encoder import QueryEncoder
from cs_aligner_cli.stores.embeddings import Store

Csalign = Callable[..., Any]


# All but the gap report, which costs more than these together.
STAGES = ("prepare", "embed", "train", "embed", "eval-retrieval")


def finish(recipe: Path, *settings: str) -> Path:
    """Run the stages of a recipe; the folder that holds it."""
    for stage in STAGES:
        done = CliRunner().invoke(app, [stage, str(recipe), "-q", *settings])
        assert done.exit_code == 0, done.stderr
    return recipe.parent


def write_recipe(here: Path, content: dict[str, Any]) -> Path:
    """The recipe file of a run in a folder."""
    (here / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return here / "recipe.yaml"


@pytest.fixture(scope="module")
def finished_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos/ and a finished run/ over them with a tiny open_clip model."""
    here = tmp_path_factory.mktemp("photos")
    return finish(write_recipe(here, photos_recipe_content(make_photos(here / "photos"), here / "run")))


@pytest.fixture(scope="module")
def finished_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with features/ and a finished run/ over them, with its control."""
    here = tmp_path_factory.mktemp("features")
    content = features_recipe_content(make_features(here / "features"), here / "run")
    return finish(write_recipe(here, content), "--set", "train.pairwise_only=true")


@pytest.fixture
def photos_run(finished_photos: Path, tmp_path: Path) -> Path:
    """The recipe of a copy of the finished run over photos, in tmp_path / "run"."""
    shutil.copytree(finished_photos / "run", tmp_path / "run")
    return write_recipe(tmp_path, photos_recipe_content(finished_photos / "photos", tmp_path / "run"))


@pytest.fixture
def features_run(finished_features: Path, tmp_path: Path) -> Path:
    """The same of the run over stored features."""
    shutil.copytree(finished_features / "run", tmp_path / "run")
    return write_recipe(tmp_path, features_recipe_content(finished_features / "features", tmp_path / "run"))


def test_a_caption_as_text_finds_what_its_stored_row_finds(photos_run: Path, csalign: Csalign, tmp_path: Path) -> None:
    captions = pd.read_parquet(tmp_path / "run" / "data" / "captions.parquet").query("split == 'dev'")
    row = captions.iloc[3]
    by_text, by_id = csalign(
        "search", photos_run, "--text", row["text"], "--id", row["caption_id"], "-k", 4, "--json"
    ).json["queries"]
    assert by_text["query"] == by_id["query"] == row["text"]
    assert [r["id"] for r in by_text["results"]] == [r["id"] for r in by_id["results"]]
    assert [r["score"] for r in by_text["results"]] == pytest.approx([r["score"] for r in by_id["results"]], abs=1e-5)
    store = Store(tmp_path / "run" / "embeddings" / "aligned" / "dev")
    cosines = store.array("image").all() @ store.array("text").all()[3]
    names = store.keys("image")["image_id"].to_numpy()
    assert [r["id"] for r in by_id["results"]] == list(names[np.argsort(-cosines, kind="stable")])


@pytest.fixture(scope="module")
def finished_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a finished run over photos whose first two hits a matching head puts in order."""
    here = tmp_path_factory.mktemp("heads")
    content = photos_recipe_content(make_photos(here / "photos"), here / "run")
    tower = {"reads": "tokens", "adapter": {"kind": "linear"}}
    content["train"] |= {"epochs": 1, "image": tower, "text": tower, "matching": {"epochs": 1, "width": 4}}
    content["eval_retrieval"] |= {"rerank": {"top_k": 2}, "bootstrap": 0, "mixed": None}
    return finish(write_recipe(here, content)) / "recipe.yaml"


def test_new_items_are_reranked_as_stored_ones(finished_heads: Path, csalign: Csalign, tmp_path: Path) -> None:
    """By their tokens, which the encoder makes anew; what lies beyond the head's hits has no logit."""
    captions = pd.read_parquet(finished_heads.parent / "run" / "data" / "captions.parquet").query("split == 'dev'")
    row, images = captions.iloc[3], finished_heads.parent / "photos" / "images"
    photo = next(path for path in images.iterdir() if path.stem == "09")
    page, asked = tmp_path / "page.html", ("--text", row["text"], "--id", row["caption_id"], "-k", 4)
    found = csalign("search", finished_heads, *asked, "--image", photo, "--id", photo.name, "--json", "--html", page)
    assert found.exit_code == 0, found.stderr
    text_id, image_id, text, image = found.json["queries"]
    for new, stored in ((text, text_id), (image, image_id)):
        assert new["reranked"] == stored["reranked"] == 2
        assert [hit["id"] for hit in new["results"]] == [hit["id"] for hit in stored["results"]]
        for key in ("score", "matching_logit"):
            ours, theirs = ([hit[key] for hit in answer["results"][:2]] for answer in (new, stored))
            assert ours == pytest.approx(theirs, abs=1e-4), key  # a number may be rounded to either of two halves
        assert [hit["matching_logit"] for hit in new["results"][2:]] == [None, None]
    tokens = QueryEncoder(load_recipe(str(finished_heads)), "aligned").tokens("text", [row["text"]])
    np.testing.assert_array_equal(tokens, tokens.half(), "as embed.token_dtype stores them")
    assert "the first 2 in the order of the matching head" in page.read_text()
    table = csalign("search", finished_heads, row["text"], "-k", 4).stdout
    assert "logit" in table and "in the order of the matching" in table  # a long path makes the head of a column wrap


def test_stores_are_compared_before_they_are_read(finished_heads: Path, refused: Callable[..., str]) -> None:
    layout = Layout(load_recipe(str(finished_heads)))
    for stored in (layout.tokens("dev"), layout.aligned("aligned", "dev")):
        file = max((stored.path / "text").glob("*.npy"))
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert f"{file}: is damaged" in refused("search", finished_heads, "--id", "09.jpg")
        file.write_bytes(content)


def test_a_photo_finds_itself_among_images_and_captions_by_default(
    photos_run: Path, finished_photos: Path, csalign: Csalign
) -> None:
    photo = next(p for p in (finished_photos / "photos" / "images").iterdir() if p.stem == "09")
    among = csalign("search", photos_run, "--image", photo, "--gallery", "image", "-k", 1, "--json").json["queries"][0]
    assert among["results"][0]["id"] == photo.name
    assert among["results"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert among["results"][0]["image_path"] == str(photo)
    whole = csalign("search", photos_run, "--id", photo.name, "--gallery", "image", "--json").json
    assert whole["k"] == len(whole["queries"][0]["results"]) == 4, "the gallery holds no ten"
    captions = csalign("search", photos_run, "--image", photo, "--json", "--store", "frozen", "-k", 3).json
    assert captions["store"] == "frozen"
    assert captions["queries"][0]["gallery"] == "text"
    assert all(r["caption"].startswith("noise number") for r in captions["queries"][0]["results"])
    table = csalign("search", photos_run, "--image", photo, "-k", 2).stdout
    assert "noise number" in table and "nearest texts of aligned" in table


def test_the_page_holds_thumbnails_and_escapes_what_was_asked(
    photos_run: Path, csalign: Csalign, tmp_path: Path
) -> None:
    page = tmp_path / "out" / "found.html"
    called = csalign("search", photos_run, "--text", "<script>alert('x')</script> & more", "--html", page, "-k", 4)
    assert called.exit_code == 0
    assert str(page) in called.stderr.replace("\n", "")
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    photos = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", text)
    assert len(photos) == 4
    assert max(Image.open(BytesIO(base64.b64decode(photos[0]))).size) <= 220
    assert "http:" not in text and "https:" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing is asked"),
        (("a", "dog"), "recipe.yaml 'a dog'"),
        (("--text", "  "), "--text: the query is empty"),
        (("--id", "a\udcff"), "is no text in UTF-8"),
        (("--image", "no.jpg"), "--image no.jpg: no such file"),
        (("--id", "08.jpgg"), "--id 08.jpgg: no image and no caption of split 'dev'; did you mean 08.jpg?"),
        (("--id", "00.jpg"), "--id 00.jpg: is of split 'train', and what is searched is split 'dev'"),
        (("--id", "00"), "--id 00.jpg: is of split 'train', and what is searched is split 'dev'"),
        (("--id", "08.jpg", "-k", "99"), "k = 99 but the index holds 8 rows"),
        (("--id", "08.jpg", "-k", "0"), "k = 0 but the index holds 8 rows"),
        (("--id", "08.jpg", "--store", "alined"), "--store alined: no such index; did you mean aligned?"),
        (("--id", "08.jpg", "--gallery", "imagee"), "--gallery imagee: expected image or text; did you mean image?"),
        (("--id", "08.jpg", "--html", "page.txt"), "--html page.txt: expected the name of an .html file"),
    ],
)
def test_a_wrong_search_is_refused(
    photos_run: Path, refused: Callable[..., str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused("search", photos_run, *arguments)


def test_a_damaged_or_foreign_index_is_refused(
    photos_run: Path, csalign: Csalign, refused: Callable[..., str], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "eval_retrieval"
    index = folder / "aligned" / "text" / "text.index"
    content = index.read_bytes()
    described = index.with_name("index.json")
    source = json.loads(described.read_text())["source"]
    for damaged in (content[:-5] + bytes(5), b"x" * len(content)):  # the size is right
        index.write_bytes(damaged)
        assert refused("search", photos_run, "--id", "08.jpg").startswith(f"{index}: is damaged: ")
    with pytest.raises(InputError, match=r"text\.index: not a FAISS index, or damaged"):
        open_index(index.parent, "text", source)
    index.write_bytes(content[:50])
    said = refused("search", photos_run, "--id", "08.jpg")
    assert said.startswith(
        f"{index}: is missing or cut short\nMake the retrieval results again: csalign eval-retrieval"
    )
    index.write_bytes(content)
    built = source["fingerprint"]
    with pytest.raises(InputError, match="csalign eval-retrieval --force") as caught:
        open_index(index.parent, "text", {**source, "fingerprint": built[::-1]})
    message = f"this index was built from another store (fingerprint '{built}', expected '{built[::-1]}')"
    assert message in str(caught.value)


def test_stored_features_search_by_id_and_say_why_not_by_text(
    features_run: Path, csalign: Csalign, refused: Callable[..., str]
) -> None:
    control = ("--set", "train.pairwise_only=true")
    said = refused("search", features_run, "--text", "a dog", *control)
    assert (
        "encoders.text is of kind features: stored features cannot embed a new text\nSearch for an item of the split: --id ID."
        in said
    )
    found = csalign("search", features_run, "--id", "0120.jpg", "--json", *control).json["queries"][0]
    assert found["modality"] == "image" and found["gallery"] == "text"
    assert len(found["results"]) == 10


def test_results_state_the_protocol_and_every_number_has_an_interval(features_run: Path, tmp_path: Path) -> None:
    results = json.loads((tmp_path / "run" / "eval_retrieval" / "results.json").read_text())
    assert {"ties", "precision", "search", "hit", "relevance", "galleries", "intervals"} <= set(results["protocol"])
    assert results["protocol"]["gallery_images"] == [40] and results["protocol"]["gallery_captions"] == [200]
    for store, directions in results["eval_retrieval"].items():
        spans = {(way, metric): span for way, metric, span in flattened(results["intervals"][store])}
        for way, metric, value in flattened(directions):
            if metric != "queries":
                low, high = spans[way, metric]
                assert low <= high
                assert low - 1e-9 <= value <= high + 1e-9 or metric in ("median_rank", "hubness")
    table = pd.read_csv(tmp_path / "run" / "eval_retrieval" / "results.csv")
    assert list(table.columns) == ["store", "direction", "metric", "value", "low", "high"]


def test_two_stores_are_compared_on_the_same_queries(
    features_run: Path, csalign: Csalign, refused: Callable[..., str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    further = [f"eval_retrieval.aligned.{path}" for path in ("i2t.R@5", "t2i.mAP", "both.RSum", "mixed.R@5")]
    called = csalign(
        "compare", f"{run}:pairwise_only", run, "--json", *(x for path in further for x in ("--metric", path))
    )
    control, aligned = called.json["rows"]
    assert [control["name"], aligned["name"]] == ["run:pairwise_only", "run:aligned"]
    numbers = json.loads((run / "eval_retrieval" / "results.json").read_text())["eval_retrieval"]
    scale = {column["key"]: column["scale"] for column in called.json["columns"]}
    for path in further:
        direction, metric = path.split(".")[2:]
        for row, store in ((control, "pairwise_only"), (aligned, "aligned")):
            assert row["cells"][path]["mean"] == pytest.approx(scale[path] * numbers[store][direction][metric])
    test = aligned["cells"]["eval_retrieval.aligned.t2i.mAP"]["difference"]
    assert test["interval"][0] <= test["mean"] <= test["interval"][1] and 0 < test["p"] <= test["p_holm"] <= 1
    assert "with one training seed each" in called.json["conclusions"][0]
    assert "no store 'alinged'; did you mean aligned?" in refused("compare", run, f"{run}:alinged")
    assert "no such folder" in refused("compare", run, tmp_path / "nowhere")
    assert "two runs have the seed 0" in refused("compare", run, run)
    assert "no run has the metric 'x'" in refused("compare", run, "--metric", "x")
    other = tmp_path / "other"
    shutil.copytree(run, other)
    record = json.loads((other / "eval_retrieval" / "stage.json").read_text())
    record["summary"]["protocol"]["galleries"] = 5
    del record[SEAL]
    (other / "eval_retrieval" / "stage.json").write_text(json.dumps(sealed(record)))
    control_of_other = f"{other}:pairwise_only"
    assert "follow other protocols: galleries is 1" in refused("compare", run, control_of_other)
    path = other / "eval_retrieval" / "pairwise_only" / "i2t_queries.parquet"
    pd.read_parquet(path).iloc[1:].to_parquet(path)
    record["summary"]["protocol"]["galleries"] = 1
    (other / "eval_retrieval" / "stage.json").write_text(json.dumps(sealed(record)))
    assert f"{path}: is damaged" in refused("compare", run, control_of_other)
    record["files"]["pairwise_only/i2t_queries.parquet"] = [path.stat().st_size, digest(path)]
    (other / "eval_retrieval" / "stage.json").write_text(json.dumps(sealed(record)))
    assert "i2t has 39 queries, the first run compared has 40" in refused("compare", run, control_of_other)


def test_a_mixed_corpus_is_measured_in_every_run_that_has_two_captions_of_an_image(
    features_run: Path, csalign: Csalign, tmp_path: Path
) -> None:
    results = json.loads((tmp_path / "run" / "eval_retrieval" / "results.json").read_text())
    store = Store(tmp_path / "run" / "embeddings" / "aligned" / "dev")
    image, text = store.array("image").all(), store.array("text").all()
    expected = evaluate_mixed(image, text, np.repeat(np.arange(40), 5))
    assert results["eval_retrieval"]["aligned"]["mixed"] == expected
    assert results["protocol"]["mixed"].startswith("5 corpora, 0.5 of the images as image")
    records = pd.read_parquet(tmp_path / "run" / "eval_retrieval" / "aligned" / "mixed_queries.parquet")
    of_draw = records.groupby("draw")["query"]
    assert of_draw.count().tolist() == [60] * 5 and of_draw.nunique().tolist() == [60] * 5
    assert set(records["image"]) == {f"{i:04d}.jpg" for i in range(120, 160)}
    control = ("--set", "train.pairwise_only=true")
    again = csalign("run", features_run, *control)
    assert "mixed R@10" in again.stdout
    gap = json.loads((tmp_path / "run" / "gap_report" / "report.json").read_text())
    assert gap["mixed"]["aligned"] == expected
    for settings, words in (
        (("eval_retrieval.mixed=null",), "none"),
        (("eval_retrieval.captions_per_image=1",), "none: no image has two captions, and no class"),
        (("eval_retrieval.mixed.share=0.25", "eval_retrieval.mixed.draws=2"), "2 corpora, 0.25 of the images"),
    ):
        sets = [part for setting in settings for part in ("--set", setting)]
        found = csalign("eval-retrieval", features_run, *control, *sets, "--json").json
        assert found["protocol"]["mixed"].startswith(words)
        assert ("mixed" in found["eval_retrieval"]["aligned"]) == words.startswith("2")


def test_options_of_the_evaluation(
    features_run: Path, csalign: Csalign, refused: Callable[..., str], tmp_path: Path
) -> None:
    def evaluated(*settings: str) -> Any:
        sets = [part for s in ("train.pairwise_only=true", *settings) for part in ("--set", s)]
        embedded = csalign("embed", features_run, "-q", *sets)
        assert embedded.exit_code == 0, embedded.stderr
        called = csalign("eval-retrieval", features_run, "--json", *sets)
        assert called.exit_code == 0, called.stderr
        return called

    folds = evaluated("eval_retrieval.folds=4", "eval_retrieval.captions_per_image=2").json
    assert folds["protocol"]["gallery_images"] == [10] * 4 and folds["protocol"]["gallery_captions"] == [20] * 4
    assert folds["eval_retrieval"]["aligned"]["t2i"]["queries"] == 80
    assert "120 captions are in no gallery" in folds["notes"][-1]
    corrections = evaluated(
        "eval_retrieval.corrections=[centred,csls,inverted_softmax,qb_norm]", "eval_retrieval.bootstrap=0"
    ).json
    assert set(corrections["eval_retrieval"]) == {
        f"{store}{suffix}" for store in ("aligned", "pairwise_only")
        for suffix in ("", "+centred", "+csls", "+inverted_softmax", "+qb_norm")
    }  # fmt: skip
    assert corrections["intervals"]["aligned"] == {}
    approximate = evaluated("eval_retrieval.index.kind=IVF8,Flat", "eval_retrieval.index.effort=2").json["indexes"][
        "aligned"
    ]["text"]
    assert approximate["factory"] == "IVF8,Flat"
    assert 0.2 < approximate["recall@10"] <= 1 and approximate["estimated_recall"] is not None
    assert approximate["nprobe"] == 2 and approximate["search_recall@10"] >= approximate["recall@10"]
    saved = faiss.read_index(str(tmp_path / "run" / "eval_retrieval" / "aligned" / "text" / "text.index"))
    assert saved.nprobe == 2 and saved.ntotal == 200
    judged = tmp_path / "judged.csv"
    judged.write_text("query,item,score\n0120.jpg,00000600,1\n0120.jpg,00000605,1\n0121.jpg,00000605,1\n")
    graded = evaluated(f"eval_retrieval.relevance={judged}").json["eval_retrieval"]["aligned"]["i2t"]
    assert graded["queries"] == 2 and {"nDCG@10", "spearman"} <= set(graded)
    assert graded["spearman"] is None  # equal judgements have no order
    assert "NaN" not in (tmp_path / "run" / "eval_retrieval" / "results.json").read_text()
    judged.write_text("query,item,score\n0120.jpg,00000600,2\n0120.jpg,x,1\n")
    sets = ("--set", "train.pairwise_only=true", "--set", f"eval_retrieval.relevance={judged}")
    assert "item 'x' is no image and no caption" in refused("eval-retrieval", features_run, *sets)
    said = refused(
        "eval-retrieval",
        features_run,
        "--set",
        "eval_retrieval.corrections=[csls]",
        "--set",
        "eval_retrieval.query_bank.split=dev",
    )
    assert "query_bank.split must not be the split that is measured (dev)" in said
    earlier = json.loads((tmp_path / "run" / "eval_retrieval" / "results.json").read_text())
    assert earlier["eval_retrieval"]["aligned"]["i2t"]["queries"] == 2  # refused work leaves what was there


def test_zero_shot_goes_to_the_class_of_the_nearest_prompt(
    photos_run: Path, finished_photos: Path, csalign: Csalign, refused: Callable[..., str], tmp_path: Path
) -> None:
    names = sorted(p.name for p in (finished_photos / "photos" / "images").iterdir())
    (tmp_path / "classes.txt").write_text("\ufeffcat\ndog\nbird\n", encoding="utf-8")
    pd.DataFrame({"image": names, "label": [["cat", "dog", "bird"][i % 3] for i in range(len(names))]}).to_csv(
        tmp_path / "labels.csv", index=False
    )
    section = {
        "classes": str(tmp_path / "classes.txt"),
        "labels": str(tmp_path / "labels.csv"),
        "templates": ["a {}.", "one {}"],
    }
    sets = [
        part
        for key, value in section.items()
        for part in ("--set", f"zero_shot.{key}={json.dumps(value) if isinstance(value, list) else value}")
    ]
    found = csalign("zero-shot", photos_run, "--json", *sets).json
    assert set(found["zero_shot"]) == {"frozen", "aligned"}
    assert found["zero_shot"]["aligned"]["images"] == 4
    low, high = found["intervals"]["aligned"]["accuracy"]
    assert 0 <= low <= found["zero_shot"]["aligned"]["accuracy"] <= high <= 1 and high - low > 0.4
    predictions = pd.read_parquet(tmp_path / "run" / "zero_shot" / "aligned.parquet")
    assert found["zero_shot"]["aligned"]["accuracy"] == (predictions["label"] == predictions["predicted"]).mean()
    per_class = predictions.assign(hit=predictions["label"] == predictions["predicted"]).groupby("label")["hit"].mean()
    assert found["zero_shot"]["aligned"]["mean_per_class"] == pytest.approx(per_class.mean())
    assert csalign("zero-shot", photos_run, "--json", *sets).json["status"] == "fresh"
    assert "accuracy" in csalign("zero-shot", photos_run, *sets).stdout
    assert "few_shot" not in found
    shots = (*sets, "--set", "zero_shot.shots=[1, 2]", "--set", "zero_shot.draws=3")
    assert "csalign embed" in refused("zero-shot", photos_run, *shots), "there is no aligned store of the shots yet"
    csalign("embed", photos_run, *shots)
    few = csalign("zero-shot", photos_run, "--json", *shots).json["few_shot"]["aligned"]
    assert list(few) == ["zero_shot", "nearest_mean", "linear_probe", "tip_adapter"] and list(few["tip_adapter"]) == [
        "1",
        "2",
    ]
    # There are no more than two of each class: every draw takes them all, and nothing is known of chance.
    assert few["nearest_mean"]["2"]["interval"] == [None, None]
    assert few["zero_shot"]["1"]["mean"] == found["zero_shot"]["aligned"]["accuracy"]
    assert "accuracy by images of each class" in csalign("zero-shot", photos_run, *shots).stdout
    assert "9 images of each class are wanted, but split 'train' has 2 labelled" in refused(
        "zero-shot", photos_run, *sets, "--set", "zero_shot.shots=[9]"
    )
    assert "zero_shot.shots_split: 'dev' is the split that is classified" in refused(
        "zero-shot", photos_run, *shots, "--set", "zero_shot.shots_split=dev"
    )
    assert "zero_shot.classes is not set" in refused("zero-shot", photos_run)
    (tmp_path / "classes.txt").write_text("cat\ndog\nbrid\n")
    assert "label 'bird' is no class of zero_shot.classes; did you mean brid?" in refused(
        "zero-shot", photos_run, *sets
    )
    (tmp_path / "classes.txt").write_text("cat\ncat\n")
    assert "names 'cat' twice" in refused("zero-shot", photos_run, *sets)
    assert "needs exactly one {} for the class name" in refused(
        "zero-shot", photos_run, *sets, "--set", 'zero_shot.templates=["a photo"]'
    )
