"""Writing a prepared data set as WebDataset shards, which our own reader and the webdataset library take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.file_names import IMAGE_SUFFIXES
from cs_aligner_cli.data.images import BadImageError, read_bytes
from cs_aligner_cli.data.prepared import PreparedData, Split


def write_shards(data: PreparedData, split: Split, folder: Path, shard_mb: int, advance: Callable[[], None]) -> int:
    """Write SPLIT-00000.tar and so on into ``folder``; returns how many. Images go in as their files are, bit by bit.

    A sample is KEY.jpg (or the image's own suffix), KEY.txt (its first caption), KEY.json (image_id, captions, split,
    and its label where it has one);
    an unpaired caption is a sample without an image.
    """
    from webdataset import ShardWriter  # brings torch along

    owners = split.image_of_caption
    captions_of: dict[Any, list[str]] = split.captions["text"].groupby(owners).agg(list).to_dict()
    written: list[BinaryIO] = []

    def open_shard(number: str) -> BinaryIO:
        written.append((folder / f"{file_name(split.name)}-{int(number):05d}.tar").open("wb"))
        return written[-1]

    # Every member has the same time and owner, so that the same data give the same bytes.
    options = {"maxsize": shard_mb * 1e6, "maxcount": 10**9, "verbose": 0, "mtime": 0, "user": "", "group": ""}
    with ShardWriter("%d", opener=open_shard, post=lambda _: written[-1].close(), **options) as writer:
        rows = split.images[["image_id", "locator", "label"]].itertuples(index=False, name=None)
        for i, (image_id, locator, label) in enumerate(rows):
            captions = captions_of.get(i, [])
            about = {"image_id": image_id, "split": split.name, "captions": captions}
            about |= {"label": label} if label else {}
            writer.write(_sample(i, captions, about, {_suffix(locator): _content(data.root / locator)}))
            advance()
        for i, text in enumerate(captions_of.get(-1, []), start=len(split.images)):
            writer.write(_sample(i, [text], {"split": split.name, "captions": [text]}, {}))
    return len(written)


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except BadImageError as error:
        raise InputError(
            f"{path}: {error}; it was whole when the data were prepared", "Check it again: csalign prepare --force"
        ) from None


def file_name(split: str) -> str:
    """A split's name as part of a file's name."""
    return quote(split, safe=" ").replace(".", "%2E")


def _sample(number: int, captions: list[str], about: dict[str, Any], image: dict[str, bytes]) -> dict[str, Any]:
    text = {"txt": captions[0]} if captions else {}
    return {"__key__": f"{number:09d}", **image, **text, "json": about}


def _suffix(locator: str) -> str:
    """The image's suffix; that of a tar's member stands before the place of its bytes."""
    name = locator.rpartition("@")[0] if "::" in locator else locator
    suffix = Path(name).suffix.lower()
    return suffix.removeprefix(".") if suffix in IMAGE_SUFFIXES else "jpg"
