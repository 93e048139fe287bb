"""Readers of the JSON in which captioned images are published: Karpathy's, COCO's, conversations."""

from __future__ import annotations

from pathlib import Path

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.collector import Entries, Source
from cs_aligner_cli.data.json_items import Place, json_items, listed_items
from cs_aligner_cli.data.manifest_layouts import CocoManifest, ConversationsManifest, KarpathyManifest


def read_karpathy(manifest: KarpathyManifest, folder: Path, console: Console) -> Source:
    """Images with their sentences and split, as in dataset_coco.json."""
    assert manifest.root is not None
    entries, path = Entries(), manifest.root / manifest.annotations
    for i, image in enumerate(json_items(path, "images", console)):
        at = Place(path, f"images[{i}]", image)
        split = at.name("split")
        if split == "restval" and manifest.restval == "drop":
            entries.skip("images of the split restval")
            continue
        name = at.text("filename")
        locator = manifest.image_dir / at.text("filepath", "") / name
        raw = [Place(path, f"{at.place}.sentences", s).caption("raw") for s in at.items("sentences")]
        texts = [text for text in raw if text is not None]
        for _ in range(len(raw) - len(texts) or not raw):
            entries.drop("caption", f"{path}: {at.place}.sentences", "a caption is null" if raw else "no caption")
        entries.add(name, manifest.restval if split == "restval" else split, str(locator), texts)
    return entries.source("karpathy", manifest.root)


def read_coco(manifest: CocoManifest, folder: Path, console: Console) -> Source:
    """Images and annotations of COCO's captions JSON; an image's id is that of its file name."""
    assert manifest.root is not None
    entries = Entries()
    for split, files in manifest.splits.items():
        _read_coco_split(manifest.root / files.captions, files.image_dir, split, entries, console)
    return entries.source("coco", manifest.root)


def _read_coco_split(path: Path, image_dir: Path, split: str, entries: Entries, console: Console) -> None:
    entry_of: dict[int | str, int] = {}
    place_of: dict[int | str, tuple[str, str]] = {}
    for i, image in enumerate(json_items(path, "images", console)):
        at = Place(path, f"images[{i}]", image)
        key, name = at.key("id"), at.text("file_name")
        there, file_name = place_of.setdefault(key, (at.place, name))
        if file_name != name:
            raise InputError(
                f"{path}: {at.place}: id {key} was already used by {file_name} ({there}), so that nobody knows"
                f" whose captions those of image {key} are",
                "Two files that each count from the start were joined: give every image an id of its own.",
            )
        entry_of.setdefault(key, -1)
        if there == at.place:
            entry_of[key] = entries.add(name, split, str(image_dir / name), [])
    captioned: set[int] = set()
    for i, annotation in enumerate(json_items(path, "annotations", console)):
        at = Place(path, f"annotations[{i}]", annotation)
        key = at.key("image_id")
        owner, text = entry_of.get(key), at.caption("caption")
        if owner is None:
            entries.drop("caption", f"{path}: {at.place}", f"names the image {_spelt(key, entry_of)}")
        elif text is None:
            entries.drop("caption", f"{path}: {at.place}", "a caption is null")
        else:
            entries.add_captions(owner, split, [text])
        captioned.add(-1 if owner is None else owner)
    for key, entry in entry_of.items():
        if entry not in captioned:
            entries.drop("caption", f"{path}: {place_of[key][0]}", "no annotation names this image")


def read_conversations(manifest: ConversationsManifest, folder: Path, console: Console) -> Source:
    """The first answer of every conversation about an image; conversations without one are left out and counted."""
    assert manifest.root is not None
    entries, path = Entries(), manifest.root / manifest.annotations
    named: dict[str, int] = {}
    for place, conversation in listed_items(path, console):
        at = Place(path, place, conversation)
        turns = [Place(path, f"{place}.conversations", turn) for turn in at.items("conversations")]
        answers = [turn.text("value") for turn in turns if turn.text("from") == "gpt"]
        image = at.text("image", "")
        if not image:
            entries.skip("conversations about no image")
        elif not answers:
            entries.drop("caption", f"{path}: {place}", "a conversation without an answer (from: gpt)")
        elif image in named:
            entries.add_captions(named[image], manifest.split, answers[:1])
        else:
            named[image] = entries.add(image, manifest.split, str(manifest.image_dir / image), answers[:1])
    return entries.source("conversations", manifest.root)


def _spelt(key: int | str, listed: dict[int | str, int]) -> str:
    """An image that is not listed, and whether it would be if its id were a number in place of text, or the reverse."""
    other: int | str = str(key) if isinstance(key, int) else int(key) if key.isdecimal() else key
    if other != key and other in listed:
        kinds = ("a number", "text") if isinstance(key, int) else ("text", "a number")
        return f"{key!r} ({kinds[0]}), which is not listed, but {other!r} ({kinds[1]}) is: write both in the same way"
    return f"{key}, which is not listed"
