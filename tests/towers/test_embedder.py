"""Embedding at speed: each caption once, similar lengths together, memory found out, shards written in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.encoders.inputs import PADDING, ImageLoader
from cs_aligner_cli.towers.embedder import Embedder, first_of_equal, pick_precision, under

Csalign = Callable[..., Any]
CPU = torch.device("cpu")


class Words:
    """A tower over captions: the letters' codes, padded, to (count, sum); it notes every batch that it is given."""

    def __init__(self, texts: Sequence[str], most: int = 10**9) -> None:
        self.texts, self.most, self.batches = texts, most, list[Tensor]()

    def load(self, rows: Ints) -> Tensor:
        codes = [[ord(letter) for letter in self.texts[row]] for row in rows]
        longest = max(map(len, codes))
        return torch.tensor([line + [PADDING] * (longest - len(line)) for line in codes])

    def forward(self, inputs: Tensor) -> Tensor:
        if len(inputs) > self.most:
            raise torch.OutOfMemoryError(f"{len(inputs)} are too many")
        self.batches.append(inputs)
        there = inputs != PADDING
        return torch.stack([there.sum(1), (inputs * there).sum(1)], dim=1).float()

    def embedder(self, batch_size: int | None = None) -> Embedder:
        return Embedder(self.forward, self.load, CPU, batch_size, self.texts)


def expected(texts: Sequence[str]) -> Any:
    return np.array([[len(text), sum(map(ord, text))] for text in texts], np.float32)


texts_of = st.lists(st.sampled_from(["a", "bb", "ccc", "dddd", "a longer one", "bc"]), min_size=1, max_size=40)


@given(texts_of, st.integers(1, 7), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_shards_and_copies_make_up_all_rows_whatever_repeats(texts: list[str], batch: int, shard: int) -> None:
    words = Words(texts)
    embedder = words.embedder(batch)
    rows = np.arange(len(texts))
    parts = [(i, rows[start : start + shard]) for i, start in enumerate(range(0, len(texts), shard))]
    whole = np.zeros((len(texts), 2), np.float32)
    advanced: list[int] = []
    for (number, values, copies), (i, part) in zip(
        embedder.shards(parts, lambda count=1, note="": advanced.append(count)), parts, strict=True
    ):
        assert number == i
        whole[part] = values
        assert embedder.first is not None
        owners = embedder.first[part[copies]]
        assert (owners < part[copies]).all(), "a copy's owner must come before it"
        whole[part[copies]] = whole[owners]
    np.testing.assert_array_equal(whole, expected(texts))
    assert sum(advanced) == len(texts)
    # Once each, but for a part that repeats only: it computes its first row again, to have a batch.
    computed = sum(len(b) for b in words.batches)
    only_repeats = sum(all(texts[r] in texts[: part[0]] for r in part) for _, part in parts)
    assert computed == len(set(texts)) + only_repeats == embedder.throughput.items


@given(texts_of, st.data())
@settings(max_examples=40, deadline=None)
def test_any_rows_come_in_the_order_wanted(texts: list[str], data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=30)))
    words = Words(texts)
    np.testing.assert_array_equal(words.embedder(3).all(rows), expected([texts[row] for row in rows]))
    assert sum(len(b) for b in words.batches) == len({texts[row] for row in rows})


def test_batches_hold_captions_of_similar_length_the_longest_first() -> None:
    rng = np.random.default_rng(0)
    texts = ["x" * int(n) + str(i) for i, n in enumerate(rng.integers(1, 60, 200))]
    words = Words(texts)
    words.embedder(8).all(np.arange(200))
    widths = [batch.shape[1] for batch in words.batches]
    assert widths == sorted(widths, reverse=True)
    padding = sum(int((batch == PADDING).sum()) for batch in words.batches)
    assert padding < 0.05 * sum(len(text) for text in texts)


def test_a_batch_that_memory_does_not_hold_is_halved_until_it_fits() -> None:
    texts = [f"caption number {i}" for i in range(50)]
    words = Words(texts, most=5)
    embedder = words.embedder(32)
    np.testing.assert_array_equal(embedder.all(np.arange(50)), expected(texts))
    assert embedder.batch_size == 4
    assert max(len(batch) for batch in words.batches) == 4


def test_an_item_that_memory_does_not_hold_is_reported_with_the_remedy() -> None:
    with pytest.raises(InputError) as caught:
        Words(["abc"], most=0).embedder().all(np.array([0]))
    assert str(caught.value).startswith("cpu memory does not hold a single item (3,) with this model")
    assert "embed.precision: bf16" in str(caught.value)


def test_torchs_own_allocator_running_out_counts_as_out_of_memory() -> None:
    def forward(inputs: Tensor) -> Tensor:
        return torch.empty(1 << 50 if len(inputs) > 1 else 1).new_zeros(len(inputs), 1)

    embedder = Embedder(forward, lambda rows: torch.zeros(len(rows), 2), CPU, 4)
    assert embedder.all(np.arange(4)).shape == (4, 1)
    assert embedder.batch_size == 1


def test_other_errors_pass() -> None:
    def forward(inputs: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Embedder(forward, lambda rows: torch.zeros(len(rows), 2), CPU, 4).all(np.arange(4))


def test_first_of_equal_by_a_double_loop() -> None:
    texts = ["b", "a", "b", "", "a", "", "c"]
    assert first_of_equal(texts).tolist() == [min(j for j in range(7) if texts[j] == texts[i]) for i in range(7)]


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_any_number_of_decoding_threads_gives_the_same_pixels(workers: int, photos_root: Path) -> None:
    table = pd.DataFrame({"locator": sorted(f"images/{path.name}" for path in (photos_root / "images").iterdir())})
    loader = ImageLoader(lambda image: torch.tensor([image.width, image.height]), photos_root)
    loader.workers = workers
    assert loader(table).tolist() == [[40 + 2 * i, 30 + i] for i in range(16)]


def test_as_many_threads_are_chosen_as_keep_up_with_the_encoder(
    photos_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cs_aligner_cli.towers.embedder.decoders", lambda: 6)
    loader = ImageLoader(lambda image: torch.zeros(3), photos_root)
    embedder = Embedder(lambda x: x, lambda rows: torch.zeros(len(rows), 3), CPU, loader=loader)
    for load_seconds, run_seconds, wanted in ((0.1, 1.0, 1), (1.0, 1.0, 2), (3.0, 1.0, 4), (60.0, 1.0, 6)):
        loader.workers = 1
        monkeypatch.setattr("cs_aligner_cli.towers.embedder.time.perf_counter", lambda end=run_seconds: end)
        embedder._choose_workers(load_seconds, 0.0)
        assert loader.workers == wanted


def test_precisions() -> None:
    assert pick_precision("auto", CPU) == "fp32"
    assert pick_precision("bf16", CPU) == "bf16"
    weight = torch.randn(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with under(precision, CPU):
            assert (weight @ weight).dtype == dtype


def test_captions_that_repeat_are_computed_once_and_stored_everywhere(
    csalign: Csalign, photos_recipe: Path, photos_root: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(photos_root / "captions.csv")
    table["caption"] = ["the same words", "others", "the same words"] * 10 + ["the same words", "again others"]
    table.to_csv(photos_root / "captions.csv", index=False)
    settings_ = ("--set", "train=null", "--set", "embed.shard_rows=3", "--set", "eval_retrieval.split=train")
    assert csalign("prepare", photos_recipe, "-q").exit_code == 0
    called = csalign("embed", photos_recipe, "--json", "-q", *settings_)
    part = called.json["stores"]["frozen"]["train"]["text"]
    # Shards of three: the first computes both texts, each of the other five has one batch of its own.
    assert (part["rows"], part["computed"]) == (16, 2 + 5)
    from cs_aligner_cli.stores.embeddings import StoredArray

    values = StoredArray(tmp_path / "run" / "embeddings" / "frozen" / "train" / "text").all()
    kinds = table[table["split"] == "train"]["caption"].tolist()
    for i, one in enumerate(kinds):
        for j, other in enumerate(kinds):
            assert np.allclose(values[i], values[j], atol=1e-6) == (one == other)


@pytest.mark.slow
def test_compiled_encoders_give_the_same_embeddings(csalign: Csalign, photos_recipe: Path, tmp_path: Path) -> None:
    from cs_aligner_cli.stores.embeddings import StoredArray

    assert csalign("prepare", photos_recipe, "-q").exit_code == 0
    values = []
    for compiled in ("false", "true"):
        settings_ = ("--force", "--set", "train=null", "--set", f"embed.compile={compiled}")
        called = csalign("embed", photos_recipe, "-q", *settings_)
        assert called.exit_code == 0, called.stderr
        store = tmp_path / "run" / "embeddings" / "frozen" / "dev"
        values.append([StoredArray(store / modality).all() for modality in ("image", "text")])
    for plain, ours in zip(*values, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)
