"""Pixels of pictures in every mode equal those of each encoder's own library, to 1e-5; the largest difference is told.

pytest -s tests/encoders/test_picture_parity.py prints the table.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from cs_aligner_cli.data.images import decode
from cs_aligner_cli.data.pictures import as_rgb, normalised, on_background
from cs_aligner_cli.encoders import load_encoders
from cs_aligner_cli.recipe.recipe import Recipe

TOLERANCE = 1e-5
# Every mode of PIL that its own convert() reaches from RGBA.
MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "RGBa", "La"]
FILES = {
    **{f"{mode}.png": mode for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"{mode}.jpg": mode for mode in ("L", "RGB", "CMYK")},
    **{f"{mode}.tif": mode for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")},
    **{f"{mode}.webp": mode for mode in ("RGB", "RGBA")},
    **{f"{mode}.gif": mode for mode in ("L", "P")},
}


def _colourful(width: int = 61, height: int = 47) -> Image.Image:
    """Smooth colours with strong hidden ones where the picture is transparent."""
    y, x = np.mgrid[:height, :width]
    channels = [127 + 127 * np.sin(x / a + y / b) for a, b in ((5, 9), (7, -6), (-11, 4))]
    alpha = np.where((x - 30) ** 2 + (y - 24) ** 2 < 300, 255, np.where(x % 5 == 0, 90, 0))
    return Image.fromarray(np.stack([*channels, alpha], -1).astype(np.uint8))


def _in_mode(mode: str) -> Image.Image:
    picture = _colourful()
    if mode == "LAB":
        from PIL import ImageCms

        to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        found = ImageCms.applyTransform(picture.convert("RGB"), to_lab)
        assert found is not None
        return found
    if mode == "PA":
        return picture.convert("RGB").convert("P").convert("PA")
    if mode in ("La", "RGBa"):
        return picture.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
    if mode in ("L", "1", "LA", "RGBA", "P"):
        return picture.convert(mode)
    return picture.convert("RGB").convert(mode)


def _transparent_colour() -> Image.Image:
    """RGB with one colour that counts as transparent, as PNG's tRNS chunk has it."""
    rgb = _colourful().convert("RGB").quantize(8).convert("RGB")
    content = BytesIO()
    rgb.save(content, "PNG", transparency=rgb.getpixel((3, 3)))
    return Image.open(BytesIO(content.getvalue()))


Reference = Callable[[Image.Image], Tensor]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Reference]]:
    """By library: our loader, and the library's own pixels of a picture."""
    root = tmp_path_factory.mktemp("libraries")
    small = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8}
    found: dict[str, tuple[Any, Reference]] = {}

    config = {"embed_dim": 8, "vision_cfg": small, "text_cfg": {"width": 8, "heads": 1, "layers": 1}}
    loader = _loader(root, kind="open_clip", random_init=True, config=config)
    theirs = open_clip.image_transform(32, is_train=False)
    found["open_clip"] = loader, theirs
    # The same by torchvision alone, written out.
    mean, std = open_clip.constants.OPENAI_DATASET_MEAN, open_clip.constants.OPENAI_DATASET_STD
    resized = v2.Compose([v2.Resize(32, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32)])
    finished = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    found["torchvision"] = loader, lambda image: finished(resized(image).convert("RGB"))

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vit = {"image_size": 32, "patch_size": 16, **shape}
    models: dict[str, tuple[Any, Any]] = {
        "CLIP": (
            transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(projection_dim=8, **vit)),
            transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        ),
        "SigLIP": (
            transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vit)),
            transformers.SiglipImageProcessor(size={"height": 32, "width": 32}),
        ),
        "DINOv2": (
            transformers.Dinov2Model(transformers.Dinov2Config(**vit)),
            transformers.BitImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}),
        ),
        "ViT": (
            transformers.ViTModel(transformers.ViTConfig(**vit)),
            transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
        ),
    }
    for name, (model, processor) in models.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
        own = transformers.AutoImageProcessor.from_pretrained(root / name)

        def pixels(image: Image.Image, own: Any = own) -> Tensor:
            # What does not convert by itself gets what the library's load_image gives.
            given = image if own.do_convert_rgb else transformers.image_utils.load_image(image)
            return own(images=given, return_tensors="pt")["pixel_values"][0]  # type: ignore[no-any-return]

        found[f"transformers {name}"] = _loader(root, kind="transformers", model=f"local-dir:{root / name}"), pixels

    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(timm.create_model("test_vit")))
    loader = _loader(root, kind="timm", model="test_vit", random_init=True)
    found["timm"] = loader, lambda image: transform(image.convert("RGB"))  # as timm.data.ImageDataset
    return found


def _loader(root: Path, **spec: Any) -> Any:
    text = {"kind": "open_clip", "random_init": True, "config": {}}
    recipe = Recipe.model_validate({"name": "x", "encoders": {"image": spec, "text": text}})

    class Data:
        pass

    data = Data()
    data.root = root  # type: ignore[attr-defined]
    return load_encoders(recipe, data, torch.device("cpu"), ["image"])["image"].load  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's own word on palettes, in the references
def test_every_mode_equals_each_library(libraries: dict[str, tuple[Any, Reference]], tmp_path: Path) -> None:
    pictures: dict[str, Image.Image] = {mode: _in_mode(mode) for mode in MODES}
    assert {*pictures} == {image.mode for image in pictures.values()}
    pictures["RGB with a transparent colour"] = _transparent_colour()
    for name, mode in FILES.items():
        content = BytesIO()
        _in_mode(mode).save(content, format=Image.registered_extensions()[Path(name).suffix])
        pictures[f"file {name}"] = Image.open(BytesIO(content.getvalue()))
    worst: dict[str, tuple[float, str]] = {}
    for library, (loader, reference) in libraries.items():
        for name, picture in pictures.items():
            picture.load()
            expected = reference(picture.convert("LA") if name == "La" else picture.copy())  # no library reads La
            found = loader.preprocess(normalised(picture.copy())[0])
            assert found.shape == expected.shape, (library, name)
            worst[library] = max(worst.get(library, (0.0, "")), (float((found - expected).abs().max()), name))
    print()
    for library, (difference, name) in worst.items():
        print(f"{library:24} largest difference over {len(pictures)} pictures {difference:.1e}  {name}")
    assert max(difference for difference, _ in worst.values()) <= TOLERANCE, worst


def test_files_go_through_the_loader_as_through_the_library(
    libraries: dict[str, tuple[Any, Reference]], tmp_path: Path
) -> None:
    loader, reference = libraries["open_clip"]
    paths = []
    for name, mode in FILES.items():
        _in_mode(mode).save(tmp_path / name)
        paths.append(tmp_path / name)
    with torch.inference_mode():
        found = loader(pd.DataFrame({"locator": [str(path) for path in paths]}))
    warnings.simplefilter("ignore", UserWarning)  # PIL's own word on palettes, in the reference alone
    for path, pixels in zip(paths, found, strict=True):
        assert float((pixels - reference(Image.open(path))).abs().max()) <= TOLERANCE, path.name


@pytest.mark.parametrize("library", ["open_clip", "transformers CLIP", "timm"])
def test_16_bits_and_floats_are_what_8_bits_would_be(libraries: dict[str, tuple[Any, Reference]], library: str) -> None:
    """Samples v of 8 bits written as 257 v of 16, as v / 255 in floats, as integers of 32 bits: one picture."""
    loader, reference = libraries[library]
    grey = np.asarray(_colourful().convert("L"))
    expected = reference(Image.fromarray(grey))
    wide = grey.astype(np.uint16) * 257
    written = {
        "I;16.png": Image.fromarray(wide),
        "I;16.tif": Image.fromarray(wide),
        "I;16B.tif": Image.frombytes("I;16B", grey.shape[::-1], wide.astype(">u2").tobytes()),
        "I.tif": Image.fromarray(wide.astype(np.int32)),
        "F to 1.tif": Image.fromarray(grey.astype(np.float32) / 255),
        "F to 255.tif": Image.fromarray(grey.astype(np.float32)),
        "F to 65535.tif": Image.fromarray(wide.astype(np.float32)),
    }
    for name, image in written.items():
        content = BytesIO()
        image.save(content, Image.registered_extensions()[Path(name).suffix])
        found = loader.preprocess(decode(content.getvalue()).image)
        assert float((found - expected).abs().max()) <= TOLERANCE, name


def test_a_stated_background_is_the_closed_form(libraries: dict[str, tuple[Any, Reference]], tmp_path: Path) -> None:
    """RGB = alpha * colour + (1 - alpha) * background, before any preprocessing; transformers' own is white."""
    picture = _colourful()
    rgba = np.asarray(picture).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    for colour, ground in (("white", (255, 255, 255)), ("#102030", (16, 32, 48))):
        expected = rgba[..., :3] * alpha + np.array(ground) * (1 - alpha)
        assert np.abs(np.asarray(on_background(picture, colour)) - expected).max() < 1
    picture.save(tmp_path / "a.png")
    white = as_rgb(picture, "white")
    rows = pd.DataFrame({"locator": [str(tmp_path / "a.png")]})
    own, _ = libraries["transformers CLIP"]
    torch.testing.assert_close(own(rows)[0], own.preprocess(white), atol=TOLERANCE, rtol=0)
    _, reference = libraries["timm"]
    stated = _loader(tmp_path, kind="timm", model="test_vit", random_init=True, background="white")
    torch.testing.assert_close(stated(rows)[0], reference(white), atol=TOLERANCE, rtol=0)
