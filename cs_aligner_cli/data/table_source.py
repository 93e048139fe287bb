"""The reader of tables of images and captions: one row an image, a caption, or both, in one file or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, listed
from cs_aligner_cli.data.arrow_images import ArrowFile, dataset_files, open_arrow, read_columns
from cs_aligner_cli.data.caption_text import list_in
from cs_aligner_cli.data.collector import LOST_CAPTIONS, Source, folded, listed_before, one_image_a_name
from cs_aligner_cli.data.delimited import Dialect, format_of
from cs_aligner_cli.data.file_names import IMAGE_SUFFIXES, has_suffix
from cs_aligner_cli.data.manifest import TableManifest
from cs_aligner_cli.data.patterns import find_files
from cs_aligner_cli.data.tables import MissingColumnError, decoded, from_arrow, read_frame, text_column

# Flickr's own files number the captions of an image: x.jpg#0, x.jpg#1.
_NUMBERED = r"(?i)(\.(?:jpe?g|png))#\d+$"
ALL = "all"


def read_table(manifest: TableManifest, folder: Path, console: Console) -> Source:
    """The rows of all files. An image is named by its path; rows of one image, wherever they stand, are one image."""
    assert manifest.root is not None  # load_manifest has seen to it
    bad: list[dict[str, str]] = []
    notes: list[str] = []
    dialect = Dialect(manifest.delimiter, manifest.header, manifest.quoting, manifest.encoding, bad, notes)
    files = table_files(manifest)
    parts = [_rows(manifest, path, split, dialect) for split, path in files]
    rows = pd.concat(parts, ignore_index=True)
    images, owner, found = _images(rows, manifest.root, ", ".join(str(path) for _, path in files[:3]))
    bad += found if manifest.captions else [*found, *_in_second_splits(rows)]
    captions = pd.DataFrame({"image_id": owner, "split": rows["split"], "text": rows["text"]})
    lost = captions["image_id"].isna() & rows["locator"].notna()
    skipped = {LOST_CAPTIONS: int(lost.sum())} if lost.any() else {}
    captions = captions[~lost] if manifest.captions else captions[:0]
    if captions["text"].dtype == object:  # cells that are lists
        captions, found = _one_a_row(captions)
        bad += found
    captions = captions.assign(text=text_column(captions, "text", files[0][1]), feature_row=-1)
    captions = captions.reset_index(drop=True)
    return Source(images, captions, {"kind": "table"}, bad, skipped, notes=notes)


def _one_a_row(captions: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Captions of which cells may be lists, each in a row of its own; and what is a number in a list, as bad items."""
    several = captions["text"].map(lambda cell: isinstance(cell, list)).astype(bool)
    rows = captions.assign(several=several).explode("text", ignore_index=True)
    number = rows["several"] & rows["text"].map(lambda cell: isinstance(cell, int | float) and cell == cell)
    bad = [
        {"kind": "caption", "item": f"caption of image {image_id}", "reason": f"{text!r} in a list is no text"}
        for image_id, text in rows.loc[number, ["image_id", "text"]].itertuples(index=False, name=None)
    ]
    return rows[~number].drop(columns="several").reset_index(drop=True), bad


def table_files(manifest: TableManifest) -> list[tuple[str | None, Path]]:
    """(split, file) of every table; the split is None where a column, or nothing, says it."""
    assert manifest.root is not None
    if manifest.table is not None:
        path = manifest.root / manifest.table
        if path.is_dir():
            return [(split, file) for split, files in dataset_files(path).items() for file in files]
        if any(c in str(manifest.table) for c in "*?[") and not path.exists():
            return [(None, file) for file in find_files(manifest.root, str(manifest.table), "table")]
        return [(None, path)]
    files: list[tuple[str | None, Path]] = []
    for split, pattern in manifest.tables.items():
        path = manifest.root / pattern
        if path.is_dir():
            found = dataset_files(path)
            if None not in found:
                raise InputError(
                    f"tables.{split}: {path} has splits of its own: {listed([*map(str, found)])}",
                    f"Name the one that is meant, {pattern}/{next(iter(found), 'SPLIT')}; or all, by table: {pattern}.",
                )
            files += [(split, file) for file in found[None]]
        else:
            named = [path] if path.is_file() else find_files(manifest.root, pattern, f"tables.{split}")
            files += [(split, file) for file in named]
    return files


def _rows(manifest: TableManifest, path: Path, split: str | None, dialect: Dialect) -> pd.DataFrame:
    """Rows (image_id, locator, split, text, label) of one file; image_id and locator are None for no image."""
    split_column = None if split is not None or manifest.split_fractions else manifest.split_column
    pattern = manifest.image_path
    image = [manifest.image_column] if manifest.image_column and not pattern else []
    named = [name for name in _fields(pattern) if name != "split" or split is None] if pattern else image
    columns = [*named, *manifest.captions, *(c for c in (split_column, manifest.label_column) if c)]
    try:
        frame, located = _read(path, columns, image, dialect, manifest)
    except MissingColumnError as error:
        raise _advised(error, manifest, split_column) from None
    rows = pd.DataFrame(index=frame.index)
    if located is not None:
        rows = located
    elif pattern:
        rows["image_id"] = _formatted(pattern, frame, split, path)
    elif image:
        ids = text_column(frame, image[0], path).str.replace(_NUMBERED, r"\1", regex=True)
        rows["image_id"] = ids.where(ids != "")
    else:
        rows["image_id"] = pd.Series(None, frame.index, object)
    if located is None:
        locators = {name: str(manifest.image_dir / name) for name in rows["image_id"].dropna().unique()}
        rows["locator"] = rows["image_id"].map(locators).astype(object)
    rows["split"] = text_column(frame, split_column, path, required=True) if split_column else split or ALL
    rows["text"] = _texts(frame, manifest.captions, path)
    rows["label"] = text_column(frame, manifest.label_column, path) if manifest.label_column else ""
    _refuse_swapped(rows, path)
    return rows


def _read(
    path: Path, columns: Sequence[str], image: Sequence[str], dialect: Dialect, manifest: TableManifest
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The table's cells and, where it holds the images themselves, which image is where."""
    if format_of(path) not in (".parquet", ".arrow"):
        return read_frame(path, columns, dialect), None
    if format_of(path) == ".parquet" and not path.is_file():
        return read_frame(path, columns, dialect), None  # says what is there
    if path.suffix.lower() not in (".parquet", ".arrow"):
        raise InputError(f"{path}: is compressed, and such tables are not: uncompress it")
    file = open_arrow(path)
    inside = bool(image) and file.holds_images(image[0])
    wanted = [name for name in columns if not (inside and name in image)]
    for name in columns:
        if file.schema.names.count(name) > 1:
            raise InputError(f"{path}: the column {name!r} is there twice: which one is meant?")
        if name not in file.schema.names:
            raise MissingColumnError(path, name, file.schema.names)
    cells = {name: from_arrow(column) for name, column in read_columns(file, wanted).items()}
    rows = file.columns([]).num_rows if not cells else len(next(iter(cells.values())))
    frame = pd.DataFrame(cells, index=range(rows if cells else len(file.located(image[0], ""))))
    if frame.index.empty:
        raise InputError(f"{path}: holds no rows")
    return frame, _inside(file, image[0], manifest) if inside else None


def _inside(file: ArrowFile, column: str, manifest: TableManifest) -> pd.DataFrame:
    """(image_id, locator) of images that lie in the table: named by their path in it, else by file and row."""
    assert manifest.root is not None
    relative = file.path.relative_to(manifest.root) if file.path.is_relative_to(manifest.root) else file.path
    located = file.located(column, str(relative))
    numbered = [f"{relative.with_suffix('')}/{row:06d}" for row in range(len(located))]
    names = [name or number for name, number in zip(located["name"], numbered, strict=True)]
    return pd.DataFrame({"image_id": names, "locator": located["locator"]})


def _images(rows: pd.DataFrame, root: Path, tables: str) -> tuple[pd.DataFrame, pd.Series[Any], list[dict[str, str]]]:
    """The images, for each row the name of its image (None: no image, or a dropped one), and the bad items."""
    named = rows[rows["locator"].notna()]
    listed = named[["image_id", "split", "locator"]].drop_duplicates("locator")
    images, entry_of, bad = one_image_a_name(listed.reset_index(drop=True), root)
    place = pd.Series(entry_of, index=listed["locator"].to_numpy())
    of_row = rows["locator"].map(place).fillna(-1).astype(int).to_numpy()
    names = pd.concat([images["image_id"].astype(object), pd.Series([None], dtype=object)], ignore_index=True)
    owner = names.take(np.where(of_row < 0, len(images), of_row)).set_axis(rows.index)
    images["label"] = _label_of_each(images["image_id"], owner, rows["label"], tables)
    return images, owner, bad


def _in_second_splits(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Images that are listed in a second split, as bad items; where there are captions, those are bad."""
    named = rows[rows["locator"].notna()].drop_duplicates(["locator", "split"])
    first = named["locator"].map(named.drop_duplicates("locator").set_index("locator")["split"])
    astray = named["split"].map(folded) != first.map(folded)
    return [
        {"kind": "image", "item": f"{name} ({locator})", "reason": listed_before(split)}
        for name, locator, split in zip(
            *(named[c][astray] for c in ("image_id", "locator")), first[astray], strict=True
        )
    ]


def _texts(frame: pd.DataFrame, columns: Sequence[str], path: Path) -> Any:
    """The captions of every row: one text, or a list where a cell holds several or several columns do."""
    if not columns:
        return ""
    read = [_unlisted(frame[column], column, path) for column in columns]
    if len(read) == 1:
        return read[0]
    return [_joined(cells) for cells in zip(*read, strict=True)]


def _unlisted(cells: pd.Series[Any], column: str, path: Path) -> pd.Series[Any]:
    """Cells in which lists that were written as text are lists; InputError where one holds an object."""
    if cells.dtype == object:
        cells = decoded(cells, column, path)
        text = cells.map(lambda cell: isinstance(cell, str) and "[" in cell).astype(bool)
    else:
        text = cells.str.contains("[", regex=False).fillna(False).astype(bool)
    read = cells[text].map(list_in).astype(object)
    read = read[read.notna()]
    if not read.empty:
        cells = cells.astype(object)
        cells[read.index] = read
    if cells.dtype == object and (objects := cells.map(_holds_object)).any():
        row = int(objects.argmax())
        raise InputError(
            f"{path}: row {row} (counted from 0) has an object in the column {column!r}, not text",
            "A caption is a text, and several are a list of texts: write the text itself into the column.",
        )
    return cells


def _holds_object(cell: Any) -> bool:
    return isinstance(cell, dict) or (isinstance(cell, list) and any(isinstance(i, dict | list | tuple) for i in cell))


def _joined(cells: Sequence[Any]) -> list[Any]:
    """The captions in several cells of a row; an empty cell beside others is no caption."""
    texts = [text for cell in cells for text in (cell if isinstance(cell, list) else [cell])]
    return [text for text in texts if not (text is None or pd.isna(text) or str(text).strip() == "")] or [""]


def _fields(pattern: str | None) -> list[str]:
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(pattern or "") if name))


def _formatted(pattern: str, frame: pd.DataFrame, split: str | None, path: Path) -> list[str | None]:
    """The image's path in every row; None where a cell that it needs is empty."""
    specs = {name: spec or "" for _, name, spec, _ in Formatter().parse(pattern) if name}
    texts = {name: text_column(frame, name, path) for name in specs if name in frame}
    fixed = {"split": split} if split is not None else {}

    def written(cells: tuple[str, ...]) -> str | None:
        if not all(cells):
            return None
        values = dict(zip(texts, cells, strict=True))
        try:
            typed = {name: int(v) if specs[name].endswith("d") else v for name, v in values.items()}
            return pattern.format(**typed, **fixed)
        except ValueError:
            raise InputError(f"{path}: image_path {pattern!r}: cannot be made from {values}") from None

    return [written(cells) for cells in zip(*texts.values(), strict=True)]


def _label_of_each(images: pd.Series[Any], of_rows: pd.Series[Any], labels: pd.Series[str], tables: str) -> list[str]:
    """The label of every image; raises InputError where the rows of one image have two."""
    rows = pd.DataFrame({"image": of_rows, "label": labels}).dropna(subset="image").drop_duplicates()
    twice = rows.loc[rows["image"].duplicated(), "image"]
    if len(twice):
        found = rows.loc[rows["image"] == twice.iloc[0], "label"].tolist()
        raise InputError(f"{tables}: image {twice.iloc[0]!r} has two labels: {found[0]!r} and {found[1]!r}")
    of_image: dict[str, str] = dict(zip(rows["image"], rows["label"], strict=True))
    return [of_image[image] for image in images]


def _advised(error: MissingColumnError, manifest: TableManifest, split_column: str | None) -> InputError:
    """What to do about a missing column: say that there is no split, or that the two columns are other ones."""
    if error.column == split_column and "split_column" not in manifest.model_fields_set:
        return InputError(
            str(error),
            "Without such a column: split_column: null (one split, all), or split_fractions: {train: 0.9, test: 0.1}.",
        )
    if manifest.header is None and any(has_suffix(name.strip(), IMAGE_SUFFIXES) for name in error.names):
        hint = "The first line looks like a row: name the columns with header: [image, caption]."
        return InputError(str(error), hint)
    return error


def _refuse_swapped(rows: pd.DataFrame, path: Path) -> None:
    """Raise InputError where the captions are names of images, and the names of images are none."""
    if rows["text"].dtype == object and rows["text"].map(lambda cell: not isinstance(cell, str)).any():
        return
    names, texts = rows["image_id"].dropna().head(100), rows["text"].head(100)
    named, told = ([has_suffix(str(cell).strip(), IMAGE_SUFFIXES) for cell in cells] for cells in (names, texts))
    if named and not any(named) and all(told):
        raise InputError(f"{path}: the captions are names of images, and the images are none: are the two swapped?")
