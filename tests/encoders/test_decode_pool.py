"""Crops by PIL, in processes or not, and what is left to the device: bitwise the pixels of open_clip and timm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import ExifTags, Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import Compose, Normalize, Resize, ToTensor

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.decode_pool import DecodePool, can_share
from cs_aligner_cli.data.pictures import as_rgb, without_palette_alpha
from cs_aligner_cli.encoders.device_jpeg import device_crops, pil_crop, require_device_jpeg
from cs_aligner_cli.encoders.inputs import ImageLoader
from cs_aligner_cli.encoders.transforms import parts_of
from cs_aligner_cli.towers.embedder import Embedder

CLIP = image_transform_v2(PreprocessCfg(size=32), is_train=False)
# Transforms, whether they get RGB, and how their library brings a picture to them.
TRANSFORMS: dict[str, tuple[Any, bool, Callable[[Image.Image], Image.Image]]] = {
    "open_clip": (CLIP, False, without_palette_alpha),
    "open_clip, squash": (
        image_transform_v2(PreprocessCfg(size=(40, 32), resize_mode="squash"), is_train=False),
        False,
        without_palette_alpha,
    ),
    "timm": (create_transform((3, 32, 32), is_training=False, interpolation="bilinear"), True, as_rgb),
}


def pictures() -> Iterator[Image.Image]:
    """One of every kind that files have, upright and flat, none of which is scaled by a whole number."""
    y, x = np.mgrid[:47, :61]
    channels = [127 + 127 * np.sin(x / a + y / b) for a, b in ((5, 9), (7, -6), (-11, 4))]
    colourful = Image.fromarray(np.stack([*channels, (x * 4) % 256], -1).astype(np.uint8))
    yield from (colourful.convert(mode) for mode in ("RGB", "RGBA", "L", "LA", "1", "P"))
    yield colourful.convert("RGB").convert("CMYK")
    yield colourful.convert("RGB").rotate(90, expand=True)
    yield colourful.convert("RGB").crop((0, 0, 60, 9))  # enlarged


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_crop_and_its_normalising_are_the_librarys_pixels_bit_for_bit(name: str) -> None:
    transform, rgb_first, brought = TRANSFORMS[name]
    parts = parts_of(transform, rgb_first)
    assert parts is not None
    for picture in pictures():
        crop = torch.from_numpy(parts.crop.of(picture).copy())
        assert torch.equal(parts.normalised(crop[None])[0], transform(brought(picture))), picture.mode


@pytest.mark.parametrize(("width", "height"), [(61, 47), (140, 70), (70, 131), (300, 200), (31, 900), (64, 64)])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_jpegs_at_a_part_of_their_size_are_never_smaller_than_what_they_are_resized_to(
    name: str, width: int, height: int, tmp_path: Path
) -> None:
    """Also where they lie on their side; a picture that is not twice as large stays what it is."""
    parts = parts_of(*TRANSFORMS[name][:2])
    assert parts is not None
    y, x = np.mgrid[:height, :width]
    smooth = Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x + 90], -1).astype(np.uint8))
    exact, reduced = parts.crop, replace(parts.crop, reduced=True)
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        smooth.save(tmp_path / "x.jpg", exif=exif, quality=95)
        whole, part = exact.picture(tmp_path / "x.jpg"), reduced.picture(tmp_path / "x.jpg")
        size = exact.size_of(*whole.size)
        scale = min(whole.width / size[0], whole.height / size[1])
        assert part.size == whole.size or (scale >= 2 and part.width >= size[0] and part.height >= size[1])
        if scale >= 4 and name != "open_clip, squash":  # whose sides swap with the orientation
            assert part.width <= -(-whole.width // 4)
        apart = np.abs(exact.read(tmp_path / "x.jpg").astype(int) - reduced.read(tmp_path / "x.jpg"))
        assert apart.mean() < 2


@pytest.mark.parametrize(
    "transform",
    [
        None,
        Compose([Resize(32), ToTensor(), Normalize(0.5, 0.5)]),
        image_transform_v2(PreprocessCfg(size=32, resize_mode="longest"), is_train=False),
        create_transform((3, 32, 32), is_training=True),
    ],
)
def test_other_transforms_are_left_to_their_library(transform: Any) -> None:
    assert parts_of(transform, rgb_first=False) is None
    loader = ImageLoader(lambda image: CLIP(image), Path(), None, parts_of(transform, rgb_first=False))
    assert not loader.crop()


def test_parts_that_do_not_agree_with_the_library_are_not_used() -> None:
    assert not ImageLoader(lambda image: 2 * CLIP(image), Path(), None, parts_of(CLIP, rgb_first=False)).crop()


@pytest.fixture
def loader(tmp_path: Path) -> ImageLoader:
    """A loader of seventeen photos: two jobs."""
    rng = np.random.default_rng(0)
    for number in range(17):
        Image.fromarray(rng.integers(0, 256, (40, 50 + number, 3), np.uint8)).save(tmp_path / f"{number:02d}.png")
    return ImageLoader(lambda image: CLIP(without_palette_alpha(image)), tmp_path, None, parts_of(CLIP, False))


@pytest.mark.skipif(not can_share(), reason="processes share memory by descriptor on Linux")
def test_processes_decode_what_threads_do(loader: ImageLoader) -> None:
    rows = pd.DataFrame({"locator": sorted(path.name for path in loader.root.iterdir())})

    def embedded(processes: DecodePool | None) -> Any:
        load: Callable[[Any], Tensor] = lambda places: loader(rows.iloc[places])  # noqa: E731
        loader.crop(processes) if processes else None
        embedder = Embedder(lambda pixels: pixels.flatten(1)[:, :50], load, torch.device("cpu"), 4, None, loader)
        return embedder.all(np.arange(len(rows)))

    in_threads = embedded(None)
    pool = DecodePool(2)
    np.testing.assert_array_equal(embedded(pool), in_threads)
    assert loader(rows).dtype == torch.uint8
    in_processes = loader(rows)
    loader.crop()
    assert torch.equal(loader(rows), in_processes)
    loader.crop(pool)

    (loader.root / "16.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"16\.png: not an image; it was whole when the data were prepared"):
        loader(rows)

    for worker in pool._workers:
        worker._process.kill()
    with pytest.raises(InputError, match="a process that decodes photos ended with code -9"):
        loader(rows.iloc[:1])
    pool.close()


@pytest.mark.skipif(not can_share(), reason="memory without a name is Linux's alone")
def test_processes_run_nothing_that_lies_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    (tmp_path / "json.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # a Path, which Python passes over
    parts = parts_of(CLIP, False)
    assert parts is not None
    pool, crops = DecodePool(1), np.zeros((1, 32, 32, 3), np.uint8)
    pool.read([tmp_path / "a.png"], parts.crop, crops)
    pool.close()
    assert (crops == [255, 0, 0]).all()


def test_decoding_on_a_device_is_refused_without_one() -> None:
    with pytest.raises(InputError, match=r"embed\.jpeg: device decodes on a CUDA device, but embed runs on: cpu"):
        require_device_jpeg(torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
def test_a_file_that_the_devices_decoder_refuses_sends_no_other_to_pil() -> None:
    """torchvision's decoder of the CPU in place of nvJPEG: both take many files and refuse them together."""
    crop = parts_of(CLIP, False)
    assert crop is not None
    contents = []
    for i in range(18):  # more than are decoded at once
        written = BytesIO()
        y, x = np.mgrid[:40, : 50 + i]
        Image.fromarray(np.stack([x * 3, y * 5, x + y], -1).astype(np.uint8)).save(written, "JPEG", quality=95)
        contents.append(written.getvalue())
    contents[3] = contents[3][:200]
    png = BytesIO()
    Image.new("RGB", (40, 40)).save(png, "PNG")
    found = device_crops([*contents, png.getvalue()], crop.crop, torch.device("cpu"))
    assert [number for number, picture in enumerate(found) if picture is None] == [3, 18]
    for content, picture in zip(contents, found, strict=False):
        if picture is not None:
            assert float((picture.float() - pil_crop(content, crop.crop).float()).abs().mean()) < 2
