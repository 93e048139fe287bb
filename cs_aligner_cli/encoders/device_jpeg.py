"""JPEGs decoded by nvJPEG, resized and cropped on a CUDA device; what is no plain JPEG goes through PIL."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.crops import Crop
from cs_aligner_cli.data.images import decode, is_plain_jpeg

_FILTERS = {
    int(Image.Resampling.BILINEAR): InterpolationMode.BILINEAR,
    int(Image.Resampling.BICUBIC): InterpolationMode.BICUBIC,
}
# Photos lie on the device at their full size, 36 MB for one of 12 megapixels: so many at once.
_AT_ONCE = 16
_INSTEAD = "Leave embed.jpeg: exact, or reduced, which needs no such device."


def require_device_jpeg(device: torch.device) -> None:
    """Raise InputError where no JPEG can be decoded on the device."""
    if device.type != "cuda":
        raise InputError(f"embed.jpeg: device decodes on a CUDA device, but embed runs on: {device.type}", _INSTEAD)
    content = BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    try:
        _decoded([content.getvalue()], device)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"embed.jpeg: device: this build of torchvision cannot: {reason}", _INSTEAD) from None


def device_crops(contents: Sequence[bytes], crop: Crop, device: torch.device) -> list[Tensor | None]:
    """The crop (height, width, 3) uint8 on the device of every file that is a plain JPEG, None of others."""
    plain = [number for number, content in enumerate(contents) if is_plain_jpeg(content)]
    found: list[Tensor | None] = [None] * len(contents)
    for part in (plain[start : start + _AT_ONCE] for start in range(0, len(plain), _AT_ONCE)):
        for number, picture in zip(part, _whole_or_none([contents[n] for n in part], device), strict=True):
            found[number] = None if picture is None else _cropped(picture, crop)
    return found


def pil_crop(content: bytes, crop: Crop) -> Tensor:
    """The crop (height, width, 3) uint8 of a file's bytes; raise BadImageError if they are no whole photo."""
    return torch.from_numpy(crop.of(decode(content).image).copy())


def can_resize(crop: Crop) -> bool:
    """Whether a device has the filter of a crop."""
    return crop.resample in _FILTERS


def _whole_or_none(contents: Sequence[bytes], device: torch.device) -> Sequence[Tensor | None]:
    """The pictures of some files, None of one that nvJPEG does not read: PIL may, or says what is wrong with it."""
    try:
        return _decoded(contents, device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        if len(contents) == 1:
            return [None]
        return [picture for content in contents for picture in _whole_or_none([content], device)]


def _decoded(contents: Sequence[bytes], device: torch.device) -> list[Tensor]:
    tensors = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    found: list[Tensor] = decode_jpeg(tensors, ImageReadMode.RGB, device)
    return found


def _cropped(picture: Tensor, crop: Crop) -> Tensor:
    width, height = crop.size_of(picture.shape[2], picture.shape[1])
    sized: Tensor = resize(picture, [height, width], _FILTERS[crop.resample], antialias=True)
    left, top = crop.corner(width, height)
    return sized[:, top : top + crop.height, left : left + crop.width].permute(1, 2, 0)
