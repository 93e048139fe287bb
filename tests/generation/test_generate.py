"""csalign generate by its command: what it draws and measures, that it goes on after a kill, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_pipelines import saved_pipeline

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.prepared import PreparedData, Split
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.generation import drawing
from cs_aligner_cli.generation.conditions import (
    bound,
    chosen_captions,
    free_map,
    median_norm,
    picture_seed,
    refuse_another_encoder,
    scaled,
)
from cs_aligner_cli.generation.measured import Subject, floors, left_out, measure_pictures
from cs_aligner_cli.recipe.generate import Generate
from cs_aligner_cli.recipe.later import LATER_KEYS
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.report.markdown import _plain
from cs_aligner_cli.runs.generation_layout import GenerationLayout
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stages import replacing
from cs_aligner_cli.stages.gap_report.job import _Job
from cs_aligner_cli.stages.table import STAGES

CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 16, "width": 32, "heads": 2, "layers": 2},
}
MANIFEST = {"name": "few", "kind": "scenes", "images": {"train": 40, "val": 6, "test": 10}, "objects": [1], "size": 32}


def recipe_in(folder: Path, **changes: Any) -> Path:
    """A recipe over a few scenes with a tiny random CLIP, whose text adapter is trained for a moment."""
    (folder / "few.yaml").write_text(json.dumps({**MANIFEST, **changes.pop("manifest", {})}))
    content = {
        "name": "tiny",
        "run_dir": str(folder / "run"),
        "data": {"manifest": "few.yaml"},
        "encoders": {"image": {"kind": "open_clip", "random_init": True, "config": CLIP}},
        "train": {"pairwise_only": True, "image": {"tune": "frozen"}, "epochs": 1, "batch_size": 16},
        "eval_retrieval": {"bootstrap": 0},
        "generate": {"decoder": {"kind": "closed_form"}, "batch_size": 4},
        **changes,
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose stores are there: all but generate is done."""
    from typer.testing import CliRunner

    from cs_aligner_cli.cli.main import app

    path = recipe_in(tmp_path_factory.mktemp("generate"))
    for stage in ("prepare", "embed", "train", "embed"):
        assert CliRunner().invoke(app, [stage, str(path), "--quiet"]).exit_code == 0
    return path


def pictures_of(path: Path, store: str) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path.parent / "run" / "generate" / store / "images").iterdir()}


def test_every_store_and_bound_is_drawn_and_measured(ready, csalign):
    result = csalign("generate", ready, "--json").json
    stores = [
        "frozen",
        "frozen+mean_shift",
        "frozen+ridge",
        "pairwise_only",
        "aligned",
        "image",
        "other_image",
        "noise",
    ]
    assert list(result["generate"]) == stores
    assert result["status"] == "done"
    metrics = result["generate"]["image"]
    assert {"frechet@encoder", "kid@encoder", "cmmd@encoder", "clip_score", "prompt_R@1", "precision@encoder"} <= {
        *metrics
    }
    assert {"accuracy_background", "accuracy_mean", "stated_accuracy_cell", "condition_cosine"} <= {*metrics}
    assert metrics["condition_cosine"] > result["generate"]["noise"]["condition_cosine"]
    assert metrics["accuracy_background"] > result["generate"]["other_image"]["accuracy_background"]
    # blind to the prompt: the same ten pictures, in another order
    assert result["generate"]["other_image"]["frechet@encoder"] == pytest.approx(metrics["frechet@encoder"], abs=1e-6)
    folder = ready.parent / "run" / "generate"
    assert json.loads((folder / "results" / "results.json").read_text())["generate"] == result["generate"]
    assert {"scale": "auto", "steps": None, "guidance": None}.items() <= result["protocol"]["drawing"].items()
    table = pd.read_csv(folder / "results" / "results.csv")
    assert {*table["store"]} == {*stores}
    with Image.open(folder / "results" / "sheet.png") as sheet:
        assert sheet.width > 10 * 112
    page = (folder / "results" / "sheet.html").read_text()
    assert "default-src 'none'" in page and "http:" not in page and "https:" not in page
    drawn = pd.read_parquet(folder / "aligned" / "images.parquet")
    assert list(drawn) == ["caption_id", "image_id", "prompt", "seed", "norm", "seconds", "sha256"]
    assert drawn["norm"].nunique() == 1 or np.ptp(drawn["norm"]) < 1e-5
    assert csalign("generate", ready, "--json").json["status"] == "fresh"


def test_the_gap_report_shows_what_closing_the_gap_bought(ready, csalign):
    other = another_run(ready, "near", reversed_rows("text"))
    beside = ("--set", f"generate.beside=[{other}]", "--set", f"gap_report.beside=[{other}]")
    drawn = csalign("generate", ready, *beside, "--json").json["generate"]
    page = ready.parent / "run" / "gap_report"
    few = ("--set", "gap_report.examples=0", "--set", "gap_report.baselines={frozen: [], pairwise_only: []}")
    settings = (*few, *beside)
    assert csalign("gap-report", ready, *settings, "--json").json["status"] == "done"
    report = json.loads((page / "report.json").read_text())
    assert report["pictures"]["metric"] == "accuracy_mean"
    stores = {
        name: 100 * drawn[name]["accuracy_mean"] for name in ("frozen", "pairwise_only", "aligned", "near:aligned")
    }
    assert report["pictures"]["stores"] == pytest.approx(stores)
    assert report["pictures"]["bounds"]["image"] == pytest.approx(100 * drawn["image"]["accuracy_mean"])
    words = f"attributes drawn right, percent {stores['aligned']:.1f}"
    assert words in (page / "report.html").read_text()
    assert (page / "gap_against_pictures.svg").is_file()
    recipe = load_recipe(str(ready), ["generate.limit=9"])  # of which no pictures were drawn
    layout = Layout(recipe)
    job = _Job(recipe, layout, PreparedData(layout.prepared.path).split("test", "gap_report.split"))
    job.add_pictures()
    assert "pictures" not in job.report
    assert "Pictures are left out: the pictures of frozen in" in job.report["note"][-1]
    shutil.rmtree(other)
    gone = ("gap-report", ready, *few, *beside[:2], "--set", "gap_report.formats=[]", "--json")
    assert csalign(*gone).json["status"] == "done"
    assert _plain(f"Pictures are left out: generate.beside: {other} holds no") in (page / "report.md").read_text()


def another_run(ready: Path, name: str, change: Callable[[Path], object], seed: int = 1) -> Path:
    """The folder of a run whose aligned store is that of ``ready`` after a ``change`` of its folder."""
    store = ready.parent / name / "embeddings" / "aligned" / "test"
    with Artifact("aligned store", store, "csalign embed", {"seed": seed}).building() as build:
        made = ready.parent / "run" / "embeddings" / "aligned" / "test"
        shutil.copytree(made, build.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("stage.json"))
        change(build.folder)
    return ready.parent / name


def reversed_rows(modality: str) -> Callable[[Path], object]:
    """A change of a store: the rows of a modality in the opposite order."""

    def change(folder: Path) -> None:
        shard = folder / modality / "shard-00000.npy"
        np.save(shard, np.load(shard)[::-1])

    return change


def test_the_texts_of_another_run_are_drawn_beside_these(ready, csalign, monkeypatch):
    other = another_run(ready, "aligned+cs", reversed_rows("text"))  # not a closed form of this run's aligned store
    few = ("--set", "generate.stores=[aligned]", "--set", "generate.bounds=[image]", "--set", "generate.limit=9")
    beside = ("generate", ready, *few, "--set", f"generate.beside=[{other}]", "--json")
    assert list(csalign(*beside).json["generate"]) == ["aligned", "aligned+cs:aligned", "image"]
    drawn = pictures_of(ready, "aligned+cs.aligned")
    assert len(drawn) == 9 and drawn != pictures_of(ready, "aligned")
    assert "aligned+cs:aligned" in (ready.parent / "run" / "generate" / "results" / "sheet.html").read_text()
    assert csalign(*beside).json["status"] == "fresh"
    another_run(ready, "aligned+cs", lambda folder: None, seed=2)  # trained anew, to the very texts of this run
    monkeypatch.setattr(replacing, "took_long", lambda pictures: True)
    recipe = load_recipe(str(ready), [setting for setting in beside if "=" in str(setting)])
    replacing.refuse_to_replace([STAGES["generate"]], recipe)  # does not: what is made anew is upstream
    with pytest.raises(InputError, match=r"the store aligned\+cs:aligned it was made from has changed"):
        GenerationLayout(Layout(recipe)).pictures("aligned+cs:aligned").current()
    monkeypatch.undo()
    assert csalign(*beside).json["status"] == "done"
    assert pictures_of(ready, "aligned+cs.aligned") == pictures_of(ready, "aligned")


def test_later_keys_of_generate_are_no_part_of_its_outputs(tmp_path, monkeypatch):
    settings = ["generate.train_decoder={}", "generate.decoder={kind: kandinsky22}"]
    made = GenerationLayout(Layout(load_recipe(str(recipe_in(tmp_path)), settings)))
    now = made.spec.model_dump(mode="json")
    monkeypatch.setitem(LATER_KEYS, "generate.scale", now["scale"])
    monkeypatch.setitem(LATER_KEYS, "generate.metrics.judge", now["metrics"]["judge"])
    monkeypatch.setitem(LATER_KEYS, "generate.train_decoder.side", now["train_decoder"]["side"])
    assert made.decoder is not None and "side" not in made.decoder.recipe["train_decoder"]
    assert "scale" not in made.pictures("aligned").recipe["generate"]
    assert "judge" not in made.results.recipe["generate"]["metrics"]


def test_another_run_that_cannot_stand_beside_is_refused(ready, refused):
    def renamed(folder: Path) -> None:
        table = pd.read_parquet(folder / "text.parquet")
        table.replace({table["caption_id"][3]: "x"}).to_parquet(folder / "text.parquet", index=False)

    def said(name: str, change: Callable[[Path], object]) -> str:
        return refused("generate", ready, "--set", f"generate.beside=[{another_run(ready, name, change)}]")

    message = said("stranger", reversed_rows("image"))
    assert re.search(r"beside: the image encoder of stranger:aligned is not that of the store: of 8 pictures", message)
    assert "Name runs of the same encoders.image, with train.image.tune: frozen." in message
    message = said("others", renamed)
    assert (
        "generate.beside: others:aligned holds other items than split 'test' of this run: caption_id of row 3"
        in message
    )
    # a whole run says so before it trains
    message = refused("run", ready, "--set", "generate.beside=[run:gone]", "--set", "name=anew")
    assert re.search(r"generate\.beside: \S+runs/gone holds no finished aligned store of split 'test'", message)
    for key in ("generate", "gap_report"):
        changed = (f"{key}.beside=[run:gone]", "name=anew", f"run_dir={ready.parent / 'new'}")
        settings = [part for change in changed for part in ("--set", change)]
        assert f"{key}.beside: " in refused("run", ready, *settings, "--force")
        assert not (ready.parent / "new").exists()  # not after it has been trained


def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(ready, csalign, monkeypatch):
    settings = ("--set", "generate.stores=[aligned]", "--set", "generate.bounds=[]", "--set", "generate.limit=9")
    csalign("generate", ready, *settings)
    whole = pictures_of(ready, "aligned")
    assert len(whole) == 9
    written, write = [], drawing._write

    def dies(path: Path, picture: Image.Image) -> None:
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, picture)

    monkeypatch.setattr(drawing, "_write", dies)
    assert csalign("generate", ready, *settings, "--force").exit_code == 130
    assert pictures_of(ready, "aligned") == whole  # the earlier output stands
    monkeypatch.setattr(drawing, "_write", write)
    kept = ready.parent / "run" / "generate" / "aligned.partial" / "images"
    assert sum(file.suffix == ".png" for file in kept.iterdir()) == 6
    csalign("generate", ready, *settings, "--force")
    assert pictures_of(ready, "aligned") == whole


def test_a_decoder_is_trained_and_another_run_draws_with_it(ready, csalign, tmp_path, monkeypatch):
    small = '{"steps": 3, "batch_size": 4, "widths": [32, 64], "side": 64}'
    settings = ("--set", f"generate.train_decoder={small}", "--set", "generate.decoder={kind: kandinsky22}")
    more = ("--set", "generate.steps=2", "--set", "generate.limit=4", "--set", "generate.stores=[aligned]")
    own = csalign("generate", ready, *settings, *more, "--json").json
    assert own["decoder"]["steps"] == 3
    drawn = pictures_of(ready, "aligned")
    with Image.open(ready.parent / "run" / "generate" / "aligned" / "images" / "00000.png") as picture:
        assert picture.size == (64, 64)
    # run:NAME lies in ./runs, as it does in encoders.image.model, wherever this run's own folder is
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "one").symlink_to(ready.parent / "run", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    taking = ("generate", ready, "--set", "generate.decoder={kind: kandinsky22, model: 'run:one'}", *more)
    taken = csalign(*taking, "--json").json
    assert taken["decoder"] == {}
    assert pictures_of(ready, "aligned") == drawn
    assert csalign(*taking, "--json").json["status"] == "fresh"
    (ready.parent / "run" / "decoder" / "stage.json").touch()  # as in a run that was moved
    assert csalign(*taking, "--json").json["status"] == "fresh"
    (ready.parent / "run" / "decoder" / "model_index.json").touch()  # as after another training
    assert csalign(*taking, "--json").json["status"] == "done"
    csalign("generate", ready, *settings, *more, "--set", "generate.height=32")
    with Image.open(ready.parent / "run" / "generate" / "aligned" / "images" / "00000.png") as picture:
        assert picture.size == (32, 32)
    assert csalign(*taking, "--set", "encoders.image.config.embed_dim=8").exit_code == 2


def test_a_decoder_of_another_image_encoder_is_refused(ready, refused, tmp_path):
    _, folder = saved_pipeline("stable_unclip", tmp_path)
    decoder = ("--set", f"generate.decoder={{kind: stable_unclip, model: 'local-dir:{folder}'}}")
    said = refused("generate", ready, *decoder)
    assert re.search(r"the image encoder of local-dir:\S+ is not that of the store: of 8 pictures the embeddings", said)
    assert "expected more than 0.99" in said


def test_as_many_rows_as_are_compared_must_agree():
    ours = np.random.default_rng(0).normal(size=(8, 32)).astype(np.float32)
    theirs = 3 * ours  # of another length, which is no matter
    refuse_another_encoder(theirs, ours, "karlo's", "another")
    theirs[5] += 1
    expected = r"karlo's is not that of the store: of 8 pictures the embeddings agree to a cosine of -?0\.\d+ only"
    with pytest.raises(InputError, match=expected):
        refuse_another_encoder(theirs, ours, "karlo's", "another")


def test_without_diffusers_it_says_what_to_install(ready, refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    said = refused("generate", ready, "--set", "generate.decoder={kind: karlo, model: ORG/NAME}")
    assert "generate.decoder needs diffusers, which is not installed" in said
    assert "pip install 'cs-aligner-cli[t2i]'" in said


REFUSED: list[tuple[dict[str, str], str]] = [
    ({"generate": "null"}, "generate: the recipe has no such section"),
    ({"generate.stores": "[alinged]"}, "'alinged' is no store"),
    ({"generate.stores": "[aligned]", "train": "null"}, "this recipe makes no store 'aligned'"),
    ({"generate.stores": "[frozen]", "generate.metrics.judge": "aligned", "train": "null"}, "no store 'aligned'"),
    ({"generate.split": "tset"}, "no frozen store of split tset"),
    ({"generate.decoder": "{kind: karlo}"}, "karlo needs a model"),
    ({"generate.decoder": "{kind: karlo, model: 'run:x'}"}, "are of kind kandinsky22, not karlo"),
    ({"generate.decoder": "{kind: kandinsky22, model: 'local-dir:gone'}"}, "gone is no folder"),
    ({"generate.decoder": "{kind: kandinsky22, model: 'run:gone'}"}, "holds no trained decoder"),
    ({"generate.train_decoder": "{}"}, "train_decoder goes with decoder.kind: kandinsky22"),
    ({"generate.height": "64"}, "closed_form draws pictures of one size"),
    ({"generate.noise_level": "3"}, "go with decoder.kind: stable_unclip"),
    ({"train.image.tune": "adapter"}, "train.image.tune is adapter, so aligned texts leave the space"),
    ({"generate.metrics.inception": "{weights: gone.pth}"}, "gone.pth: no such file"),
    ({"generate.metrics.inception": "{weights: few.yaml}"}, "has SHA-256"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused_before_the_first_picture(ready, refused, monkeypatch, settings, message):
    monkeypatch.chdir(ready.parent)
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    before = sorted((ready.parent / "run").rglob("*.png"))
    assert message in refused("generate", ready, *given)
    assert sorted((ready.parent / "run").rglob("*.png")) == before


def test_attributes_are_those_of_one_shape(tmp_path, csalign, refused):
    path = recipe_in(tmp_path, train=None, manifest={"objects": [2]})
    for stage in ("prepare", "embed"):
        csalign(stage, path, "--quiet")
    assert "read of drawn scenes of one shape only" in refused(
        "generate", path, "--set", "generate.metrics.which=[attributes]"
    )
    assert "accuracy_all" not in csalign("generate", path, "--json").json["generate"]["frozen"]


def test_without_captions_of_images_there_is_nothing_to_draw():
    images = pd.DataFrame({"image_id": ["a", "b"]})
    alone = pd.DataFrame({"caption_id": ["0", "1"], "image_id": [None, "b"], "text": ["one", "two"]})
    spec = Generate.model_validate({"decoder": {"kind": "closed_form"}})
    for captions, count in ((alone[:0], 0), (alone, 1)):
        with pytest.raises(InputError, match=rf"split 'dev' has {count} captions of images; expected at least 2"):
            chosen_captions(Split("dev", images, captions), spec, 0)
    both = alone.assign(image_id="b")
    every = spec.model_copy(update={"captions": "all", "bounds": ["other_image"]})
    with pytest.raises(InputError, match="bounds: other_image: all 2 prompts are of one image"):
        chosen_captions(Split("dev", images, both), every, 0)


def test_what_few_pictures_cannot_have_is_said():
    rows = np.eye(3, 8, dtype=np.float32)
    subject = Subject(["one", "two", "two"], rows, {"encoder": rows}, None, ["frechet", "coverage", "prompt_retrieval"])
    found = {**measure_pictures(subject, {"encoder": rows}, rows, lambda i: Image.new("RGB", (1, 1)))}
    assert "prompt_R@10" not in found and "precision@encoder" not in found
    assert [note.partition(":")[0] for note in left_out(subject, 3, floors(subject, 0))] == [
        "no precision and recall",
        "no prompt_R@10",
        "no Frechet distance between two halves of the real pictures",
    ]


def test_seeds_are_of_recipe_and_caption_alone():
    assert picture_seed(0, "a") == picture_seed(0, "a")
    assert len({picture_seed(seed, caption) for seed in range(3) for caption in "abc"}) == 9
    assert 0 <= picture_seed(7, "x") < 2**63


def test_conditions_have_the_length_of_images_and_bounds_are_what_they_say():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(50, 8)).astype(np.float32) * 7
    length = median_norm(images)
    assert np.linalg.norm(scaled(images, length), axis=1) == pytest.approx(np.full(50, length), rel=1e-5)
    assert scaled(images, None) is images
    owners = np.array([3, 3, 5, 9])
    assert (bound("image", images, owners, length, 0) == images[owners]).all()
    other = bound("other_image", images, owners, length, 0)
    assert not any((a == b).all() for a, b in zip(other, images[owners], strict=True))
    assert {tuple(row) for row in other} <= {tuple(row) for row in images[owners]}
    noise = bound("noise", images, owners, length, 0)
    assert np.linalg.norm(noise, axis=1) == pytest.approx(np.full(4, length), rel=1e-5)


@pytest.mark.parametrize("kind", ["mean_shift", "ridge"])
def test_free_maps_bring_the_mean_of_texts_to_that_of_images(kind):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(300, 6)).astype(np.float32) + 1
    turned: Callable[[np.ndarray], np.ndarray] = lambda x: np.roll(x, 1, axis=1) - 2  # noqa: E731
    unit = image / np.linalg.norm(image, axis=1, keepdims=True)
    text = turned(unit).astype(np.float32)
    mapped = free_map(kind, image, text)(text)
    assert mapped.mean(axis=0) == pytest.approx(unit.mean(axis=0), abs=1e-5)
    if kind == "ridge":
        left = ((mapped - unit) ** 2).sum() / ((unit - unit.mean(axis=0)) ** 2).sum()
        assert left < 0.2
