"""Pictures as prepare counts them, as they are embedded and as thumbnails show them: one and the same picture."""

from __future__ import annotations

import io
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cs_aligner_cli.data.images import MAX_ASPECT, BadImageError, decode
from cs_aligner_cli.data.thumbnails import thumbnail
from cs_aligner_cli.stores.embeddings import Store

Csalign = Callable[..., Any]
TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 16, "width": 8, "heads": 1, "layers": 1},
}


def _scene(seed: int = 0, width: int = 48, height: int = 32) -> Image.Image:
    """A picture without any symmetry."""
    y, x = np.mgrid[:height, :width]
    rgb = [(x * (3 + seed) + y * 2) % 256, (y * 7) % 256, (x * y // 7) % 256]
    return Image.fromarray(np.stack(rgb, -1).astype(np.uint8))


def _file(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """``folder({"a.png": bytes})``: a recipe over a folder of pictures, each with a caption."""

    def make(pictures: dict[str, bytes], **image: Any) -> Path:
        (tmp_path / "images").mkdir()
        for name, content in pictures.items():
            (tmp_path / "images" / name).write_bytes(content)
            (tmp_path / "images" / name).with_suffix(".txt").write_text(f"picture {name}\n")
        manifest = {"name": "mine", "kind": "folder", "root": ".", "image_dir": "images", "split": "test"}
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
        encoders = {"image": {"kind": "open_clip", "random_init": True, "config": TINY, **image}}
        recipe = {"name": "c", "run_dir": "run", "data": {"manifest": "m.yaml"}, "train": None, "encoders": encoders}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
        return tmp_path / "r.yaml"

    return make


def _rows(recipe: Path) -> dict[str, Any]:
    store = Store(recipe.parent / "run" / "embeddings" / "frozen" / "test")
    return dict(zip(store.keys("image")["image_id"], store.array("image").all(), strict=True))


def test_every_exif_orientation_is_embedded_upright(csalign: Csalign, folder: Callable[..., Path]) -> None:
    scene = _scene()
    undo = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
    undo |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE}
    undo |= {8: Image.Transpose.ROTATE_270}
    pictures = {"up.png": _file(scene, "PNG")}
    for orientation, turn in undo.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind, suffix in (("PNG", "png"), ("TIFF", "tif")):
            pictures[f"turned{orientation}{suffix}.{suffix}"] = _file(scene.transpose(turn), kind, exif=exif)
    recipe = folder(pictures)
    prepared = csalign("prepare", recipe, "--json")
    assert prepared.exit_code == 0
    assert prepared.json["pictures"] == {"turned by EXIF": 14}
    assert csalign("embed", recipe, "--quiet").exit_code == 0
    rows = _rows(recipe)
    for name, row in rows.items():
        np.testing.assert_allclose(row, rows["up.png"], atol=1e-6, err_msg=name)
    shown = [thumbnail(recipe.parent / "images" / name, 48) for name in pictures]
    assert len({*shown}) == 1, "thumbnails stand upright, too"


def test_prepare_counts_and_names_every_conversion(csalign: Csalign, folder: Callable[..., Path]) -> None:
    scene = _scene()
    see_through = scene.convert("RGBA")
    see_through.putalpha(scene.convert("L"))
    wide = np.asarray(scene.convert("L")).astype(np.uint16) * 257
    pictures = {
        "rgb.png": _file(scene, "PNG"),
        "rgba.png": _file(see_through, "PNG"),
        "la.png": _file(see_through.convert("LA"), "PNG"),
        "palette.png": _file(scene.quantize(16), "PNG"),
        "transparent.gif": _file(scene.quantize(16), "GIF", transparency=0),
        "cmyk.jpg": _file(scene.convert("CMYK"), "JPEG"),
        "grey.jpg": _file(scene.convert("L"), "JPEG"),
        "wide.png": _file(Image.fromarray(wide), "PNG"),
        "wide_colours.png": _wide_colours(),
        "floats.tif": _file(Image.fromarray(wide.astype(np.float32) / 65535), "TIFF"),
    }
    recipe = folder(pictures)
    prepared = csalign("prepare", recipe, "--json")
    expected = {"grey": 4, "palette": 2, "transparent": 3, "CMYK": 1}
    expected |= {"16 bits scaled to 8": 2, "floats scaled to 8 bits": 1}
    assert prepared.json["pictures"] == expected
    report = yaml.safe_load((recipe.parent / "run" / "data" / "report.json").read_text())["converted_pictures"]
    assert {name.rpartition("/")[2] for name in report["transparent"]} == {"rgba.png", "la.png", "transparent.gif"}
    assert "pictures: transparent" in csalign("prepare", recipe).stdout
    assert csalign("embed", recipe, "--quiet").exit_code == 0
    rows = _rows(recipe)
    np.testing.assert_allclose(rows["floats.tif"], rows["wide.png"], atol=1e-6)


def test_thumbnails_show_what_was_embedded(csalign: Csalign, folder: Callable[..., Path]) -> None:
    """Behind transparent places: the hidden colour for open_clip, the stated one where one is stated."""
    hidden = Image.new("RGBA", (32, 32), (200, 30, 30, 0))
    recipe = folder({"a.png": _file(hidden, "PNG"), "b.png": _file(_scene(), "PNG")}, background="#0000ff")
    assert csalign("prepare", recipe, "--quiet").exit_code == csalign("embed", recipe, "--quiet").exit_code == 0
    stated = Store(recipe.parent / "run" / "embeddings" / "frozen" / "test").background
    path = recipe.parent / "images" / "a.png"
    for background, colour in ((stated, (0, 0, 255)), (None, (200, 30, 30))):
        jpeg = thumbnail(path, 32, background)
        assert jpeg is not None
        middle = np.asarray(Image.open(io.BytesIO(jpeg)))[16, 16]
        assert np.abs(middle.astype(int) - colour).max() < 6
    # A picture of the background's colour is the same picture.
    Image.new("RGB", (32, 32), (0, 0, 255)).save(recipe.parent / "images" / "b.png")
    assert csalign("prepare", recipe, "--quiet").exit_code == csalign("embed", recipe, "--quiet").exit_code == 0
    rows = _rows(recipe)
    np.testing.assert_allclose(rows["a.png"], rows["b.png"], atol=1e-6)


@pytest.mark.parametrize("size", [(60000, 1), (1, 60000), (90000, 3), (7 * MAX_ASPECT + 1, 7)])
def test_a_strip_is_a_bad_picture(size: tuple[int, int]) -> None:
    with pytest.raises(BadImageError, match="one side is more than 200 times the other"):
        decode(_file(Image.new("L", size), "PNG"))
    assert decode(_file(Image.new("L", (7 * MAX_ASPECT, 7)), "PNG")).image.size == (7 * MAX_ASPECT, 7)


def _png(width: int, height: int, bits: int, colour: int, rows: Iterable[bytes]) -> bytes:
    """A PNG by its chunks, for what PIL does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"\0" + row) for row in rows) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _wide_colours() -> bytes:
    """RGB of 16 bits."""
    return _png(40, 30, 16, 2, (bytes(range(240)) for _ in range(30)))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_by_its_header() -> None:
    """PIL warns between its limit and twice that; nothing is decoded here, wherever the picture is read."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImageError, match="more than 89478485 pixels"):
        decode(_png(11000, 9000, 8, 6, (bytes(44000) for _ in range(9000))))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB; decoded it is 400 MB


def test_a_strip_at_the_limit_takes_little_memory() -> None:
    """The case one_pixel_strip: 60000 x 1 peaked at 1.8 GB in an encoder of 64 pixels; 200 to 1 at 224 must not."""
    code = (
        "import io, resource, open_clip\n"
        "from PIL import Image\n"
        "from cs_aligner_cli.data.images import decode\n"
        "scale = open_clip.image_transform(224, is_train=False)\n"
        "content = io.BytesIO(); Image.new('RGB', (20000, 100)).save(content, 'PNG')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "scale(decode(content.getvalue()).image)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 150_000


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([[-1.0, 1.0], [0, 0]], np.float32), "floats from -1 to 1"),
        (np.array([[-3.0, 4.0], [0, 0]], np.float32), "floats from -3 to 4"),
        (np.array([[0, 1e6], [0, 0]], np.float32), "floats from 0 to 1e+06"),
        (np.array([[0, np.nan], [0, 0]], np.float32), "floats from nan to nan"),
        (np.array([[0, 70000], [0, 0]], np.int32), "integers from 0 to 70000"),
        (np.array([[-5, 7], [0, 0]], np.int32), "integers from -5 to 7"),
    ],
)
def test_samples_that_are_no_brightness_are_refused(samples: Any, message: str) -> None:
    with pytest.raises(BadImageError, match=message.replace("+", r"\+")):
        decode(_file(Image.fromarray(samples), "TIFF"))


def test_backgrounds_that_are_none(folder: Callable[..., Path], refused: Callable[..., str]) -> None:
    recipe = folder({"a.png": _file(_scene(), "PNG")}, background="whit")
    assert "'whit' is no colour" in refused("recipe", "validate", recipe)
    text = "encoders.text={kind: open_clip, model: ViT-B-32, random_init: true, background: white}"
    again = ("recipe", "validate", recipe, "--set", "encoders.image.background=white", "--set", text)
    assert "text: background is for pictures" in refused(*again)


def test_heic_is_decoded_where_its_plugin_is_installed() -> None:
    plugin = pytest.importorskip("pillow_heif")
    with io.BytesIO() as file:
        plugin.from_pillow(Image.new("RGB", (32, 24), (200, 30, 60))).save(file, quality=90)
        picture = decode(file.getvalue())
    assert picture.image.size == (32, 24) and picture.image.mode == "RGB"
    assert np.abs(np.asarray(picture.image, int).mean(axis=(0, 1)) - (200, 30, 60)).max() < 6
