"""Bad inputs and what csalign says to them: the cases of test_bad_inputs.py, and the page docs/bad-inputs.md.

python tests/bad_inputs.py     # writes the page (make docs does, too)
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import lzma
import pickle
import re
import shutil
import struct
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from field_faults import table
from PIL import Image
from typer.testing import CliRunner

PAGE = Path(__file__).resolve().parents[1] / "docs" / "bad-inputs.md"
INTRODUCTION = """# Bad inputs

What csalign says to {count} bad inputs. Each was made and run through the command line by tests/cli/test_bad_inputs.py,
which fails when a message is not the one below; `make docs` writes this page. `DIR` stands for the folder of the trial,
`CSALIGN` for that of csalign. Exit code 2: the input is wrong, nothing was done and nothing that was there is damaged.
Exit code 3: the work is done, but more items were bad than `data.max_bad_fraction` allows; all of them are listed in
`data/report.json`.
"""


class Bench:
    """The folder of one trial, with the small things that cases are made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, name: str, content: bytes | str) -> Path:
        """A file in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def recipe(self, text: str) -> list[str]:
        """``recipe validate`` of a recipe of this text."""
        self.file("recipe.yaml", text)
        return ["recipe", "validate"]

    def manifest(self, manifest: dict[str, Any] | str, image: Any = None, **sections: Any) -> list[str]:
        """``prepare`` of a recipe over this manifest."""
        text = manifest if isinstance(manifest, str) else yaml.safe_dump({"name": "mine", "root": "data", **manifest})
        self.file("mine.yaml", text)
        (self.folder / "data").mkdir(exist_ok=True)
        encoders = {"encoders": {"image": image}} if image else {}
        content = {"name": "trial", "run_dir": "run", "data": {"manifest": "mine.yaml"}, **encoders, **sections}
        self.file("recipe.yaml", yaml.safe_dump(content))
        return ["prepare", "-q"]

    def table(self, content: bytes | str, name: str = "t.csv", **keys: Any) -> list[str]:
        """``prepare`` of a table of this content, and one image a.png."""
        self.file("data/a.png", picture())
        self.file(f"data/{name}", content)
        return self.manifest({"kind": "table", "table": name, **keys})

    def image(self, content: bytes | None, **sections: Any) -> list[str]:
        """``prepare`` of a table of two images, of which bad.png is this one."""
        if content is not None:
            self.file("data/bad.png", content)
        self.table("image,caption,split\na.png,fine,train\nbad.png,of a bad one,train\n")
        return self.manifest({"kind": "table", "table": "t.csv"}, **sections)

    def model(self, files: dict[str, bytes | str], kind: str = "transformers", **sections: Any) -> list[str]:
        """``prepare`` of one image and caption, whose text tower is a folder of these files."""
        for name, content in files.items():
            self.file(f"model/{name}", content)
        self.table("image,caption,split\na.png,fine,train\n")
        text = {"kind": kind, "model": "local-dir:model"}
        image = {"kind": "open_clip", "random_init": True, "config": {}}
        encoders = {"image": image, "text": text}
        return self.manifest({"kind": "table", "table": "t.csv"}, encoders=encoders, **sections)

    def features(self, content: bytes, name: str = "image.npy", **sections: Any) -> list[str]:
        """``prepare`` of stored features of three images, of which the image file is this one."""
        self.file("data/images.csv", "image,split\na,train\nb,train\nc,train\n")
        self.file("data/captions.csv", "image,caption,split\na,x,train\nb,y,train\nc,z,train\n")
        self.file("data/text.npy", npy(np.ones((3, 4), np.float32)))
        self.file(f"data/{name}", content)
        images, captions = {"table": "images.csv", "features": name}, {"table": "captions.csv", "features": "text.npy"}
        manifest = {"kind": "embeddings", "images": images, "captions": captions}
        return self.manifest(manifest, {"kind": "features"}, **sections)

    def shard(self, content: bytes, name: str = "0.tar") -> list[str]:
        """``prepare`` of two shards, of which this is one and the other is fine."""
        self.file("data/1.tar", tar(("fine.png", picture(1)), ("fine.txt", b"a fine one")))
        self.file(f"data/{name}", content)
        return self.manifest({"kind": "webdataset"})

    def classes(self, names: str | None = "fox\nowl\n", templates: str = "a {c}\n", number: str = "0") -> list[str]:
        """``prepare`` of a shard of one image whose class has this number, of these class names and templates."""
        if names is not None:
            self.file("data/classnames.txt", names)
        self.file("data/templates.txt", templates)
        self.file("data/0.tar", tar(("0.png", picture(1)), ("0.cls", number.encode())))
        return self.manifest({"kind": "webdataset", "classes": "classnames.txt", "templates": "templates.txt"})

    def karpathy(self, text: str) -> list[str]:
        """``prepare`` of a Karpathy JSON of this text."""
        self.file("data/dataset.json", text)
        return self.manifest({"kind": "karpathy", "annotations": "dataset.json"})


def picture(seed: int = 0, side: int = 16) -> bytes:
    """A small PNG."""
    with io.BytesIO() as file:
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
        return file.getvalue()


def huge() -> bytes:
    """A PNG of 50,000 x 50,000 pixels in a few kilobytes."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def strip() -> bytes:
    """A PNG of 60,000 x 1 pixels."""
    with io.BytesIO() as file:
        Image.new("L", (60_000, 1)).save(file, "PNG")
        return file.getvalue()


def floats() -> bytes:
    """A TIFF of floats from -3 to 4."""
    with io.BytesIO() as file:
        Image.fromarray(np.linspace(-3, 4, 64, dtype=np.float32).reshape(8, 8)).save(file, "TIFF")
        return file.getvalue()


def npy(array: Any) -> bytes:
    """An array as the bytes of an npy file."""
    with io.BytesIO() as file:
        np.save(file, array, allow_pickle=True)
        return file.getvalue()


def unequal_vectors() -> bytes:
    """A Parquet table of three vectors, which together hold as many values as three equal ones."""
    file = io.BytesIO()
    pq.write_table(pa.table({"id": ["0", "1", "2"], "v": [[0.5, 1.0], [0.5], [0.5, 1.0, 2.0]]}), file)
    return file.getvalue()


def damaged(compress: Callable[[bytes], bytes]) -> bytes:
    """A compressed table of which a few bytes are others."""
    found = bytearray(compress("".join(f"{n}.png,{n * n}\n" for n in range(300)).encode()))
    found[100:104] = b"\xff" * 4
    return bytes(found)


def tar(*members: tuple[str, bytes], **changes: Any) -> bytes:
    """A tar; ``changes`` are made to the header of its last member."""
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for i, (name, content) in enumerate(members):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                if i == len(members) - 1:
                    for key, value in changes.items():
                        setattr(info, key, value)
                archive.addfile(info, io.BytesIO(content))
        return file.getvalue()


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 600000000\n"
BERT: dict[str, bytes | str] = {
    "config.json": '{"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, '
    '"intermediate_size": 8, "vocab_size": 5}',
    "vocab.txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n",
}
FINE = (("a.png", picture()), ("a.txt", b"told"))
ROWS = np.ones((3, 4), np.float32)
LAUGHS = "name: x\na: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
HEAD = "image,caption,split\n"
NAMED = '{"images": [{"filename": "a.png", %s}]}'


def with_row(row: int, value: float) -> bytes:
    """Three feature rows, one of which holds this value."""
    array = ROWS.copy()
    array[row, 1] = value
    return npy(array)


def copied(at: Bench) -> list[str]:
    """``recipe copy`` onto a file that is there."""
    at.file("mine.yaml", "name: mine\n")
    return ["recipe", "copy", "scenes", "mine.yaml"]


def prepared(at: Bench, *command: str) -> list[str]:
    """A later command, on data that are prepared and no further."""
    run([*at.features(npy(ROWS))], at.folder)
    return [*command]


def trained(at: Bench, *settings: str) -> list[str]:
    """``train`` with other settings over a finished training."""
    recipe = ["--set", "train.val_split=train", "--set", "train.epochs=1"]
    prepared(at, "train")
    run(["embed", "-q", *recipe, "--set", "eval_retrieval.split=train"], at.folder)  # the only split that is there
    run(["train", "-q", *recipe], at.folder)
    return ["train", *recipe, *(part for setting in settings for part in ("--set", setting))]


def other_root(at: Bench) -> list[str]:
    """``embed`` with a root that holds other files of the same names."""
    prepared(at, "embed")
    shutil.copytree(at.folder / "data", at.folder / "other")
    at.file("other/images.csv", "image,split\na,train\nb,train\nd,train\n")
    return ["embed", "--set", "data.root=other"]


def other_seed(at: Bench, *changes: str) -> list[str]:
    """A gap report that takes a run in other/ for this one with another seed; ``changes`` are what differs there."""
    theirs = [word for change in ("run_dir=other", *changes) for word in ("--set", change)]
    at.features(npy(ROWS))
    common = ["--set", "encoders.text.kind=features", "--set", "eval_retrieval.split=train"]
    for command in ("prepare", "embed"):
        run([command, *common, "--set", "train=null", *theirs], at.folder)
    return ["gap-report", *common, "--set", "train=null", "--set", "gap_report.seeds=[other]"]


def embedded(at: Bench, command: str, *settings: str) -> list[str]:
    """A later command, with these settings, on stored features that are embedded and not trained on."""
    at.features(npy(ROWS))
    chosen = ("encoders.text.kind=features", "eval_retrieval.split=train", "train=null")
    common = [word for setting in chosen for word in ("--set", setting)]
    for stage in ("prepare", "embed"):
        run([stage, "-q", *common], at.folder)
    return [command, *common, *(word for setting in settings for word in ("--set", setting))]


def one_image(at: Bench) -> list[str]:
    """Pictures of the two captions of the only image, with the bound of another image."""
    vision = {"image_size": 16, "patch_size": 16, "width": 16, "layers": 1, "head_width": 16}
    text = {"context_length": 8, "width": 16, "heads": 1, "layers": 1}
    clip = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    at.table(HEAD + "a.png,one,train\na.png,two,train\n")
    command = at.manifest(
        {"kind": "table", "table": "t.csv"},
        {"kind": "open_clip", "random_init": True, "config": clip},
        train=None,
        eval_retrieval={"split": "train"},
        generate={"decoder": {"kind": "closed_form"}, "captions": "all", "bounds": ["other_image"]},
    )
    for stage in ("prepare", "embed"):
        run([stage, *command[1:]], at.folder)
    return ["generate"]


def split_folders(at: Bench) -> list[str]:
    at.file("data/loose.png", picture())
    return at.manifest({"kind": "folder", "split_folders": True})


def sidecar(at: Bench, content: bytes | None) -> list[str]:
    for i, text in enumerate((b"fine", content)):
        at.file(f"data/{i}.png", picture(i))
        if text is not None:
            at.file(f"data/{i}.txt", text)
    return at.manifest({"kind": "folder"})


def zeros_in_front(at: Bench) -> list[str]:
    at.file("data/i.csv", "image\n" + "".join(f"{i}\n" for i in range(8, 12)))
    at.file("data/c.csv", "image,caption\n" + "".join(f"{i:02d},caption {i}\n" for i in range(8, 12)))
    for name in ("i.npy", "c.npy"):
        at.file(f"data/{name}", npy(np.eye(4, dtype=np.float32)))
    images = {"table": "i.csv", "id_column": "image", "split_column": None, "features": "i.npy"}
    captions = {"table": "c.csv", "image_column": "image", "caption_column": "caption", "split_column": None}
    command = at.manifest({"kind": "embeddings", "images": images, "captions": {**captions, "features": "c.npy"}})
    return [*command, *(word for m in ("image", "text") for word in ("--set", f"encoders.{m}.kind=features"))]


def coco(at: Bench) -> list[str]:
    annotations = [{"image_id": 1, "caption": "x"}, {"image_id": 2, "caption": "y"}]
    at.file("data/c.json", json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": annotations}))
    at.file("data/a.png", picture())
    return at.manifest({"kind": "coco", "splits": {"train": {"captions": "c.json", "image_dir": "."}}})


def parts(at: Bench) -> list[str]:
    for name in ("img_emb/img_emb_0.npy", "img_emb/img_emb_1.npy", "text_emb/text_emb_0.npy", "metadata/m_0.parquet"):
        at.file(f"data/{name}", npy(ROWS))
    return at.manifest({"kind": "clip_retrieval"}, {"kind": "features"})


def below_a_file(at: Bench) -> list[str]:
    at.file("file", "")
    return [*at.table(HEAD + "a.png,x,train\n"), "--set", "run_dir=file/run"]


def stale_checksum(at: Bench) -> list[str]:
    return at.table(HEAD + "a.png,x,train\n", checksums={"t.csv": "0" * 32})


def sweep(key: str, value: str) -> Callable[[Bench], list[str]]:
    """The shipped sweep of Flickr8k with a key of its section set."""
    return lambda at: ["sweep", "flickr8k_sweep", "--set", f"sweep.{key}={value}"]


def journal(at: Bench) -> list[str]:
    """A search whose journal is no JSON."""
    at.file("runs/flickr8k_sweep/search.journal", "no json\n")
    return sweep("search", "{keys: {train.lr: {choices: [0.1]}}}")(at)


def state(at: Bench) -> list[str]:
    """A sweep of whose runs one is said to have ended in a file that is cut short."""
    at.file("runs/flickr8k_sweep/states/0.json", "{")
    return ["sweep", "flickr8k_sweep"]


def other_files(at: Bench) -> list[str]:
    """A search whose trials so far were made from other data."""
    from cs_aligner_cli.experiments.ledger import RunState
    from cs_aligner_cli.files.checksums import sealed

    old, _ = (at.file(f"{name}/images.csv", name).parent for name in ("old", "new"))
    trial = RunState(
        id="0", configuration_id="0", configuration="lr=0.1", settings={}, seed=0, status="done", seconds=1.0,
        finished="", trial=0, places={"data.root": str(old)},
    )  # fmt: skip
    at.file("runs/flickr8k_sweep/states/0.json", json.dumps(sealed(trial.model_dump(mode="json"))))
    return [*sweep("search", "{keys: {train.lr: {choices: [0.1]}}}")(at), "--set", "data.root=new"]


def measured(at: Bench, name: str, split: str = "dev", of_its_recipe: bool = True, **protocol: str) -> str:
    """The records of a run that was measured on a split by a protocol; the run's folder.

    Not ``of_its_recipe``: with another recipe, which a later stage has noted.
    """
    from cs_aligner_cli.files.checksums import sealed
    from cs_aligner_cli.recipe.recipe import load_recipe

    recipe = load_recipe("flickr8k", [f"eval_retrieval.split={split}"]).model_dump(mode="json")
    stages = {"eval_retrieval": {}} if of_its_recipe else {}
    run = {"name": name, "seed": 0, "recipe": recipe, "stages": stages, "costs": {}, "git": "", "versions": {}}
    at.file(f"runs/{name}/run.json", json.dumps(sealed(run)))
    summary = {"protocol": {"ties": "count as misses", **protocol}, "eval_retrieval": {"aligned": {}}}
    record = {"inputs": "", "files": {}, "finished": "2026-01-01", "summary": summary}
    at.file(f"runs/{name}/eval_retrieval/stage.json", json.dumps(record))
    return f"runs/{name}"


@dataclass(frozen=True)
class Case:
    """One bad input: ``make`` makes it and returns the command."""

    name: str
    make: Callable[[Bench], list[str]]


CASES: dict[str, list[Case]] = {
    "Recipes": [
        Case("no recipe is named, and none is here", lambda at: ["prepare"]),
        Case("a name that is nearly a shipped one", lambda at: ["prepare", "sceness"]),
        Case("a file that is not there", lambda at: ["prepare", "recipes/gone.yaml"]),
        Case("a folder", lambda at: ["prepare", "."]),
        Case("a tab in place of spaces", lambda at: at.recipe("name: x\ntrain:\n\tepochs: 3\n")),
        Case("a quote that does not end", lambda at: at.recipe('name: "x\n')),
        Case("bytes that are no UTF-8", lambda at: (at.file("r.yaml", b"name: caf\xe9\n"), ["prepare", "r.yaml"])[1]),
        Case("a list at the top", lambda at: at.recipe("- name: x\n")),
        Case("a key given twice", lambda at: at.recipe("name: x\nseed: 1\nseed: 2\n")),
        Case("no name", lambda at: at.recipe("seed: 1\n")),
        Case("a name that is no file name", lambda at: at.recipe("name: my/run\n")),
        Case("a misspelt key", lambda at: at.recipe("name: x\ntrain: {epoch: 3}\n")),
        Case("a key by its name in papers", lambda at: at.recipe("name: x\ntrain: {temperature: 0.07}\n")),
        Case("a recipe of a later version", lambda at: at.recipe("version: 2\nname: x\n")),
        Case("a key in the wrong section", lambda at: at.recipe("name: x\nlr: 0.1\n")),
        Case("text where a number belongs", lambda at: at.recipe("name: x\ntrain: {epochs: many}\n")),
        Case("a number in quotes", lambda at: at.recipe("name: x\ntrain: {lr: '1e-3'}\n")),
        Case("a number out of bounds", lambda at: at.recipe("name: x\ntrain: {batch_size: -1}\n")),
        Case("a number that is not finite", lambda at: at.recipe("name: x\ntrain: {lr: .nan}\n")),
        Case("YAML 1.1's yes", lambda at: at.recipe("name: x\ntrain: {pairwise_only: yes}\n")),
        Case("a number where a section belongs", lambda at: at.recipe("name: x\ntrain: 3\n")),
        Case("an unknown kind", lambda at: at.recipe("name: x\ntrain: {objective: {divergence: {kind: mmdd}}}\n")),
        Case(
            "a key of another kind",
            lambda at: at.recipe("name: x\ntrain: {image: {adapter: {kind: linear, hidden_dim: 8}}}\n"),
        ),
        Case(
            "an edge with a modality that is not there",
            lambda at: at.recipe(
                "name: x\nencoders: {further: {audio: {}}}\ntrain: {edges: [[image, text], [audoi, text]]}\n"
            ),
        ),
        Case(
            "two levels of one size",
            lambda at: at.recipe("name: x\ntrain: {objective: {levels: [{group: 2}, {group: 2}]}}\n"),
        ),
        Case(
            "levels of a loss without a logit scale",
            lambda at: at.recipe("name: x\ntrain: {objective: {levels: [{}], pairwise: {kind: align_uniform}}}\n"),
        ),
        Case(
            "an average of the towers, but no memory",
            lambda at: at.recipe("name: x\ntrain: {objective: {memory_momentum: 0.9}}\n"),
        ),
        Case(
            "a matching head, but towers that read no tokens",
            lambda at: at.recipe("name: x\ntrain: {matching: {}}\n"),
        ),
        Case(
            "a matching head over a live tower",
            lambda at: at.recipe(
                "name: x\ntrain: {matching: {}, image: {reads: tokens, tune: full, adapter_on_top: true}, text: {reads:"
                " tokens}}\n"
            ),
        ),
        Case("reranking without a head", lambda at: at.recipe("name: x\neval_retrieval: {rerank: {}}\n")),
        Case(
            "fewer reranked hits than R@K counts",
            lambda at: at.recipe("name: x\neval_retrieval: {rerank: {top_k: 5}}\n"),
        ),
        Case(
            "exchanged tokens, but towers that read none",
            lambda at: at.recipe("name: x\ntrain: {objective: {token_exchange: {}}}\n"),
        ),
        Case(
            "a token term, but towers that read no tokens",
            lambda at: at.recipe("name: x\ntrain: {objective: {tokens: {}}}\n"),
        ),
        Case(
            "unpaired items per pair, but no unpaired items",
            lambda at: at.recipe("name: x\ntrain: {unpaired_per_pair: {image: 2}}\n"),
        ),
        Case(
            "unpaired negatives, but no unpaired items",
            lambda at: at.recipe("name: x\ntrain: {objective: {pairwise: {unpaired_negatives: true}}}\n"),
        ),
        Case(
            "pseudo pairs, but no unpaired items",
            lambda at: at.recipe("name: x\ntrain: {objective: {pseudo_pairs: {}}}\n"),
        ),
        Case(
            "pseudo pairs of images and texts, which are no edge",
            lambda at: at.recipe(
                "name: x\nencoders: {further: {audio: {kind: features}}}\ndata: {unpaired: {}}\n"
                "train: {edges: [[image, audio], [audio, text]], objective: {pseudo_pairs: {}}}\n"
            ),
        ),
        Case(
            "a start that should know unpaired items, but no unpaired items",
            lambda at: at.recipe("name: x\ntrain: {start: cca, start_moments: {unpaired: true}}\n"),
        ),
        Case(
            "moments of a start without a closed form",
            lambda at: at.recipe("name: x\ntrain: {start_moments: {shrinkage: 2}}\n"),
        ),
        Case("mixup of tokens", lambda at: at.recipe("name: x\ntrain: {mixup: {}, image: {reads: tokens}}\n")),
        Case(
            "mixup with a further modality",
            lambda at: at.recipe("name: x\nencoders: {further: {audio: {kind: features}}}\ntrain: {mixup: {}}\n"),
        ),
        Case(
            "a teacher of kind runs without runs",
            lambda at: at.recipe("name: x\ntrain: {objective: {teacher: {kind: runs}}}\n"),
        ),
        Case(
            "a structure term with a weight by ratio",
            lambda at: at.recipe("name: x\ntrain: {objective: {structure: {weight: {kind: relative}}}}\n"),
        ),
        Case("a share of pairs above 1", lambda at: at.recipe("name: x\ndata: {unpaired: {paired_fraction: 10}}\n")),
        Case(
            "two sources of one model",
            lambda at: at.recipe("name: x\nencoders: {image: {kind: open_clip, model: ViT-B-32, config: {}}}\n"),
        ),
        Case(
            "a layer of an encoder that is none",
            lambda at: at.recipe("name: x\nencoders: {image: {kind: timm, model: test_vit, layers: [0, -1]}}\n"),
        ),
        Case(
            "layers of a tower that is trained",
            lambda at: at.recipe(
                "name: x\nencoders: {image: {kind: timm, model: test_vit, layers: [-1, -2]}, "
                "text: {kind: features}}\ntrain: {image: {tune: full}}\n"
            ),
        ),
        Case(
            "layers that a model lacks",
            lambda at: prepared(
                at,
                "embed",
                "--set",
                "eval_retrieval.split=train",
                "--set",
                "train=null",
                "--set",
                "encoders.text={kind: open_clip, random_init: true, config: {}, layers: [-4]}",
            ),
        ),
        Case("several problems at once", lambda at: at.recipe("name: x\nsed: 1\ntrain: {lr: -1, epochs: 0}\n")),
        Case("a billion laughs", lambda at: at.recipe(LAUGHS)),
        Case("an alias that holds itself", lambda at: at.recipe("name: &x [*x]\n")),
        Case("a tag that would run code", lambda at: at.recipe("name: !!python/object/apply:os.system [ls]\n")),
        Case("nesting without end", lambda at: at.recipe("name: " + "[" * 50_000)),
        Case("--set without a value", lambda at: ["prepare", "scenes", "--set", "seed"]),
        Case("--set of a misspelt key", lambda at: ["prepare", "scenes", "--set", "train.epoch=3"]),
        Case("--set below a value", lambda at: ["prepare", "scenes", "--set", "seed.x=3"]),
        Case("recipe copy onto a file that is there", copied),
    ],
    "Manifests": [
        Case("a name that is nearly a shipped one", lambda at: ["prepare", "scenes", "--set", "data.manifest=flikr8k"]),
        Case("a file that is not there", lambda at: ["prepare", "scenes", "--set", "data.manifest=gone.yaml"]),
        Case("no kind", lambda at: at.manifest("name: x\n")),
        Case("a misspelt kind", lambda at: at.manifest({"kind": "web_dataset"})),
        Case("a misspelt key", lambda at: at.manifest({"kind": "table", "tabel": "t.csv"})),
        Case("a key that is missing", lambda at: at.manifest({"kind": "karpathy"})),
        Case("nobody names the folder", lambda at: ["prepare", "flickr8k"]),
        Case("a folder that is not there", lambda at: ["prepare", "flickr8k", "--set", "data.root=gone"]),
        Case("a checksum that is none", lambda at: at.table(HEAD, checksums={"t.csv": "md5"})),
        Case("a file that is not the one of the checksum", stale_checksum),
        Case(
            "features asked of pictures",
            lambda at: ["prepare", "scenes", "--set", "encoders={image: {kind: features}}"],
        ),
        Case("pictures asked of features", lambda at: ["prepare", "scenes", "--set", "data.manifest=flickr8k"]),
    ],
    "Tables": [
        Case("a file that is not there", lambda at: at.manifest({"kind": "table", "table": "gone.csv"})),
        Case("a format of its own", lambda at: at.table("PK", "t.xlsx")),
        Case("no rows", lambda at: at.table(HEAD)),
        Case("a column of nearly that name", lambda at: at.table("image,captoin,split\na.png,x,train\n")),
        Case("another separator", lambda at: at.table("image~caption~split\na.png~x~train\n")),
        Case("a comma outside quotes", lambda at: at.table(HEAD + "a.png,one, two,train\n")),
        Case("a quote that does not end", lambda at: at.table(HEAD + 'a.png,"one,train\n')),
        Case("a cell that is a book", lambda at: at.table(f"{HEAD}a.png,{'word ' * 2**20},train\n")),
        Case("bytes that are no UTF-8", lambda at: at.table(HEAD.encode() + b"a.png,caf\xe9,train\n")),
        Case("an empty split", lambda at: at.table(HEAD + "a.png,x,\n")),
        Case("a line that is no JSON", lambda at: at.table('{"image": "a.png"\n', "t.jsonl")),
        Case("a line that is no object", lambda at: at.table("[1, 2]\n", "t.jsonl")),
        Case("half a character", lambda at: at.table('{"image": "\\ud800"}\n', "t.jsonl")),
        Case(
            "a list in place of a name",
            lambda at: at.table('{"image": ["a.png"], "caption": "x", "split": "s"}\n', "t.jsonl"),
        ),
        Case("a compressed table that is damaged", lambda at: at.table(damaged(gzip.compress), "t.csv.gz")),
        Case("the same, by xz", lambda at: at.table(damaged(lzma.compress), "t.csv.xz")),
        Case(
            "columns in JSON of unlike rows",
            lambda at: at.table('{"image": {"0": "a.png"}, "caption": {"1": "x"}, "split": {"0": "s"}}', "t.json"),
        ),
        Case("a path that no column makes", lambda at: at.table("id,caption\n0,x\n", image_path="{}.jpg")),
        Case("captions without text", lambda at: at.table(HEAD + "a.png,x,train\na.png,,train\n")),
        Case("an image and its caption in two splits", lambda at: at.table(HEAD + "a.png,x,train\na.png,y,test\n")),
    ],
    "Images": [
        Case("a file that is not there", lambda at: at.image(None)),
        Case("a file that is cut short", lambda at: at.image(picture(1)[:-300])),
        Case("a web page in place of an image", lambda at: at.image(b"<html>404</html>")),
        Case("an empty file", lambda at: at.image(b"")),
        Case("more pixels than any photo", lambda at: at.image(huge())),
        Case("a line of one pixel", lambda at: at.image(strip())),
        Case("floats that are no brightness", lambda at: at.image(floats())),
        Case(
            "a background that is no colour",
            lambda at: at.recipe("name: x\nencoders: {image: {kind: timm, model: test_vit, background: whit}}\n"),
        ),
        Case("fewer pixels than asked for", lambda at: at.image(picture(1, 4), prepare={"min_side": 8})),
        Case(
            "PostScript, which would be run", lambda at: at.image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
        ),
        Case("no image that is any use", lambda at: at.table(HEAD + "gone.png,x,train\n")),
    ],
    "Annotation files and folders": [
        Case("JSON without the list of images", lambda at: at.karpathy('{"imges": []}')),
        Case("JSON that is cut short", lambda at: at.karpathy('{"images": [{"filename": "a.png",')),
        Case("an image without a split", lambda at: at.karpathy(NAMED % '"sentences": []')),
        Case("a sentence that is no object", lambda at: at.karpathy(NAMED % '"split": "test", "sentences": ["x"]')),
        Case("COCO: a caption of an image that is not listed", coco),
        Case("embeddings: captions name images with zeros in front, the images' table without", zeros_in_front),
        Case("a sidecar that is missing", lambda at: sidecar(at, None)),
        Case("a sidecar that is no UTF-8", lambda at: sidecar(at, b"caf\xe9")),
        Case("an image in no split's folder", split_folders),
    ],
    "Shards": [
        Case(
            "a pattern that finds nothing",
            lambda at: at.manifest({"kind": "webdataset", "shards": {"train": "x/*.tar"}}),
        ),
        Case(
            "a pattern that leaves the folder",
            lambda at: at.manifest({"kind": "webdataset", "shards": {"a": "/etc/*"}}),
        ),
        Case("a class that the class names do not have", lambda at: at.classes(number="2")),
        Case("a template without a place for the class", lambda at: at.classes(templates="a {c}\na fox\n")),
        Case("class names that are missing", lambda at: at.classes(names=None)),
        Case("a compressed shard", lambda at: at.shard(gzip.compress(tar(*FINE)))),
        Case("a shard that is cut inside an image", lambda at: at.shard(tar(("a.png", picture()))[:700])),
        Case("a shard that is cut between two samples", lambda at: at.shard(tar(*FINE)[: 512 * 3])),
        Case("a shard that is no tar", lambda at: at.shard(b"<html>404</html>" * 99)),
        Case("a member that leads out of the archive", lambda at: at.shard(tar(*FINE, ("../../b.png", picture(2))))),
        Case(
            "a link in the archive",
            lambda at: at.shard(tar(*FINE, ("b.png", b""), type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        ),
        Case("a damaged image in a shard", lambda at: at.shard(tar(("a.png", b"no image"), ("a.txt", b"told")))),
        Case("a text in a shard that is no UTF-8", lambda at: at.shard(tar(("a.png", picture()), ("a.txt", b"\xff")))),
    ],
    "Model files": [
        Case("no such folder", lambda at: at.model({})),
        Case("a Git LFS pointer in place of weights", lambda at: at.model({**BERT, "model.safetensors": LFS})),
        Case("a web page in place of weights", lambda at: at.model({**BERT, "pytorch_model.bin": "<html>404</html>"})),
        Case("weights that are empty", lambda at: at.model({**BERT, "model.safetensors": b""})),
        Case(
            "no tokenizer",
            lambda at: at.model({"config.json": BERT["config.json"], "model.safetensors": b"not looked at"}),
        ),
        Case(
            "a pickle of Python objects",
            lambda at: at.model({**BERT, "pytorch_model.bin": pickle.dumps(Fraction(1), 2)}),
        ),
        Case(
            "an open_clip folder with a pointer",
            lambda at: at.model({"open_clip_config.json": "{}", "open_clip_model.safetensors": LFS}, "open_clip"),
        ),
    ],
    "Feature files": [
        Case("a pickle", lambda at: at.features(pickle.dumps([1]))),
        Case("Python objects", lambda at: at.features(npy(np.array([[{}] * 4] * 3, object)))),
        Case("an array that is cut short", lambda at: at.features(npy(ROWS)[:-1])),
        Case("other rows than the table", lambda at: at.features(npy(ROWS[:2]))),
        Case("NaN", lambda at: at.features(with_row(1, np.nan))),
        Case("infinity", lambda at: at.features(with_row(2, np.inf))),
        Case("one dimension", lambda at: at.features(npy(ROWS[0]))),
        Case("integers", lambda at: at.features(npy(ROWS.astype(np.int64)))),
        Case("another format", lambda at: at.features(b"", "image.mat")),
        Case("safetensors with an absurd header", lambda at: at.features(struct.pack("<Q", 2**63), "x.safetensors")),
        Case("vectors of unequal length in Parquet", lambda at: at.features(unequal_vectors(), "x.parquet")),
        Case("clip-retrieval parts of unlike number", parts),
        Case("packing features as images", lambda at: at.features(npy(ROWS), prepare={"repack": {}})),
    ],
    "Sweeps and comparisons": [
        Case("no sweep section", lambda at: ["sweep", "scenes"]),
        Case("a grid over no key", lambda at: ["sweep", "flickr8k_sweep", "--grid", "train.lrr=1e-3,1e-4"]),
        Case("a grid without values", lambda at: ["sweep", "flickr8k_sweep", "--grid", "train.lr"]),
        Case("a grid that is no list", lambda at: ["sweep", "flickr8k_sweep", "--grid", "train.split=a,{"]),
        Case("a grid with a value out of bounds", sweep("grid", "{train.objective.divergence.weight: [1, -1]}")),
        Case("equal configurations", sweep("grid", "{train.lr: [0.1, 0.1]}")),
        Case("configurations that come to the same", sweep("settings", "{InfoNCE: {}, plain: {train.epochs: 20}}")),
        Case("a sweep over the seed", sweep("grid", "{seed: [0, 1]}")),
        Case("a control that is none of them", sweep("control", "InfoNEC")),
        Case("an objective that no run has", sweep("objective.metric", "eval_retrieval.aligned.mean.R@7")),
        Case("an objective of no stage", sweep("objective.metric", "eval_retreival.aligned.mean.R@1")),
        Case(
            "an objective turned round", sweep("objective", "{metric: gap_report.aligned.margin, direction: minimize}")
        ),
        Case("an objective that is neither", sweep("objective.metric", "cost.seconds")),
        Case("more draws than there are", sweep("random", "{count: 3, keys: {train.lr: {choices: [0.1, 0.2]}}}")),
        Case("a sweep over the name", sweep("grid", "{name: [a, b]}")),
        Case("a seed named twice", sweep("seeds", "[0, 0]")),
        Case("a range turned round", sweep("random", "{keys: {train.lr: {low: 1, high: 0.1}}}")),
        Case("a search over nothing", sweep("search", "{trials: 5}")),
        Case("a search whose range holds invalid values", sweep("search", "{keys: {train.lr: {low: -1, high: 1}}}")),
        Case("a damaged journal of a search", journal),
        Case("a damaged state of a run", state),
        Case("a sweep that goes on with other data", other_files),
        Case(
            "a sweep in a folder that cannot be",
            lambda at: (at.file("file", ""), ["sweep", "flickr8k_sweep", "--set", "run_dir=file/run"])[1],
        ),
        Case("comparing runs that are not there", lambda at: ["compare", "one", "other"]),
        Case("comparing other splits", lambda at: ["compare", measured(at, "a"), measured(at, "b", "test")]),
        Case(
            "comparing other protocols",
            lambda at: ["compare", measured(at, "a"), measured(at, "b", ties="the first row wins")],
        ),
        Case(
            "comparing what was measured of another recipe",
            lambda at: ["compare", measured(at, "a", of_its_recipe=False)],
        ),
        Case("comparing in a format that is none", lambda at: ["compare", measured(at, "a"), "-o", "table.pdf"]),
        Case("a leaderboard of nothing", lambda at: ["leaderboard", "."]),
        Case("a leaderboard of a folder that is not there", lambda at: ["leaderboard", "rnus"]),
    ],
    "Later commands": [
        Case("embed before prepare", lambda at: (at.features(npy(ROWS)), ["embed"])[1]),
        Case("train before embed", lambda at: prepared(at, "train", "--set", "train.val_split=train")),
        Case("a k of R@k named twice", lambda at: ["prepare", "demo_clip", "--set", "eval_retrieval.ks=[1, 1]"]),
        Case(
            "bandwidths that print alike",
            lambda at: ["run", "demo_clip", "--set", "gap_report.bandwidths=[0.7071, 0.70710678]"],
        ),
        Case("a bandwidth too small", lambda at: ["run", "demo_clip", "--set", "gap_report.bandwidths=[0.005]"]),
        Case(
            "a bandwidth too small to train with",
            lambda at: ["run", "demo_clip", "--set", "train.objective.divergence.bandwidth=1e-12"],
        ),
        Case(
            "a k of R@k above the gallery", lambda at: ["prepare", "demo_clip", "--set", "eval_retrieval.ks=[1, 600]"]
        ),
        Case("a split that is not there", lambda at: prepared(at, "embed", "--set", "eval_retrieval.split=tran")),
        Case(
            "a share of pairs that leaves none",
            lambda at: prepared(at, "prepare", "--set", "data.unpaired={paired_fraction: 0.01}"),
        ),
        Case(
            "a modality that the data have not",
            lambda at: prepared(at, "embed", "--set", "encoders.further={audio: {kind: features}}"),
        ),
        Case(
            "JPEGs at a part of their size, and no photos",
            lambda at: prepared(at, "embed", "--set", "embed.jpeg=reduced"),
        ),
        Case("another folder in the place of the data", other_root),
        Case("another learning rate over a finished training", lambda at: trained(at, "train.lr=0.01")),
        Case("more epochs, and no state to go on from", lambda at: trained(at, "train.epochs=2")),
        Case("a run to begin with that is not there", lambda at: ["train", "scenes", "--set", "train.from=run:gone"]),
        Case(
            "a run to be taught by that is not there",
            lambda at: ["train", "scenes", "--set", "train.objective.teacher={runs: [run:gone]}"],
        ),
        Case(
            "shots from the split that is classified",
            lambda at: at.recipe("name: x\nzero_shot: {classes: c.txt, shots: [1], shots_split: test}\n"),
        ),
        Case(
            "classes of files and of the data",
            lambda at: at.recipe("name: x\nzero_shot: {classes: c.txt, from_data: true}\n"),
        ),
        Case(
            "self-training without unpaired items",
            lambda at: at.recipe("name: x\ntrain: {self_training: {}}\n"),
        ),
        Case(
            "a first round after the last epoch",
            lambda at: at.recipe("name: x\ndata: {unpaired: {}}\ntrain: {epochs: 4, self_training: {}}\n"),
        ),
        Case("two beginnings", lambda at: at.recipe("name: x\ntrain: {from: run:mine, start: cca}\n")),
        Case(
            "pair-score: a folder without stores",
            lambda at: prepared(at, "pair-score", "--set", "train=null", "--beside", "gone"),
        ),
        Case("eval-retrieval before embed", lambda at: prepared(at, "eval-retrieval", "--set", "train=null")),
        Case(
            "an index that FAISS does not know",
            lambda at: embedded(at, "eval-retrieval", "eval_retrieval.index.kind=hnws"),
        ),
        Case(
            "an index without a size per row",
            lambda at: embedded(at, "eval-retrieval", "eval_retrieval.index.kind=NSG32"),
        ),
        Case(
            "an index of rows with ids",
            lambda at: embedded(at, "eval-retrieval", "eval_retrieval.index.kind='IDMap,Flat'"),
        ),
        Case(
            "seeds: a folder without a run",
            lambda at: prepared(at, "gap-report", "--set", "train=null", "--set", "gap_report.seeds=[gone]"),
        ),
        Case("seeds: a run of the same seed", lambda at: other_seed(at)),
        Case("seeds: a run of another recipe", lambda at: other_seed(at, "seed=1", "encoders.image.power=0.5")),
        Case("pictures without a section", lambda at: ["generate", "scenes"]),
        Case(
            "a decoder without a model",
            lambda at: ["generate", "scenes", "--set", "generate={decoder: {kind: kandinsky22}}"],
        ),
        Case(
            "a store that is none",
            lambda at: ["generate", "scenes", "--set", "generate={decoder: {kind: closed_form}, stores: [alinged]}"],
        ),
        Case(
            "pictures beside a run that is not there",
            lambda at: ["generate", "scenes", "--set", "generate={decoder: {kind: closed_form}, beside: ['run:gone']}"],
        ),
        Case(
            "pictures of stored features",
            lambda at: ["generate", "flickr8k", "--set", "generate={decoder: {kind: closed_form}}"],
        ),
        Case("prompts of one image, and the bound of another", one_image),
        Case(
            "an image tower trained for a decoder",
            lambda at: ["generate", "scenes_alone_clip", "--set", "generate={decoder: {kind: closed_form}}"],
        ),
        Case("a search for nothing", lambda at: ["search", "scenes"]),
        Case("a sentence without quotes", lambda at: ["search", "scenes", "a", "dog"]),
        Case("a sentence in place of the recipe", lambda at: ["search", "a dog"]),
        Case("a run below a file", below_a_file),
    ],
}


def run(command: list[str], folder: Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of csalign in a folder, whose name is DIR in what is returned."""
    from cs_aligner_cli.cli.main import app

    with contextlib.chdir(folder):
        result = CliRunner().invoke(app, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    outcome = result.stderr.replace(str(folder), "DIR").replace(str(PAGE.parents[1]), "CSALIGN")
    outcome = re.sub(r"\(\d{4}-\d\d-\d\dT[^ ]+, [\d.]+ s\)", "(TIME)", outcome)
    return result.exit_code, result.stdout, outcome


def page(outcome: dict[str, list[tuple[str, list[str], int, str]]]) -> str:
    """The page of what was told: for each group (name, command, exit code, message)."""
    lines = [INTRODUCTION.format(count=sum(map(len, outcome.values())))]
    for group, rows in outcome.items():
        lines += [f"## {group}\n", "| input | command | exit | message |", "|---|---|---|---|"]
        for name, command, code, message in rows:
            shown = " ".join(f"'{word}'" if " " in word else word for word in command if word != "-q")
            cells = (name, f"`csalign {shown}`", str(code), "<br>".join(map(_cell, message.splitlines())))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(line: str) -> str:
    return "`" + line.strip().replace("`", "'").replace("|", "\\|") + "`"


def outcome(case: Case, folder: Path) -> tuple[str, list[str], int, str]:
    """Make a case in an empty folder and run its command."""
    command = case.make(Bench(folder))
    code, _, stderr = run(command, folder)
    if "csalign: " not in stderr:
        raise AssertionError(f"{case.name}: exit code {code} without a message: {stderr}")
    return case.name, command, code, stderr[stderr.index("csalign: ") + 9 :].rstrip()


def main() -> None:
    """Write the page."""
    found: dict[str, list[tuple[str, list[str], int, str]]] = {}
    for group, cases in CASES.items():
        for case in cases:
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault(group, []).append(outcome(case, Path(folder).resolve()))
    PAGE.write_text(f"{page(found)}\n{table()}", encoding="utf-8")
    sys.stderr.write(f"{PAGE.name} written\n")


if __name__ == "__main__":
    main()
