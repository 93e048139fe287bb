"""What a decoded picture becomes before an encoder's own preprocessing: upright, of 8 bits a channel, maybe opaque."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps

# What is counted of pictures that are not plain RGB, in the order of the report of prepare.
TURNED, SIXTEEN, FLOAT = "turned by EXIF", "16 bits scaled to 8", "floats scaled to 8 bits"
TRANSPARENT, PALETTE, GREY = "transparent", "palette", "grey"
_GREY = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_FULL = 65535
# Formats whose integers of 32 bits are samples of 16 bits, which older versions of PIL give so.
_WIDENED = ("PNG", "PPM", "JPEG2000")
# What a resampled picture overshoots its range by, as a share of it.
_OVERSHOOT = 0.02


class NoPhotoError(ValueError):
    """The samples of a picture are no brightness; the message says why."""


def normalised(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """The picture upright and of 8 bits a channel, else in its own mode; and what it is or was, for the report.

    Encoders' libraries know how to bring palettes, transparency, CMYK and grey to RGB, each in its own way, and see the
    picture as it is; 16 bits and floats they (that is, PIL) would clip at 255. Raises NoPhotoError for samples in no
    known range.
    """
    turns = image.format == "TIFF" and is_turned(image)  # PIL turns TIFFs itself as it loads them
    deep = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # PIL halves 16-bit colours as it loads
    image.load()
    if not turns and (turns := is_turned(image)):
        ImageOps.exif_transpose(image, in_place=True)
    found = [TURNED] if turns else []
    mode = image.mode
    if mode in _GREY:
        found.append(GREY)
    elif mode in ("P", "PA"):
        found.append(PALETTE)
    elif mode not in ("RGB", "RGBA", "RGBa", "RGBX"):
        found.append(mode)
    if is_transparent(image):
        found.append(TRANSPARENT)
    if mode.startswith("I;16"):
        return _of_16_bits(image), (*found, SIXTEEN)
    if mode == "I":
        return _of_integers(image), (*found, SIXTEEN)
    if mode == "F":
        return _of_floats(image), (*found, FLOAT)
    if deep:
        found.append(SIXTEEN)
    return image.convert("LA") if mode == "La" else image, tuple(found)  # no library reads La


def is_transparent(image: Image.Image) -> bool:
    """Whether a picture has an alpha channel or names a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def on_background(image: Image.Image, colour: str) -> Image.Image:
    """The RGB picture on a ground of a colour as CSS writes it; an opaque picture only becomes RGB."""
    if not is_transparent(image):
        return as_rgb(image)
    above = image.convert("RGBA")
    ground = Image.new("RGBA", above.size, ImageColor.getrgb(colour))
    return Image.alpha_composite(ground, above).convert("RGB")


def as_rgb(image: Image.Image, background: str | None = None) -> Image.Image:
    """The RGB picture, on a background if there is one; else transparent places show the colours that they hide."""
    if background is not None:
        return on_background(image, background)
    return image if image.mode == "RGB" else without_palette_alpha(image).convert("RGB")


def without_palette_alpha(image: Image.Image) -> Image.Image:
    """The picture without the transparency of its palette, which PIL leaves out of RGB anyhow, but with a warning."""
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.copy()
        del image.info["transparency"]
    return image


def is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that a picture does not stand upright as it is stored."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except (ValueError, LookupError, TypeError, SyntaxError, OSError, RuntimeError):
        return False  # an EXIF block that cannot be read says nothing about the picture


def _of_16_bits(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((samples * 255 + _FULL // 2) // _FULL).astype(np.uint8))


def _of_integers(image: Image.Image) -> Image.Image:
    samples = np.asarray(image)
    low, high = int(samples.min()), int(samples.max())
    if low < 0 or high > _FULL:
        raise NoPhotoError(f"integers from {low} to {high}, where 0 to 255 or 0 to {_FULL} is expected")
    if high <= 255 and image.format not in _WIDENED:
        return Image.fromarray(samples.astype(np.uint8))
    return Image.fromarray(((samples.astype(np.uint32) * 255 + _FULL // 2) // _FULL).astype(np.uint8))


def _of_floats(image: Image.Image) -> Image.Image:
    """Floats from 0 to 1, to 255 or to 65535, whichever holds them; what overshoots a little is clipped."""
    samples = np.asarray(image)
    low, high = float(samples.min()), float(samples.max())
    white = next((top for top in (1.0, 255.0, float(_FULL)) if high <= top * (1 + _OVERSHOOT)), None)
    if white is None or not low >= -_OVERSHOOT * high:
        raise NoPhotoError(f"floats from {low:g} to {high:g}, where 0 to 1, 0 to 255 or 0 to {_FULL} is expected")
    return Image.fromarray(np.rint(np.clip(samples * np.float32(255 / white), 0, 255)).astype(np.uint8))
