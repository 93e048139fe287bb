"""Matching heads through the stages: what one learns that no cosine can, how it resumes, and what is refused."""

# ruff: noqa: E501 (a message is easier to read on one line)
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CAPTIONS_PER_IMAGE, features_recipe_content
from token_files import manifest_of
from trained_runs import QUIET

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.results import StageResult
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.experiments.plan import experiment_id
from cs_aligner_cli.files.artifact import read_json
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.runs.layout import HEAD_FILE, Layout
from cs_aligner_cli.stages.eval_retrieval.reranking import reranker_of
from cs_aligner_cli.stages.eval_retrieval.result import RetrievalResult
from cs_aligner_cli.stages.gap_report.result import GapReportResult
from cs_aligner_cli.stages.pipeline import run_stage
from cs_aligner_cli.stages.replacing import refuse_to_replace
from cs_aligner_cli.stages.run_result import run_result, run_tables
from cs_aligner_cli.stages.table import STAGES
from cs_aligner_cli.stages.train.result import TrainResult
from cs_aligner_cli.stores.tokens import TokenStore
from cs_aligner_cli.towers.matching_head import Matcher, load_head
from cs_aligner_cli.towers.towers import Inputs
from cs_aligner_cli.towers.weights import load_towers
from cs_aligner_cli.training.matching import HeadTraining

Csalign = Callable[..., Any]


@pytest.fixture
def matching_recipe(features_root: Path, tmp_path: Path, write_yaml: Callable[..., Path]) -> Path:
    """Items of two tokens, c + v and c - v, whose mean is c whichever item it is: cosines of items say nothing."""
    rng = np.random.default_rng(0)
    v = rng.standard_normal((200, 1, 8))
    v = np.concatenate([v, -v], axis=1) / np.linalg.norm(v, axis=2, keepdims=True)
    tokens = np.pad(v, ((0, 0), (0, 0), (0, 1)), constant_values=1.0).astype(np.float32)
    for modality, repeats in (("image", 1), ("text", CAPTIONS_PER_IMAGE)):
        np.save(features_root / f"{modality}_tokens.npy", np.repeat(tokens, repeats, axis=0))
        np.save(features_root / f"{modality}_mask.npy", np.ones((200 * repeats, 2), np.uint8))
    content = features_recipe_content(features_root, tmp_path / "run")
    content["encoders"]["image"] = {"kind": "features"}
    tower = {"reads": "tokens", "adapter": {"kind": "linear"}}
    content["train"] |= {"epochs": 1, "image": tower, "text": tower, "embed_dim": 9, "log_steps": 1}
    content["train"]["matching"] = {"epochs": 12, "batch_size": 40, "lr": 0.02, "width": 16}
    content["eval_retrieval"] |= {"rerank": {"top_k": 40}, "captions_per_image": 1, "bootstrap": 0, "mixed": None}
    manifest = write_yaml("manifest.yaml", **manifest_of(features_root))
    return write_yaml("matching.yaml", **content | {"data": {"manifest": str(manifest)}})


def trained(recipe: Recipe) -> Path:
    """The folder of the trained head."""
    for stage in ("prepare", "embed", "train"):
        run_stage(stage, recipe, QUIET)
    return Layout(recipe).matching("aligned").path


def test_a_head_learns_what_no_cosine_can(csalign: Csalign, matching_recipe: Path) -> None:
    """By the command line: chance before, nearly all right after, and a test that says so."""
    found = {}
    for command in ("prepare", "embed", "train", "embed", "eval-retrieval"):
        called = csalign(command, matching_recipe, "--json", "-q")
        assert called.exit_code == 0, called.stderr
        found[command] = called.json
    measured = found["eval-retrieval"]
    assert found["train"]["heads"]["aligned"]["val_R@1"]["t2i"] > 0.5
    assert "the first 40 hits of a query" in measured["protocol"]["reranked"]
    before, after = (measured["eval_retrieval"][name] for name in ("aligned", "aligned+matching"))
    assert before["t2i"]["R@1"] < 0.15 and before["i2t"]["R@1"] < 0.15
    assert after["t2i"]["R@1"] > 0.8 and after["i2t"]["R@1"] > 0.8
    assert "frozen+matching" not in measured["eval_retrieval"]
    gain = measured["rerank"]["aligned"]["t2i"]["R@1"]
    assert gain["before"] == before["t2i"]["R@1"] and gain["after"] == after["t2i"]["R@1"]
    assert gain["difference"] == pytest.approx(after["t2i"]["R@1"] - before["t2i"]["R@1"])
    assert gain["interval"][0] > 0.5 and gain["p"] <= gain["p_holm"] < 1e-6
    folder = Path(measured["run_dir"]) / "eval_retrieval"
    plain, other = (
        pd.read_parquet(folder / name / "text_neighbors.parquet") for name in ("aligned", "aligned+matching")
    )
    assert list(plain) == ["query", "rank", "neighbor", "score", "true"]
    assert list(other) == ["query", "rank", "neighbor", "cosine", "true"]
    assert other.loc[other["rank"] == 1, "true"].mean() == pytest.approx(after["t2i"]["R@1"])
    # A search is reranked as the measurement is: of a query's 40 images the first 40 are all.
    query = other["query"].iloc[0]
    searched, plainly, below = (
        csalign("search", matching_recipe, "--id", query, "-k", 10, "--json", *more).json["queries"][0]
        for more in ((), ("--no-rerank",), ("--gallery", "text"))
    )
    for answer, table, count in ((searched, other, 40), (plainly, plain, 0)):
        own = table[table["query"] == query].head(10)
        assert [hit["id"] for hit in answer["results"]] == own["neighbor"].tolist()
        cosines = own["cosine" if count else "score"]
        np.testing.assert_allclose([hit["score"] for hit in answer["results"]], cosines, atol=1e-6)
        assert answer["reranked"] == count
    logits = [hit["matching_logit"] for hit in searched["results"]]
    assert logits == sorted(logits, reverse=True)
    assert below["reranked"] == 0 and "matching_logit" not in below["results"][0] | plainly["results"][0]
    assert csalign("train", matching_recipe, "--json", "-q").json["status"] == "fresh"
    assert "reranked by the matching head" in csalign("eval-retrieval", matching_recipe).stdout
    # A whole run says so, too, of further data sets as well.
    sections: dict[str, Any] = {key: {} for key in ("gap_report", "null_floor", "retrieval", "mixed")}
    gap = GapReportResult.model_construct(status="done", verdict=[], notes=[], report="", **sections)
    numbers, trainings = (
        {key: value for key, value in found[command].items() if key not in ("command", "name", "run_dir")}
        for command in ("eval-retrieval", "train")
    )
    retrieval = RetrievalResult.model_validate({**numbers, "sets": {"cots": numbers}})
    train = TrainResult.model_validate(trainings)
    results: dict[str, StageResult] = {"train": train, "eval_retrieval": retrieval, "gap_report": gap}
    whole = run_result(load_recipe(str(matching_recipe)), results)
    assert whole.heads == train.heads and whole.rerank == retrieval.rerank
    for tables in (retrieval.tables(), run_tables(results)):
        titles = [part.title[:15] for part in tables if "reranked" in part.title]
        assert titles == ["reranked by the", "cots: reranked "]


def test_a_head_that_was_cut_short_ends_bitwise_as_one_that_was_not(
    matching_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then another head leaves the towers as they are, and a damaged one is refused."""
    settings = ["train.matching.epochs=2", "train.checkpoint_steps=1"]
    whole = trained(load_recipe(str(matching_recipe), [*settings, f"run_dir={tmp_path / 'whole'}"]))
    cut = load_recipe(str(matching_recipe), [*settings, f"run_dir={tmp_path / 'cut'}"])
    step, left = HeadTraining._step, iter(range(3))

    def stopped(self: HeadTraining, number: int, batch: Any) -> tuple[float, float]:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(self, number, batch)

    with monkeypatch.context() as patched:
        patched.setattr(HeadTraining, "_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            trained(cut)
    work = Layout(cut).matching("aligned").path.with_name("aligned.partial")
    assert read_json(work / "last.json")["step"] == 3
    again = trained(cut)
    for name in (HEAD_FILE, "metrics.jsonl"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name
    assert not [*again.glob("last-*")]
    towers = Layout(cut).trained("aligned").fingerprint()
    other = load_recipe(str(matching_recipe), [*settings, f"run_dir={tmp_path / 'cut'}", "train.matching.width=8"])
    finished = (again / HEAD_FILE).read_bytes()
    for refuse in (lambda: run_stage("train", other, QUIET), lambda: refuse_to_replace([STAGES["train"]], other)):
        with pytest.raises(InputError, match=r"finished matching head aligned .*matching.width was 16 and is now 8"):
            refuse()
    assert (again / HEAD_FILE).read_bytes() == finished
    run_stage("train", other, QUIET, archive=True)
    assert (again.with_name("aligned.1") / HEAD_FILE).read_bytes() == finished
    file = again / HEAD_FILE
    assert Layout(other).trained("aligned").fingerprint() == towers
    run_stage("embed", other, QUIET)
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"head.safetensors: is damaged"):
        run_stage("eval_retrieval", other, QUIET)


def test_reranking_runs_towers_in_the_precision_of_training(matching_recipe: Path) -> None:
    """The head of a run in bf16 gives pairs the logits that its training would: those of bf16 towers."""
    recipe = load_recipe(str(matching_recipe), ["train.precision=bf16", "train.matching.epochs=1"])
    trained(recipe)
    run_stage("embed", recipe, QUIET)
    layout, name = Layout(recipe), recipe.eval_retrieval.split
    split = PreparedData(layout.prepared.path).split(name, "eval_retrieval.split")
    pairs = np.arange(8), 3 * np.arange(8)
    reranker = reranker_of(layout, "aligned", split, "cpu")
    assert reranker is not None
    tokens = TokenStore(layout.tokens(name).path)
    dims, head = {m: tokens.array(m).dim for m in MODALITIES}, load_head(layout.matching("aligned").path / HEAD_FILE)
    found = {}
    for precision in ("fp32", "bf16"):
        towers = load_towers(layout.weights("aligned"), {}, dims, precision=precision)
        found[precision] = Matcher(head, towers, Inputs(towers.plans, {}, {}, {name: tokens}), split)(*pairs)
    np.testing.assert_array_equal(reranker.score(*pairs), found["bf16"])
    assert np.abs(found["fp32"] - found["bf16"]).max() > 0


def test_a_step_that_memory_does_not_hold_names_the_keys(
    matching_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*args: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(HeadTraining, "_pairs", too_large)
    with pytest.raises(
        InputError, match="the matching head of aligned: a step with 40 images: memory does not"
    ) as error:
        trained(load_recipe(str(matching_recipe)))
    assert "train.matching.micro_batch_size or train.matching.width" in str(error.value)


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_best_head_that_was_damaged_before_the_end_is_not_published(
    matching_recipe: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    recipe = load_recipe(str(matching_recipe), ["train.matching.epochs=2"])
    validate = HeadTraining._validate

    def damaged(self: HeadTraining, done: int, epoch: int, best: Any, log: Any) -> Any:
        if epoch == 1:
            return validate(self, done, epoch, best, log).model_copy(update={"mean": 2.0})  # never beaten
        file = self._folder / HEAD_FILE
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1])) if damage == "flipped" else file.unlink()
        return best

    monkeypatch.setattr(HeadTraining, "_validate", damaged)
    with pytest.raises(InputError, match=r"head.safetensors: (is damaged|no such weights file)"):
        trained(recipe)
    assert not Layout(recipe).matching("aligned").path.exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.matching={}"], "train: matching compares tokens, and needs image.reads: tokens"),
        (["train.matching={}", "train.image={reads: tokens}"], "train: matching compares tokens, and needs text.reads: tokens"),
        (["train.matching={}", "train.image={reads: tokens, tune: lora, adapter_on_top: true}", "train.text={reads: tokens}"], "train: matching reads stored tokens, and image.tune: lora has none; use adapter"),
        (["train.matching={temperature: 1.0e-40}"], "train.matching.temperature: "),
        (["train.matching={negatives: 17}"], "train.matching.negatives: "),
        (["train.matching={micro_batch_size: 0}"], "train.matching.micro_batch_size: "),
        (["eval_retrieval.rerank={}"], "eval_retrieval.rerank: there is no matching head: train.matching: {} trains one"),
        (["eval_retrieval.rerank={top_k: 5}"], "rerank.top_k (5) must be at least the largest of ks (10)"),
    ],
)  # fmt: skip
def test_heads_that_cannot_be(settings: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("flickr8k", [*settings, "data.root=."])
    assert message in str(caught.value)


def test_recipes_without_one_are_as_fresh_as_before(matching_recipe: Path) -> None:
    """Neither key stands in what older outputs were made from."""
    recipe = load_recipe(str(matching_recipe), ["train.matching=null", "eval_retrieval.rerank=null"])
    layout, now = Layout(recipe), recipe.model_dump(mode="json")
    older = {**now, "train": {**now["train"]}, "eval_retrieval": {**now["eval_retrieval"]}}
    del older["train"]["matching"], older["eval_retrieval"]["rerank"]
    with_head = load_recipe(str(matching_recipe)).model_dump(mode="json")
    assert experiment_id(now) == experiment_id(older) != experiment_id(with_head)
    assert "rerank" not in layout.retrieval.recipe["eval_retrieval"]
    assert "matching" not in layout.trained("aligned").recipe["train"]
