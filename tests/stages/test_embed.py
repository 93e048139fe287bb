"""The embedding store: rows and keys in order, shards that are kept, what makes it stale, what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import yaml
from samples import smooth_picture

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.stores.embeddings import ShardWriter, Store, StoredArray

Csalign = Callable[..., Any]
Refused = Callable[..., str]
# Embedding alone, nothing trained: one frozen store of the dev split.
FROZEN_ONLY = ("--set", "train=null")


def done(csalign: Csalign, command: str, recipe: Path, *options: str) -> Any:
    called = csalign(command, recipe, "--json", "-q", *options)
    assert called.exit_code == 0, called.stderr
    return called.json


def written(folder: Path, array: npt.NDArray[np.float32], shard_rows: int, dtype: str = "float32") -> ShardWriter:
    writer = ShardWriter(folder, len(array), shard_rows, dtype)
    for number, rows in writer.missing():
        writer.write(number, array[rows])
    return writer


# ---- the store by itself


@pytest.mark.parametrize("shard_rows", [1, 3, 10, 11, 50])
def test_rows_come_back_from_any_number_of_shards_in_the_order_asked_for(tmp_path: Path, shard_rows: int) -> None:
    array = np.random.default_rng(0).standard_normal((11, 4)).astype(np.float32)
    written(tmp_path / "image", array, shard_rows)
    assert len(list((tmp_path / "image").glob("shard-*"))) == -(-11 // shard_rows)
    stored = StoredArray(tmp_path / "image")
    assert stored.shape == (11, 4)
    assert len(stored) == 11
    np.testing.assert_array_equal(stored.all(), array)
    rows = np.array([10, 0, 3, 3, 2, 9, 0])
    np.testing.assert_array_equal(stored.take(rows), array[rows])
    assert stored.take(np.array([], np.int64)).shape == (0, 4)


@pytest.mark.parametrize("row", [-1, 11])
def test_a_row_that_is_not_there_is_an_error(tmp_path: Path, row: int) -> None:
    written(tmp_path, np.ones((11, 2), np.float32), 4)
    with pytest.raises(IndexError, match="but there are 11"):
        StoredArray(tmp_path).take(np.array([0, row]))


def test_shards_beyond_the_hundred_thousandth_keep_their_place(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 100_002, 1, "float32")
    for number in (100_000, 99_999, 100_001):
        writer.write(number, np.full((1, 2), number, np.float32))
    np.testing.assert_array_equal(StoredArray(tmp_path).all()[:, 0], [99_999, 100_000, 100_001])


def test_values_are_stored_in_the_type_asked_for_and_read_as_float32(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    written(tmp_path, array, 2, "float16")
    assert np.load(tmp_path / "shard-00000.npy").dtype == np.float16
    taken = StoredArray(tmp_path).take(np.array([4, 0]))
    assert taken.dtype == np.float32
    np.testing.assert_array_equal(taken, array[[4, 0]].astype(np.float16))


@pytest.mark.parametrize(("value", "dtype"), [(70_000.0, "float16"), (np.nan, "float32"), (np.inf, "float32")])
def test_what_the_type_cannot_hold_is_refused_with_its_row(tmp_path: Path, value: float, dtype: str) -> None:
    array = np.ones((7, 2), np.float32)
    array[5, 1] = value
    with pytest.raises(InputError, match=f"image row 5 of the store has a value that is not finite in {dtype}"):
        written(tmp_path / "image", array, 3, dtype)
    assert len(list((tmp_path / "image").glob("*shard*.npy"))) == 1  # the shard before it, and no half one


def test_only_missing_shards_are_named(tmp_path: Path) -> None:
    array = np.arange(20, dtype=np.float32).reshape(10, 2)
    writer = written(tmp_path, array, 3)
    assert list(writer.missing()) == []
    (tmp_path / "shard-00001.npy").unlink()
    (tmp_path / "shard-00003.npy").unlink()
    again = ShardWriter(tmp_path, 10, 3, "float32")
    assert [(number, list(rows)) for number, rows in again.missing()] == [(1, [3, 4, 5]), (3, [9])]


def test_an_empty_or_damaged_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no files shard-"):
        StoredArray(tmp_path)
    (tmp_path / "shard-00000.npy").write_bytes(b"half")
    with pytest.raises(InputError, match=r"shard-00000\.npy: cannot be read as an npy array"):
        StoredArray(tmp_path)


# ---- the command


def test_stores_hold_the_features_and_keys_of_their_split_in_order(
    csalign: Csalign, features_recipe: Path, features_root: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(features_root / "images.csv")
    shuffled = np.random.default_rng(0).permutation(200)  # splits mixed, as in real tables
    table.iloc[shuffled].to_csv(features_root / "images.csv", index=False)
    image = np.load(features_root / "image_mobilenet_v2.npy")[shuffled]
    np.save(features_root / "image_mobilenet_v2.npy", image)

    done(csalign, "prepare", features_recipe)
    shards = ("--set", "embed.shard_rows=17", "--set", "embed.batch_size=3")
    summary = done(csalign, "embed", features_recipe, *shards)
    assert summary["status"] == "done"
    assert summary["waiting_for_training"] == ["aligned"]
    dev = summary["stores"]["frozen"]["dev"]
    assert dev["status"] == "done"
    for modality, rows, dim in (("image", 40, 24), ("text", 200, 16)):
        part = dev[modality]
        assert (part["rows"], part["dim"], part["computed"]) == (rows, dim, rows)
        assert part["per_second"] > 0
        assert 0 <= part["encoder_busy"] <= 1
    for split in ("train", "dev"):
        store = Store(tmp_path / "run" / "embeddings" / "frozen" / split)
        at = [i for i in range(200) if table["split"][shuffled[i]] == split]
        assert list(store.keys("image")["image_id"]) == [table["image"][shuffled[i]] for i in at]
        expected = np.sign(image[at]) * np.abs(image[at].astype(np.float32)) ** 0.5
        np.testing.assert_allclose(store.array("image").all(), expected, rtol=1e-6)
        keys = store.keys("text")
        captions = PreparedData(tmp_path / "run" / "data").captions
        rows = captions["split"] == split
        assert list(keys["caption_id"]) == list(captions["caption_id"][rows])
        assert list(keys["image_id"]) == list(captions["image_id"][rows])
        text = np.load(features_root / "text_minilm.npy")
        np.testing.assert_array_equal(store.array("text").all(), text[np.flatnonzero(rows)].astype(np.float32))
        assert store.identity["image"]["file"] == "image_mobilenet_v2.npy"
        assert store.identity["image"]["power"] == 0.5


def test_a_cut_job_computes_only_what_is_missing_and_ends_bitwise_equal(
    csalign: Csalign, photos_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*FROZEN_ONLY, "--set", "embed.shard_rows=3", "--set", "embed.batch_size=2", "--set", "seed=3")
    splits = ("--set", "eval_retrieval.split=train")
    whole = (*options, *splits, "--set", f"run_dir={tmp_path / 'whole'}")
    cut = (*options, *splits, "--set", f"run_dir={tmp_path / 'cut'}")
    for command in ("prepare", "embed"):
        done(csalign, command, photos_recipe, *whole)
    done(csalign, "prepare", photos_recipe, *cut)

    write, left = ShardWriter.write, iter(range(5))

    def killed(self: ShardWriter, number: int, values: npt.NDArray[np.float32]) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        write(self, number, values)

    with monkeypatch.context() as patched:
        patched.setattr(ShardWriter, "write", killed)
        called = csalign("embed", photos_recipe, *cut)
    assert called.exit_code == 130
    assert "the same command" in called.stderr
    partial = tmp_path / "cut" / "embeddings" / "frozen" / "train.partial"
    (partial / "text" / ".shard-00002.npy.tmp").write_bytes(b"half a shard")
    (partial / "image" / "shard-00001.npy").unlink()
    kept = {f"{p.parent.name}/{p.name}": p.stat().st_mtime_ns for p in partial.rglob("shard-*.npy")}
    assert set(kept) == {f"{m}/shard-0000{i}.npy" for m, i in (("image", 0), ("image", 2), ("text", 0), ("text", 1))}

    computed: list[str] = []

    def counted(self: ShardWriter, number: int, values: npt.NDArray[np.float32]) -> None:
        computed.append(f"{self.folder.name}/shard-{number:05d}.npy")
        write(self, number, values)

    monkeypatch.setattr(ShardWriter, "write", counted)
    done(csalign, "embed", photos_recipe, *cut)
    assert computed == ["image/shard-00001.npy", *(f"text/shard-0000{i}.npy" for i in (2, 3, 4, 5))]
    folder, reference = partial.with_name("train"), tmp_path / "whole" / "embeddings" / "frozen" / "train"
    assert not partial.exists()
    assert all((folder / name).stat().st_mtime_ns == stamp for name, stamp in kept.items())
    files = sorted(str(p.relative_to(reference)) for p in reference.rglob("*") if p.is_file() and p.suffix != ".json")
    assert files == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".json")
    assert all((folder / name).read_bytes() == (reference / name).read_bytes() for name in files)


def test_shards_of_other_settings_are_not_taken_up(
    csalign: Csalign, features_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(csalign, "prepare", features_recipe)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("cs_aligner_cli.stages.embed.job.write_keys", killed)
        assert csalign("embed", features_recipe, *FROZEN_ONLY).exit_code == 130
    done(csalign, "embed", features_recipe, *FROZEN_ONLY, "--set", "encoders.image.power=1")
    store = Store(tmp_path / "run" / "embeddings" / "frozen" / "dev")
    raw = np.load(tmp_path / "features" / "image_mobilenet_v2.npy")[120:160]
    np.testing.assert_array_equal(store.array("image").all(), raw.astype(np.float32))


def test_a_store_is_made_again_for_other_settings_only(csalign: Csalign, features_recipe: Path) -> None:
    def status(*options: str) -> str:
        return str(done(csalign, "embed", features_recipe, *FROZEN_ONLY, *options)["status"])

    done(csalign, "prepare", features_recipe)
    assert [status(), status()] == ["done", "fresh"]
    assert status("--set", "embed.batch_size=7", "--set", "embed.device=cpu", "--set", "seed=9") == "fresh"
    for option in (
        "embed.shard_rows=7",
        "embed.dtype=float16",
        "embed.precision=bf16",
        "encoders.text.power=0.5",
    ):
        assert [status("--set", option) for _ in range(2)] == ["done", "fresh"], option
    assert [status(), status("--force"), status()] == ["done", "done", "fresh"]


def test_jpegs_read_at_a_part_of_their_size_are_another_store(
    csalign: Csalign, photos_recipe: Path, photos_root: Path, tmp_path: Path
) -> None:
    """And reading them whole again gives the first one, bit for bit."""
    smooth_picture(300, 200).save(photos_root / "images" / "08.jpg", quality=95)
    done(csalign, "prepare", photos_recipe)

    def embedded(how: str) -> tuple[str, Any]:
        status = done(csalign, "embed", photos_recipe, *FROZEN_ONLY, "--set", f"embed.jpeg={how}")["status"]
        return status, Store(tmp_path / "run" / "embeddings" / "frozen" / "dev").array("image").all()

    exact, reduced, again, once_more = (embedded(how) for how in ("exact", "reduced", "exact", "exact"))
    assert [status for status, _ in (exact, reduced, again, once_more)] == ["done", "done", "done", "fresh"]
    np.testing.assert_array_equal(again[1], exact[1])
    assert not np.array_equal(reduced[1][0], exact[1][0])
    np.testing.assert_allclose(reduced[1][0], exact[1][0], atol=0.05 * np.abs(exact[1][0]).max())
    np.testing.assert_array_equal(reduced[1][1], exact[1][1])  # a PNG


def test_new_data_make_the_stores_stale(csalign: Csalign, features_recipe: Path, features_root: Path) -> None:
    for command in ("prepare", "embed"):
        done(csalign, command, features_recipe, *FROZEN_ONLY)
    os.utime(features_root / "captions.csv", ns=(0, 0))
    done(csalign, "prepare", features_recipe)
    assert done(csalign, "embed", features_recipe, *FROZEN_ONLY)["status"] == "done"


def test_float16_that_overflows_names_row_and_way_out(
    csalign: Csalign, refused: Refused, features_recipe: Path, features_root: Path
) -> None:
    text = np.load(features_root / "text_minilm.npy").astype(np.float32)
    text[603, 2] = 1e6  # the fourth caption of dev
    np.save(features_root / "text_minilm.npy", text)
    done(csalign, "prepare", features_recipe)
    message = refused("embed", features_recipe, "-q", *FROZEN_ONLY, "--set", "embed.dtype=float16")
    assert "text row 3 of the store has a value that is not finite in float16" in message
    assert "embed.dtype: float32" in message
    done(csalign, "embed", features_recipe, *FROZEN_ONLY)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("eval_retrieval.split=tset", "eval_retrieval.split: split 'tset' is absent; did you mean test?"),
        ("gap_report.split=nowhere", "gap_report.split: split 'nowhere' is absent"),
        ("train.split=trian", "train.split: split 'trian' is absent; did you mean train?"),
        ("train.val_split=dve", "train.val_split: split 'dve' is absent; did you mean dev?"),
    ],
)
def test_an_empty_split_is_named_with_its_key_and_the_splits_there_are(
    setting: str, message: str, csalign: Csalign, refused: Refused, features_recipe: Path
) -> None:
    done(csalign, "prepare", features_recipe)
    found = refused("embed", features_recipe, "-q", "--set", setting)
    assert found.startswith(message)
    assert "(splits: dev, test, train)" in found


def test_a_split_without_captions_is_named(
    csalign: Csalign, refused: Refused, features_recipe: Path, features_root: Path
) -> None:
    captions = pd.read_csv(features_root / "captions.csv")
    rows = (captions["split"] != "dev").to_numpy()
    captions[rows].to_csv(features_root / "captions.csv", index=False)
    np.save(features_root / "text_minilm.npy", np.load(features_root / "text_minilm.npy")[rows])
    done(csalign, "prepare", features_recipe)
    message = refused("embed", features_recipe, "-q", *FROZEN_ONLY)
    assert message == "eval_retrieval.split: split 'dev' has no captions (splits: dev, test, train)"


def test_without_prepared_data_the_command_to_run_is_named(refused: Refused, features_recipe: Path) -> None:
    message = refused("embed", features_recipe)
    assert "no prepared data set in " in message
    assert message.endswith(f"Make it first: csalign prepare {features_recipe}")


def test_features_that_changed_after_prepare_are_refused(
    csalign: Csalign, refused: Refused, features_recipe: Path, features_root: Path
) -> None:
    done(csalign, "prepare", features_recipe)
    np.save(features_root / "image_mobilenet_v2.npy", np.ones((10, 24), np.float32))
    message = refused("embed", features_recipe, "-q")
    assert message.startswith(f"{features_root / 'image_mobilenet_v2.npy'}: has changed since the data were prepared")
    assert message.endswith(f"csalign prepare {features_recipe}")


def test_a_photo_that_went_bad_after_prepare_is_refused(
    csalign: Csalign, refused: Refused, photos_recipe: Path, photos_root: Path
) -> None:
    done(csalign, "prepare", photos_recipe)
    photo = photos_root / "images" / "09.png"
    photo.write_bytes(photo.read_bytes()[:300])
    message = refused("embed", photos_recipe, "-q", *FROZEN_ONLY)
    assert message.startswith(f"{photo}: damaged: ")
    assert "it was whole when the data were prepared" in message


# ---- weights of another run


@pytest.fixture
def trained(csalign: Csalign, features_recipe: Path, tmp_path: Path) -> Path:
    """The weights file of a run over features_root."""
    done(csalign, "run", features_recipe, "--set", "train.epochs=2")
    return tmp_path / "run" / "train" / "aligned" / "best.safetensors"


def other_recipe(features_recipe: Path, tmp_path: Path, weights: Path) -> Path:
    """A recipe that aligns with the weights of another run and trains nothing."""
    content = yaml.safe_load(features_recipe.read_text())
    content |= {"name": "other", "run_dir": "other", "embed": {"weights": str(weights)}}
    content["eval_retrieval"] = {"split": "test"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "other.yaml"


def test_weights_of_another_run_align_another_data_set(
    csalign: Csalign, features_recipe: Path, trained: Path, tmp_path: Path
) -> None:
    """The same towers give the same embeddings, whoever applies them; a new file makes new ones."""
    recipe = other_recipe(features_recipe, tmp_path, trained)
    done(csalign, "prepare", recipe)
    summary = done(csalign, "embed", recipe)
    assert set(summary["stores"]) == {"frozen", "aligned"}
    assert summary["waiting_for_training"] == []
    done(csalign, "run", features_recipe, "--set", "train.epochs=2", "--set", "eval_retrieval.split=test")
    for modality, dim in (("image", 24), ("text", 16)):
        mine, theirs = (
            StoredArray(tmp_path / run / "embeddings" / "aligned" / "test" / modality) for run in ("other", "run")
        )
        assert mine.shape == theirs.shape != (0, dim)
        np.testing.assert_array_equal(mine.all(), theirs.all())
        np.testing.assert_allclose(np.linalg.norm(mine.all(), axis=1), 1, rtol=1e-5)
    assert done(csalign, "embed", recipe)["status"] == "fresh"
    os.utime(trained, ns=(0, 0))
    assert done(csalign, "embed", recipe)["status"] == "fresh", "what a finished training is does not hang on times"
    alone = shutil.copy(trained, tmp_path / "alone.safetensors")
    for _ in range(2):
        stores = done(csalign, "embed", recipe, "--set", f"embed.weights={alone}")["stores"]
        assert (stores["frozen"]["test"]["status"], stores["aligned"]["test"]["status"]) == ("fresh", "done")
        os.utime(alone, ns=(0, 0))


def test_weights_for_other_dimensions_are_refused(
    csalign: Csalign,
    refused: Refused,
    features_recipe: Path,
    features_root: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    recipe = other_recipe(features_recipe, tmp_path, trained)
    text = np.load(features_root / "text_minilm.npy")
    np.save(features_root / "text_minilm.npy", text[:, :9])
    done(csalign, "prepare", recipe)
    message = refused("embed", recipe, "-q")
    assert message.startswith(f"{trained}: its text tower takes 16 dimensions, but the text embeddings have 9")


def test_weights_that_are_missing_or_no_weights_are_refused(
    csalign: Csalign, refused: Refused, features_recipe: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    recipe = other_recipe(features_recipe, tmp_path, weights)
    done(csalign, "prepare", recipe)
    assert refused("embed", recipe, "-q") == f"{weights}: no such weights file"
    weights.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    assert f"{weights}: is no weights file of this csalign" in refused("embed", recipe, "-q")
    weights.write_bytes(b"junk")
    assert f"{weights}: cannot be read as safetensors" in refused("embed", recipe, "-q")
