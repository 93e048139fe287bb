"""Features by id: each item's own, whatever the order of the file; repeated rows; what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import features_recipe_content, make_features
from safetensors.numpy import save_file
from trials import Outcome, Trial

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.features import FeatureFile
from cs_aligner_cli.data.keyed_features import read_keyed

NAMES = ["b.jpg", "a.jpg", "d.jpg", "c.jpg"]
ROWS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
# In the file another order, and one item that no table names.
IDS = ["a.jpg", "x.jpg", "d.jpg", "c.jpg", "b.jpg"]
OF_IDS = np.stack([ROWS[NAMES.index(name)] if name in NAMES else np.ones(3, np.float32) for name in IDS])


def write(path: Path, form: str) -> dict[str, Any]:
    by_id = dict(zip(IDS, OF_IDS, strict=True))
    name = f"f.{form.split()[0]}"
    path = path / name
    if form == "npz by id":
        np.savez(path, **by_id)
    elif form == "npz ids beside":
        np.savez(path, ids=np.array(IDS), features=OF_IDS)
    elif form == "pt by id":
        torch.save(
            {key: torch.from_numpy(row).bfloat16().float() * 0 + torch.from_numpy(row) for key, row in by_id.items()},
            path,
        )
    elif form == "pt ids beside":
        torch.save({"ids": IDS, "features": torch.from_numpy(OF_IDS)}, path)
    elif form == "pt rows":
        torch.save(torch.from_numpy(ROWS), path)
    elif form == "safetensors by id":
        save_file(by_id, path)
    elif form == "parquet by id":
        pq.write_table(pa.table({"image_id": IDS, "clip": OF_IDS.tolist()}), path)
    elif form == "npy ids txt":
        np.save(path, OF_IDS)
        (path.parent / "ids.txt").write_text("\n".join(IDS) + "\n")
        return {"features": name, "ids": "ids.txt"}
    elif form == "npy ids json":
        np.save(path, OF_IDS)
        (path.parent / "ids.json").write_text(json.dumps(IDS))
        return {"features": name, "ids": "ids.json"}
    elif form == "h5 by id":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for key, row in by_id.items():
                file[key] = row
    return {"features": name}


FORMS = ["npz by id", "npz ids beside", "pt by id", "pt ids beside", "pt rows", "safetensors by id", "parquet by id"]
FORMS += ["npy ids txt", "npy ids json", "h5 by id"]


def prepared(trial: Trial, images: dict[str, Any], captions: dict[str, Any] | None = None) -> Outcome:
    """prepare over images of these features, and a caption for each."""
    trial.put("i.csv", "image,split\n" + "".join(f"{name},test\n" for name in NAMES))
    trial.put(
        "c.csv", "id,image,caption,split\n" + "".join(f"{i},{name},of {name},test\n" for i, name in enumerate(NAMES))
    )
    np.save(trial.root / "t.npy", ROWS)
    parts = {
        "images": {"table": "i.csv", **images},
        "captions": {"table": "c.csv", **(captions or {"features": "t.npy"})},
    }
    return trial(kind="embeddings", **parts)


def features(found: Outcome, modality: str = "image") -> npt.NDArray[np.float32]:
    """What an encoder of stored features reads for the rows of a modality."""
    from cs_aligner_cli.encoders.features import load_features
    from cs_aligner_cli.recipe.encoders import FeaturesEncoder

    split = found.data.split("test", "x")
    encoder = load_features(FeaturesEncoder(), found.data, modality)
    return np.asarray(encoder.load(split.table(modality)))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_each_item_its_own(trial: Trial, form: str) -> None:
    found = prepared(trial, write(trial.root, form))
    assert found.code == 0, found.said
    np.testing.assert_array_equal(features(found), ROWS)


@pytest.mark.parametrize("spell", [lambda n: n.removesuffix(".jpg"), lambda n: f"train/{n}"])
def test_names_without_folder_or_suffix(trial: Trial, spell: Callable[[str], str]) -> None:
    np.savez(trial.root / "f.npz", ids=np.array([spell(name) for name in IDS]), features=OF_IDS)
    np.testing.assert_array_equal(features(prepared(trial, {"features": "f.npz"})), ROWS)


@pytest.mark.parametrize("form", ["pt", "parquet"])
def test_ids_under_the_name_of_the_table_s_column(trial: Trial, form: str) -> None:
    ids, rows = [*reversed(NAMES)], ROWS[::-1].copy()
    torch.save({"image": ids, "split": ["test"] * len(ids), "v": torch.from_numpy(rows)}, trial.root / "f.pt")
    columns = {"image": ids, "split": ["test"] * len(ids), "v": list(rows)}
    pq.write_table(pa.table(columns), trial.root / "f.parquet")
    np.testing.assert_array_equal(features(prepared(trial, {"features": f"f.{form}"})), ROWS)


@pytest.mark.parametrize("form", ["by id", "repeated"])
def test_tokens_beside_features_of_another_order_are_refused(trial: Trial, form: str) -> None:
    """Tokens have the rows of the table, and would be read by the rows of the features."""
    tokens = np.repeat(ROWS[:, None], 2, axis=1)
    np.save(trial.root / "tokens.npy", tokens)
    np.save(trial.root / "mask.npy", np.ones((4, 2), bool))
    np.savez(trial.root / "f.npz", ids=np.array(NAMES), features=ROWS)
    named = {"features": "f.npz", "tokens": {"features": "tokens.npy", "mask": "mask.npy"}}
    found = prepared(trial, named)
    assert found.code == 0, found.said

    np.savez(trial.root / "f.npz", ids=np.array(NAMES[::-1]), features=ROWS[::-1])
    np.save(trial.root / "f.npy", np.repeat(ROWS, 3, axis=0))
    found = prepared(trial, {**named, "features": "f.npz" if form == "by id" else "f.npy"})
    assert found.code == 2 and "tokens.npy: has the rows of " in found.said
    assert f"but {trial.root / 'f.np'}" in found.said and "has its own order, or repeats them" in found.said


def test_captions_by_id(trial: Trial) -> None:
    order = [2, 0, 3, 1]
    np.savez(trial.root / "c.npz", **{str(i): ROWS[i] * 2 for i in order})
    images = write(trial.root, "npz by id")
    refused = prepared(trial, images, {"features": "c.npz"})
    assert refused.code == 2 and "Name the column with id_column." in refused.said
    found = prepared(trial, images, {"features": "c.npz", "id_column": "id"})
    np.testing.assert_array_equal(features(found, "text"), ROWS * 2)


def test_rows_repeated_for_each_caption_as_in_vse(trial: Trial) -> None:
    np.save(trial.root / "f.npy", np.repeat(ROWS, 5, axis=0))
    np.testing.assert_array_equal(features(prepared(trial, {"features": "f.npy"})), ROWS)
    unlike = np.repeat(ROWS, 5, axis=0)
    unlike[7] += 1
    np.save(trial.root / "f.npy", unlike)
    found = prepared(trial, {"features": "f.npy"})
    assert found.code == 2 and "holds 20 rows, but" in found.said

    np.savez(trial.root / "g.npz", ids=np.repeat(IDS, 2), features=np.repeat(OF_IDS, 2, axis=0))
    np.testing.assert_array_equal(features(prepared(trial, {"features": "g.npz"})), ROWS)
    np.savez(trial.root / "g.npz", ids=np.repeat(IDS, 2), features=np.arange(30.0).reshape(10, 3) + 1)
    found = prepared(trial, {"features": "g.npz"})
    assert found.code == 2 and "is there twice, with unlike features" in found.said


def test_ids_without_features_are_refused(trial: Trial) -> None:
    np.savez(trial.root / "f.npz", **dict(zip(IDS[2:], OF_IDS[2:], strict=True)))
    found = prepared(trial, {"features": "f.npz"})
    assert found.code == 2
    assert "has no features of 1 of the 4 items in" in found.said and "the first 'a.jpg'" in found.said


def test_zero_rows_are_refused_before_training(trial: Trial) -> None:
    rows = ROWS.copy()
    rows[2] = 0
    np.save(trial.root / "f.npy", rows)
    found = prepared(trial, {"features": "f.npy"})
    assert found.code == 2 and "row 2 (counted from 0) is all zeros, and so has no direction" in found.said


def test_files_that_were_swapped_are_suspected(trial: Trial) -> None:
    trial.put("i.csv", "image,split\na,test\nb,test\n")
    trial.put("c.csv", "image,caption,split\n" + "a,x,test\n" * 3)
    np.save(trial.root / "two.npy", ROWS[:2])
    np.save(trial.root / "three.npy", ROWS[:3])
    images, captions = {"table": "i.csv", "features": "three.npy"}, {"table": "c.csv", "features": "two.npy"}
    found = trial(kind="embeddings", images=images, captions=captions)
    assert found.code == 2 and "The table of modality text has as many rows: are the two swapped?" in found.said
    images, captions = {"table": "c.csv", "features": "three.npy"}, {"table": "i.csv", "features": "two.npy"}
    found = trial(kind="embeddings", images=images, captions=captions)
    assert found.code == 2 and "the images' table, has it: are the two swapped?" in found.said


def bad_file(folder: Path, fault: str) -> str:
    """A file of three rows with this fault."""
    name = f"f.{fault.split()[0]}"
    vectors = ROWS[:3].tolist()
    if fault == "parquet of unequal vectors":  # which come to three rows of three
        pq.write_table(pa.table({"id": IDS[:3], "v": [vectors[0][:2], vectors[1], [*vectors[2], 1.0]]}), folder / name)
    elif fault == "parquet without an id":
        pq.write_table(pa.table({"id": ["a", None, "c"], "v": vectors}), folder / name)
    elif fault == "parquet of numbers":
        pq.write_table(pa.table({"id": IDS[:3], "v": [1.0, 2.0, 3.0], "w": vectors}), folder / name)
    elif fault == "pt without an id":
        torch.save({"ids": ["a", None, "c"], "x": torch.from_numpy(ROWS[:3])}, folder / name)
    elif fault == "pt of float8":
        torch.save(torch.from_numpy(ROWS).to(torch.float8_e4m3fn), folder / name)
    else:
        (folder / name).write_bytes(b"junk")
    return name


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("parquet of unequal vectors", "row 1 of 'v' has 3 values, row 0 has 2"),
        ("parquet without an id", "row 1 (counted from 0) has no id in 'id'"),
        ("parquet of numbers", "the column 'v' holds no vectors; those that do: w"),
        ("pt without an id", "row 1 (counted from 0) has no id in 'ids'"),
        ("pt of float8", "expected dense tensors of a type that numpy has, found torch.float8_e4m3fn"),
        ("pt that is none", "it is no file of torch.save, or damaged"),
    ],
)
def test_what_holds_no_row_for_each_id_is_refused(tmp_path: Path, fault: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        name = bad_file(tmp_path, fault)
        read_keyed(tmp_path / name, "v" if name.endswith("parquet") else None)
    assert message in str(caught.value)


def test_one_number_named_id_is_no_list_of_ids(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", id=np.array(4), x=ROWS)
    assert read_keyed(tmp_path / "f.npz", None).ids is None


@pytest.mark.parametrize("name", ["f.NPY", "f.SafeTensors"])
def test_suffixes_count_in_any_case(tmp_path: Path, name: str) -> None:
    save_file({"x": ROWS}, tmp_path / name)
    if name == "f.NPY":
        with (tmp_path / name).open("wb") as file:
            np.save(file, ROWS)
    np.testing.assert_array_equal(FeatureFile(tmp_path / name).read(np.arange(4)), ROWS)


class Planted:
    """An object whose unpickling leaves a trace."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("planted",)


@pytest.mark.parametrize(("name", "save"), [("f.pt", torch.save), ("f.npz", lambda x, p: np.savez(p, a=np.array([x])))])
def test_nothing_is_unpickled(
    trial: Trial, name: str, save: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Planted(), trial.root / name)
    found = prepared(trial, {"features": name})
    assert found.code == 2 and f"{name}: " in found.said
    assert not (tmp_path / "planted").exists()


def test_captions_that_a_live_encoder_reads_need_no_features(trial: Trial) -> None:
    np.save(trial.root / "f.npy", ROWS)
    trial.put("i.csv", "image,split\n" + "".join(f"{name},test\n" for name in NAMES))
    pd.DataFrame({"image": NAMES, "caption": NAMES, "split": "test"}).to_csv(trial.root / "c.csv", index=False)
    parts = {"images": {"table": "i.csv", "features": "f.npy"}, "captions": {"table": "c.csv"}}
    live = {"encoders": {"image": {"kind": "features"}, "text": {"kind": "transformers", "model": "none"}}}
    found = trial(kind="embeddings", sections=live, **parts)
    assert found.code == 0 and found.splits == {"test": (4, 4)}


def test_preparing_stored_features_imports_no_torch(tmp_path: Path, write_yaml: Callable[..., Path]) -> None:
    make_features(tmp_path / "features", {"train": 4, "dev": 4})
    recipe = write_yaml("r.yaml", **features_recipe_content(tmp_path / "features", tmp_path / "run"))
    code = f"""
import sys
from cs_aligner_cli.cli.main import app
try:
    app(["prepare", {str(recipe)!r}])
except SystemExit as exit:
    print("loaded:", sorted({{"torch", "open_clip", "faiss"}} & set(sys.modules)), "code:", exit.code)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "loaded: [] code: 0"
