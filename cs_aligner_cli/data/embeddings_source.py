"""The reader of stored features: tables of items, and for each item the row of a feature file that is its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.collector import Source, folded, listed_before
from cs_aligner_cli.data.features import FeatureFile, checked_rows
from cs_aligner_cli.data.keyed_features import is_keyed, read_ids, read_keyed, refuse_unlike, rows_of
from cs_aligner_cli.data.manifest import CaptionFeatures, EmbeddingsManifest, FurtherFeatures, ImageFeatures
from cs_aligner_cli.data.table_source import ALL
from cs_aligner_cli.data.tables import MissingColumnError, read_frame, read_names, text_column
from cs_aligner_cli.data.token_features import TokenFile
from cs_aligner_cli.files.places import below, file_stamps

_Part: TypeAlias = ImageFeatures | CaptionFeatures | FurtherFeatures


def read_embeddings(manifest: EmbeddingsManifest, folder: Path, console: Console) -> Source:
    """Read the tables, find the features of every item, and check that they are finite and have a direction.

    Features that are not mapped where they lie are written into ``folder``, so that they are read by row later.
    """
    assert manifest.root is not None
    root = manifest.root
    if manifest.split_fractions:
        manifest = _without_splits(manifest)
    frames = _frames(root, manifest)
    parts: dict[str, _Part | None] = {"image": manifest.images, "text": manifest.captions, **manifest.modalities}
    description: dict[str, Any] = {"kind": "embeddings"}
    bad: list[dict[str, str]] = []
    sizes = {modality: len(frame) for modality, frame in frames.items()}
    total = sum(sizes[modality] * (2 if part and part.tokens else 1) for modality, part in parts.items())
    with console.progress("checking features", total) as advance:
        for modality, part in parts.items():
            frame = frames[modality]
            frame["feature_row"] = np.arange(len(frame))
            if part is not None and part.features is not None:
                named, description[f"{modality}_features"] = _named_features(root, part, folder, modality)
                frame["feature_row"] = _feature_rows(root / part.table, named, frame, sizes)
                if part.tokens and (frame["feature_row"] != np.arange(len(frame))).any():
                    raise InputError(
                        f"{root / part.tokens.features}: has the rows of {root / part.table}, but {named.path} has its"
                        " own order, or repeats them",
                        "Beside token features, features need a row for each of the table's, in its order.",
                    )
                digests = checked_rows(named.file, modality == "image", advance)
                if modality == "image":
                    frame, bad = _each_once(frame, named, root / part.table)
                    frames[modality] = frame
                    frame["digest"] = np.array(digests, np.uint64)[frame["feature_row"].to_numpy()]
            if part is not None and part.tokens:
                description[f"{modality}_tokens"] = _checked_tokens(root, part, sizes[modality], advance)
    frames = {name: frame.drop(columns="key", errors="ignore") for name, frame in frames.items()}
    images, captions = frames.pop("image"), frames.pop("text")
    if manifest.captions is not None and manifest.captions.split_column is None:
        split_of = images.drop_duplicates("image_id").set_index("image_id")["split"]
        captions["split"] = captions["image_id"].map(split_of).fillna(captions["split"])
    return Source(images, captions, description, bad, further=frames)


def _frames(root: Path, manifest: EmbeddingsManifest) -> dict[str, pd.DataFrame]:
    """The table of every modality; a column of splits that is not there is named with what to do."""
    try:
        frames = {"image": _image_table(root, manifest.images), "text": _caption_table(root, manifest)}
        return frames | {name: _owned(root, part) for name, part in manifest.modalities.items()}
    except MissingColumnError as error:
        parts = (manifest.images, manifest.captions, *manifest.modalities.values())
        if error.column not in [part.split_column for part in parts if part]:
            raise
        raise InputError(
            str(error),
            "Without such a column: split_column: null (the images are one split, all; captions are in their image's).",
        ) from None


class _Named(NamedTuple):
    """A feature file, mapped, and the name of each of its rows (None: they are those of the table)."""

    path: Path
    file: FeatureFile
    ids: list[str] | None


def _named_features(root: Path, part: _Part, folder: Path, modality: str) -> tuple[_Named, dict[str, Any]]:
    """The features of a modality, and what encoders need to find them again."""
    assert part.features is not None
    path = root / part.features
    ids = read_ids(root / part.ids) if part.ids is not None else None
    if is_keyed(path, part.tensor):
        keyed = read_keyed(path, part.tensor, part.id_column)
        ids, name = ids if ids is not None else keyed.ids, f"{modality}_features.npy"
        np.save(folder / name, keyed.features)
        file = FeatureFile(folder / name)
        where: dict[str, Any] = {"paths": [name], "tensor": None, "stamp": None, "inside": True}
    else:
        file = FeatureFile(path, part.tensor)
        where = {"paths": [below(root, path)], "tensor": part.tensor, "stamp": file_stamps([path])}
    if ids is not None and len(ids) != file.shape[0]:
        raise InputError(f"{path}: holds {counted(file.shape[0], 'rows')}, but there are {len(ids)} ids of them")
    return _Named(path, file, ids), where


def _feature_rows(table: Path, named: _Named, frame: pd.DataFrame, sizes: Mapping[str, int]) -> Ints:
    """The row of the features of each row of a table: by name, or in order, each perhaps repeated for every caption."""
    rows, count = named.file.shape[0], len(frame)
    if named.ids is not None:
        if "key" not in frame:
            raise InputError(
                f"{named.path}: has its features by id, but nothing says which ids the items in {table} have",
                "Name the column with id_column.",
            )
        if len(set(named.ids)) < len(named.ids):
            refuse_unlike(named.ids, named.file.read(slice(0, rows)), named.path)
        return rows_of(frame["key"].tolist(), named.ids, named.path, table)
    if rows % count == 0 and rows > count and _repeated(named.file, rows // count):
        return np.arange(count) * (rows // count)
    if rows != count:
        swapped = [modality for modality, size in sizes.items() if size == rows]
        hint = f"The table of modality {swapped[0]} has as many rows: are the two swapped?" if swapped else ""
        raise InputError(f"{named.path}: holds {rows} rows, but {table} has {count}", hint)
    return np.arange(count)


def _repeated(file: FeatureFile, times: int) -> bool:
    """Whether every row stands ``times`` times in a row, as VSE++ repeats an image for each of its captions."""
    step = times * max(1, 4096 // times)
    for start in range(0, file.shape[0], step):
        block = file.read(slice(start, min(start + step, file.shape[0]))).reshape(-1, times, file.shape[1])
        if not (block == block[:, :1]).all():
            return False
    return True


def _each_once(images: pd.DataFrame, named: _Named, table: Path) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Each image once, where a table lists it once for each of its captions with equal features and one label; and, as
    bad items, those that are listed in a second split."""
    names = images["image_id"]
    twice = names.duplicated(keep=False)
    bad: list[dict[str, str]] = []
    if twice.any():
        rows = images.loc[twice, "feature_row"].to_numpy()
        refuse_unlike(names[twice].tolist(), named.file.read(rows), table)
        first = images[~names.duplicated()].set_index("image_id")
        label_of, split_of = (names.map(first[column]) for column in ("label", "split"))
        if (unlike := images["label"] != label_of).any():
            row = int(unlike.argmax())
            labels = f"{label_of.iloc[row]!r} and {images['label'].iloc[row]!r}"
            raise InputError(f"{table}: image {names.iloc[row]!r} has two labels: {labels}")
        astray = images["split"].map(folded) != split_of.map(folded)
        bad = [
            {"kind": "image", "item": f"{name} ({table})", "reason": listed_before(split)}
            for name, split in zip(names[astray], split_of[astray], strict=True)
        ]
    return images[~names.duplicated()].reset_index(drop=True), bad


def _without_splits(manifest: EmbeddingsManifest) -> EmbeddingsManifest:
    """The manifest as if its tables had no column of splits, which are drawn."""
    changes = {"split_column": None}
    images, captions = (part and part.model_copy(update=changes) for part in (manifest.images, manifest.captions))
    further = {name: part.model_copy(update=changes) for name, part in manifest.modalities.items()}
    return manifest.model_copy(update={"images": images, "captions": captions, "modalities": further})


def _image_table(root: Path, part: ImageFeatures | None) -> pd.DataFrame:
    columns = ["image_id", "split", "locator", "width", "height", "digest", "label"]
    if part is None:
        return pd.DataFrame(columns=columns)
    path = root / part.table
    table = read_frame(path, [c for c in (part.id_column, part.split_column, part.label_column) if c])
    ids = text_column(table, part.id_column, path, required=True)
    label = text_column(table, part.label_column, path) if part.label_column else ""
    split = _splits(table, part.split_column, path)
    found = pd.DataFrame({"image_id": ids, "split": split, "label": label, "key": ids})
    return found.assign(locator="", width=0, height=0)


def _caption_table(root: Path, manifest: EmbeddingsManifest) -> pd.DataFrame:
    part = manifest.captions
    if part is None:
        return pd.DataFrame(columns=["image_id", "split", "text"])
    path = root / part.table
    try:
        table = read_frame(path, [part.caption_column])
    except MissingColumnError as error:
        hint = ""
        if manifest.images is not None and part.caption_column in read_names(root / manifest.images.table):
            hint = f"{root / manifest.images.table}, the images' table, has it: are the two swapped?"
        raise InputError(str(error), hint) from None
    return _owned(root, part).assign(text=text_column(table, part.caption_column, path))


def _owned(root: Path, part: CaptionFeatures | FurtherFeatures) -> pd.DataFrame:
    """The items of a modality: which image's they are, their split, and by which name their features are found."""
    path = root / part.table
    table = read_frame(path, [c for c in (part.image_column, part.split_column, part.id_column) if c])
    owner: Any = None
    if part.image_column:
        text = text_column(table, part.image_column, path)
        owner = text.where(text != "")
    found = pd.DataFrame({"image_id": owner, "split": _splits(table, part.split_column, path)}, index=table.index)
    return found.assign(key=text_column(table, part.id_column, path, required=True)) if part.id_column else found


def _splits(table: pd.DataFrame, column: str | None, path: Path) -> pd.Series[str] | str:
    return text_column(table, column, path, required=True) if column else ALL


def _checked_tokens(root: Path, part: _Part, rows: int, advance: Callable[..., None]) -> dict[str, Any]:
    """See that token features row-align with their table and are finite; return where they are."""
    assert part.tokens is not None
    path, mask = root / part.tokens.features, root / part.tokens.mask
    file = TokenFile(path, part.tokens.tensor, mask)
    if file.shape[0] != rows:
        raise InputError(f"{path}: holds {file.shape[0]} rows, but {root / part.table} has {rows}")
    file.check(advance)
    return {
        "path": below(root, path),
        "tensor": part.tokens.tensor,
        "mask": below(root, mask),
        "stamp": file_stamps([path, mask]),
    }
