"""Parts of benchmarks/gpu.py: embedding photos beside a DataLoader, and what a photo costs before the encoder."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor

_SHARDS = 32


def embedding(photos: Path, copies: int, device: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """`csalign embed` from files and from shards to stores, beside a DataLoader loop and the bare forward.

    ``limit``: of so many photos, without its threads and where its time goes.
    """
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write_data(folder, photos, copies, limit)
        for stage in ("prepare", "embed"):
            yield _ran(folder, ["-m", "cs_aligner_cli", stage])
        yield from _loops(sorted((folder / "images").iterdir()), device, 16 if limit is None else 2)
        shards = ["--set", "data.manifest=shards.yaml", "--set", "run_dir=shards"]
        for stage in ("prepare", "embed"):
            yield _ran(folder, ["-m", "cs_aligner_cli", stage, *shards])
        if limit is None:
            yield _ran(folder, ["-m", "cs_aligner_cli", "embed", "--set", "embed.decoders=0"])
            yield _ran(folder, [str(Path(__file__).with_name("sampled.py")), "embed"])


def _write_data(folder: Path, photos: Path, copies: int, limit: int | None) -> None:
    """Each photo a few times, a caption for each, as files and in 32 shards, and the recipe that embeds them."""
    (folder / "images").mkdir()
    lines = ["image,caption,split"]
    with ExitStack() as stack:
        shards = [stack.enter_context(tarfile.open(folder / f"{number:02d}.tar", "w")) for number in range(_SHARDS)]
        for number, photo in enumerate(sorted(photos.glob("*.jpg"))[:limit]):
            for copy in range(copies):  # what follows a JPEG's end makes it another file, and no other picture
                name, text = f"{number:04d}_{copy:02d}.jpg", f"photo {number} of {copy}"
                (folder / "images" / name).write_bytes(photo.read_bytes() + f"{number} {copy}".encode())
                lines.append(f"{name},{text},test")
                shard = shards[number % _SHARDS]
                shard.add(folder / "images" / name, name)
                caption = tarfile.TarInfo(name.replace(".jpg", ".txt"))
                caption.size = len(text)
                shard.addfile(caption, BytesIO(text.encode()))
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    manifest = {"kind": "table", "name": "bench", "root": str(folder), "image_dir": "images"}
    (folder / "manifest.yaml").write_text(yaml.safe_dump({**manifest, "table": str(folder / "table.csv")}))
    in_shards = {"kind": "webdataset", "name": "shards", "root": str(folder), "shards": {"test": "*.tar"}}
    (folder / "shards.yaml").write_text(yaml.safe_dump(in_shards))
    clip = {"kind": "open_clip", "model": "ViT-B-32", "random_init": True}
    recipe = {"name": "bench", "run_dir": "run", "data": {"manifest": "manifest.yaml"}, "train": None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**recipe, "encoders": {"image": clip}}))


def _ran(folder: Path, command: list[str]) -> dict[str, Any]:
    """The wall time of a command on the recipe, and what embed says of its photos; stderr of one that is sampled."""
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, *command, "recipe.yaml", "--force", "--json"], cwd=folder, capture_output=True, text=True
    )
    row = {
        "what": " ".join(["csalign", *command[1 if command[0] != "-m" else 2 :]]),
        "s": round(time.perf_counter() - began, 2),
    }
    if ran.returncode or command[0] != "-m":
        print(ran.stderr[-6000:])
    if ran.returncode:
        return {**row, "exit": ran.returncode}
    if "embed" in command:
        images = json.loads(ran.stdout)["stores"]["frozen"]["test"]["image"]
        row |= {key: images[key] for key in ("per_second", "seconds", "encoder_busy")}
    return row


def _loops(files: list[Path], device: str, most: int) -> Iterator[dict[str, Any]]:
    """A DataLoader loop over the same files, with ``most`` workers and with none, and the encoder alone."""
    import open_clip
    from embed import Photos
    from torch.utils.data import DataLoader

    began = time.perf_counter()
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    tower = model.visual.to(device).eval()
    yield {"what": "open_clip's model", "s": round(time.perf_counter() - began, 2)}
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
        for workers in (most, 0):
            data = Photos(files if workers else files[:512], preprocess)
            began = time.perf_counter()
            cuda = device == "cuda"
            loader: DataLoader[Tensor] = DataLoader(data, 512, num_workers=workers, pin_memory=cuda)
            for batch in loader:
                tower(batch.to(device, non_blocking=True)).float().cpu()
            took = time.perf_counter() - began
            yield {"what": f"DataLoader, {workers} workers", "s": round(took, 2), "per s": round(len(data) / took)}
        pixels = torch.randn(min(512, len(files)), 3, 224, 224, device=device)
        took = _seconds(lambda: tower(pixels))
        yield {"what": "bare forward", "per s": round(len(pixels) / took)}


def _decoded(paths: list[str]) -> int:
    """Decode and resize photos as open_clip's ViT-B-32 takes them, without a tensor; their number."""
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    return len(paths)


def decoding(photos: Path) -> Iterator[dict[str, Any]]:
    """Milliseconds of every part of one photo's way, then photos per second over threads and processes."""
    import open_clip
    from torchvision.io import decode_jpeg, read_file

    _, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32")
    files = [str(path) for path in sorted(photos.glob("*.jpg"))][:256]
    images = [Image.open(file).convert("RGB") for file in files]
    sides: dict[str, Callable[[], Any]] = {
        "decode": lambda: [Image.open(file).convert("RGB") for file in files],
        "preprocess": lambda: [preprocess(image) for image in images],
        "decode and resize": lambda: _decoded(files),
        "torchvision decode": lambda: [decode_jpeg(read_file(file)) for file in files],
        "nvJPEG decode": lambda: decode_jpeg([read_file(file) for file in files], device="cuda"),
    }
    for name, side in sides.items():
        try:
            side()
            began = time.perf_counter()
            side()
            torch.cuda.synchronize()
        except RuntimeError as error:  # a build of torchvision without nvJPEG
            yield {"what": name, "error": str(error)[:200]}
            continue
        yield {"what": name, "ms a photo": round((time.perf_counter() - began) / len(files) * 1e3, 3)}
    parts = [files[i::64] for i in range(64)] * 6
    pools = {"threads": ThreadPoolExecutor, "processes": partial(ProcessPoolExecutor, mp_context=get_context("spawn"))}
    for name, pool in pools.items():
        for workers in (1, 4, 8, 16):
            with pool(workers) as executor:
                list(executor.map(_decoded, parts[:workers]))  # started
                began = time.perf_counter()
                chosen = parts if workers > 1 else parts[:96]
                count = sum(executor.map(_decoded, chosen))
                yield {"what": f"{workers} {name}", "per s": round(count / (time.perf_counter() - began))}


def _seconds(call: Callable[[], Tensor]) -> float:
    """The time of a call, over ten."""
    call()[0].cpu()
    began = time.perf_counter()
    for _ in range(10):
        last = call()
    last[0].cpu()  # waits for the device
    return (time.perf_counter() - began) / 10
