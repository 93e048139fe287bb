"""MixBench's layout: queries and a corpus of images, texts and items of both, with judgements between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.types import Ints
from cs_aligner_cli.data.collector import Entries, Source
from cs_aligner_cli.data.json_items import Place
from cs_aligner_cli.data.json_tables import json_lines
from cs_aligner_cli.data.judgements import scores_of
from cs_aligner_cli.data.manifest_layouts import MixbenchManifest
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.data.tables import read_frame, text_column

QUERIES, CORPUS, JUDGEMENTS = "queries.jsonl", "mixed_corpus.jsonl", "qrels/qrels.tsv"
_FILES = {QUERIES: "query_id", CORPUS: "corpus_id"}


@dataclass(frozen=True, eq=False)
class MixedCorpus:
    """Queries and corpus by rows of a split: (n,) image rows and text rows, -1 for none; and which answers which.

    ``query_ids`` (Q,) and ``answers``: (P,) places of queries and (P,) places in the corpus.
    """

    query_ids: list[str]
    queries: tuple[Ints, Ints]
    corpus: tuple[Ints, Ints]
    answers: tuple[Ints, Ints]


def read_mixbench(manifest: MixbenchManifest, folder: Path, console: Console) -> Source:
    """All images and texts of queries and corpus as one split; an item of both is an image with its caption."""
    assert manifest.root is not None
    entries = Entries()
    for name, key in _FILES.items():
        for at, _, image, text in _items(manifest.root / name, key):
            texts = [text] if text else []
            if image:
                entries.add(image, manifest.split, str(manifest.image_dir / image), texts)
            elif text:
                entries.add_captions(None, manifest.split, texts)
            else:
                entries.drop("caption", f"{manifest.root / name}: {at}", "neither an image nor a text")
    return entries.source("mixbench", manifest.root)


def corpus_files(folder: Path) -> list[Path]:
    """The files that ``read_mixed_corpus`` reads."""
    return [folder / name for name in (*_FILES, JUDGEMENTS)]


def read_mixed_corpus(folder: Path, split: Split) -> MixedCorpus:
    """The queries, corpus and judgements of a folder in MixBench's layout, by the split's rows.

    An image is found by its id, a text by what it says, without the spaces around it. Raises InputError for a file that
    is missing or not in the layout, an item that the split does not hold, and a judgement of an unknown item.
    """
    images = pd.Index(split.images["image_id"])
    texts = split.captions["text"].str.strip().drop_duplicates()
    row_of_text = pd.Series(texts.index, index=texts.to_numpy())
    ids, rows = {}, {}
    for name, key in _FILES.items():
        found = [(item, image, text.strip()) for _, item, image, text in _items(folder / name, key)]
        ids[name] = pd.Index([item for item, _, _ in found])
        if ids[name].has_duplicates:
            twice = ids[name][ids[name].duplicated()][0]
            raise InputError(f"{folder / name}: {key} {twice!r} is used twice")
        of_image = images.get_indexer(pd.Index([image for _, image, _ in found]))
        of_text = row_of_text.reindex([text for _, _, text in found]).fillna(-1).to_numpy(np.int64)
        for (item, image, text), i, t in zip(found, of_image, of_text, strict=True):
            if not (image or text) or (image and i < 0) or (text and t < 0):
                what = (
                    f"image {image!r}"
                    if image and i < 0
                    else f"text {text[:60]!r}"
                    if text
                    else "item, which is empty,"
                )
                raise InputError(
                    f"{folder / name}: {key} {item!r}: its {what} is not in split {split.name!r}",
                    "Prepare the same folder with a manifest of kind mixbench.",
                )
        rows[name] = of_image.astype(np.int64), of_text
    return MixedCorpus([*ids[QUERIES]], rows[QUERIES], rows[CORPUS], _answers(folder / JUDGEMENTS, ids))


def _answers(path: Path, ids: dict[str, pd.Index[str]]) -> tuple[Ints, Ints]:
    frame = read_frame(path, ("query_id", "corpus_id", "score"))
    places = []
    for name, key in _FILES.items():
        given = text_column(frame, key, path, required=True)
        place = ids[name].get_indexer(pd.Index(given))
        if (place < 0).any():
            row = int((place < 0).argmax())
            raise InputError(
                f"{path}: row {row}: no {key} {given[row]!r} in {name}{did_you_mean(given[row], [*ids[name][:5000]])}"
            )
        places.append(place.astype(np.int64))
    relevant = scores_of(frame, path) > 0
    if not relevant.any():
        raise InputError(f"{path}: no row has a score above 0, so no query has an answer")
    return places[0][relevant], places[1][relevant]


def _items(path: Path, key: str) -> Iterator[tuple[str, str, str, str]]:
    """(place, id, image or "", text or "") of every line."""
    try:
        for number, value in json_lines(path):
            at = Place(path, f"line {number}", value)
            image, text = at.text("image", ""), at.text("text", "")
            yield at.place, str(at.key(key)), image, text
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file", f"A folder in MixBench's layout holds {', '.join(_FILES)} and {JUDGEMENTS}."
        ) from None
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: cannot be read as JSON lines: {error}") from None
