"""Manifests of the layouts in which data sets are published: Karpathy, COCO, folders, shards, stored embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from cs_aligner_cli.data.caption_text import CAPTIONS_IN_TEXT, CaptionsInText
from cs_aligner_cli.data.manifest_base import ABSENT_FILES, AbsentFiles, Encoding, OnDisk
from cs_aligner_cli.recipe.messages import Strict


class KarpathyManifest(OnDisk):
    """Karpathy's JSON of Flickr8k, Flickr30k or COCO: images with their sentences and split."""

    kind: Literal["karpathy"] = Field("karpathy", description="Karpathy's JSON.")
    annotations: Path = Field(strict=False, description="The JSON file, relative to root (dataset_coco.json).")
    image_dir: Path = Field(
        Path(), strict=False, description="Folder of the images, relative to root; under it filepath/filename."
    )
    restval: Literal["train", "restval", "drop"] = Field(
        "train",
        description="COCO's split restval: joined to train as in most papers, kept apart, or left out and counted.",
    )
    absent_files: AbsentFiles = Field("bad", description=ABSENT_FILES)


class MixbenchManifest(OnDisk):
    """MixBench's layout: queries.jsonl and mixed_corpus.jsonl, whose items have an image, a text or both."""

    kind: Literal["mixbench"] = Field("mixbench", description="MixBench's queries and mixed corpus.")
    split: str = Field("test", min_length=1, description="The split that queries and corpus become.")
    image_dir: Path = Field(Path(), strict=False, description="Folder of the images, relative to root.")
    absent_files: AbsentFiles = Field("bad", description=ABSENT_FILES)


class CocoSplit(Strict):
    """One split of a data set in COCO's own layout."""

    captions: Path = Field(strict=False, description="The captions JSON, relative to root (captions_val2017.json).")
    image_dir: Path = Field(strict=False, description="Folder of this split's images, relative to root.")


class CocoManifest(OnDisk):
    """COCO's captions JSON: images and annotations, one file per split."""

    kind: Literal["coco"] = Field("coco", description="COCO captions.")
    splits: dict[str, CocoSplit] = Field(min_length=1, description="Captions file and image folder by split.")
    absent_files: AbsentFiles = Field("bad", description=ABSENT_FILES)


class FolderManifest(OnDisk):
    """Images, each with a text file of the same name."""

    kind: Literal["folder"] = Field("folder", description="Images with .txt sidecars.")
    image_dir: Path = Field(Path(), strict=False, description="Folder of the images, relative to root.")
    caption_dir: Path | None = Field(
        None, strict=False, description="Folder of the text files, relative to root; null: beside the images."
    )
    split: str = Field("all", min_length=1, description="Name of the one split.")
    split_folders: bool = Field(
        False, description="Each sub-folder of image_dir is a split of that name, in place of the one split."
    )
    captions: CaptionsInText = Field("lines", description=CAPTIONS_IN_TEXT)
    encoding: Encoding = Field("utf-8", description="Encoding of the text files, as Python names it (cp1252, utf-16).")


class ConversationsManifest(OnDisk):
    """Conversations about images, a JSON list or JSON lines, as LLaVA and ShareGPT4V have them.

    The first answer is the caption.
    """

    kind: Literal["conversations"] = Field("conversations", description="Conversations about images.")
    annotations: Path = Field(strict=False, description="The file of JSON or JSON lines, relative to root.")
    image_dir: Path = Field(Path(), strict=False, description="Folder of the images, relative to root.")
    split: str = Field("train", min_length=1, description="Name of the one split.")
    absent_files: AbsentFiles = Field("bad", description=ABSENT_FILES)


class WebDatasetManifest(OnDisk):
    """Tar shards of samples KEY.jpg, KEY.txt, KEY.json, as img2dataset and webdataset write them."""

    kind: Literal["webdataset"] = Field("webdataset", description="WebDataset shards, read where they lie.")
    shards: dict[str, str] = Field(
        {"all": "*.tar"}, min_length=1, description="Pattern of the tar files, relative to root, by split."
    )
    image_suffix: str | None = Field(
        None, description="What the names of the images end in (input.jpg); null: any suffix of an image."
    )
    caption_suffix: str | None = Field(
        None, description="What the names of the captions' texts end in (outputs.txt); null: .txt and the like."
    )
    caption_key: str | None = Field(
        None, description="Key of the JSON that holds the caption or a list of them; null: captions, caption, text, ..."
    )
    captions: CaptionsInText = Field("lines", description=CAPTIONS_IN_TEXT)
    classes: Path | None = Field(
        None,
        strict=False,
        description="Text file of class names, one a line, relative to root: a sample's .cls is its class's number,"
        " from 0. Such an image's caption is its class name in the first template; null: there are no classes.",
    )
    templates: Path | None = Field(
        None,
        strict=False,
        description="Text file of prompts, one a line, {c} being the class name; null: a photo of a {c}.",
    )

    @model_validator(mode="after")
    def _templates_of_classes(self) -> WebDatasetManifest:
        if self.templates is not None and self.classes is None:
            raise ValueError("templates: these are prompts of classes, and classes is not set")
        return self


class ClipRetrievalManifest(OnDisk):
    """The folder that clip-retrieval's inference writes: embeddings in parts, with metadata."""

    kind: Literal["clip_retrieval"] = Field("clip_retrieval", description="clip-retrieval's embeddings.")
    image_features: str = Field("img_emb/*.npy", description="Pattern of the image parts, relative to root.")
    text_features: str = Field("text_emb/*.npy", description="Pattern of the text parts, relative to root.")
    metadata: str = Field("metadata/*.parquet", description="Pattern of the tables of the same parts.")
    id_column: str = Field("image_path", description="Column that names the image.")
    caption_column: str = Field("caption", description="Column with the caption.")
    split_column: str | None = Field(None, description="Column with the split's name; null: all rows are one split.")
    split: str = Field("all", min_length=1, description="Name of the one split.")
