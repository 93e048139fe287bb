"""Image files, loose or inside a tar: is this a whole image of sane size, and what is in it."""

from __future__ import annotations

import hashlib
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from cs_aligner_cli.common.extras import installed
from cs_aligner_cli.data.pictures import NoPhotoError, as_rgb, is_turned, normalised

ABSENT = "no such file"
# The ways in which PIL's decoders, of all formats and versions, say that a file is damaged.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    struct.error,
    zlib.error,
)
# Formats in which photos come. PIL knows more, and hands some (EPS) to other programs, which run what they hold.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
_NO_HEIC = "HEIC, which needs pillow-heif: pip install 'cs-aligner-cli[heic]', or save it as JPEG"
# A queue of so many files keeps every core busy, and a list of millions out of the queue.
_QUEUED = 4096
# No picture of a data set comes near this; what does is no picture, or means to fill the memory.
MAX_FILE_BYTES = 256 * 2**20
# Preprocessing scales the shorter side up to the encoder's, and the longer one with it: a line of one pixel would fill
# the memory. With this no encoder of 448 pixels makes more than 40 million of any picture.
MAX_ASPECT = 200
# The locator of a tar's member: where its bytes lie in the shard, so that it is read without looking for it.
_MEMBER = re.compile(r"(.+?\.tar)::(.+)@([0-9]{1,18})\+([0-9]{1,18})", re.DOTALL)


# Width and height that a picture must at least have, as a function of those it has.
Least: TypeAlias = Callable[[int, int], tuple[int, int]]
_JPEG = b"\xff\xd8"


class BadImageError(ValueError):
    """A file is no whole image of sane size; the message says why."""


@dataclass(frozen=True)
class Seen:
    """What a look at an image file showed, or why it is no use.

    ``digest`` is of its bytes, 64 bits; ``dhash`` is of what the picture looks like, see ``dhash``; ``conversions`` are
    what ``pictures.normalised`` did and found.
    """

    width: int = 0
    height: int = 0
    digest: int = 0
    dhash: int = 0
    conversions: tuple[str, ...] = ()
    reason: str = ""


@cache
def _formats() -> list[str]:
    Image.init()
    if installed("pillow_heif"):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return [name for name in _FORMATS if name in Image.OPEN]


class Picture(NamedTuple):
    """A decoded picture, upright and of 8 bits a channel, in the mode of its file; its bytes; what was converted."""

    image: Image.Image
    content: bytes
    conversions: tuple[str, ...]


def decode(content: bytes, least: Least | None = None) -> Picture:
    """The picture that a file's bytes hold; raise BadImageError if they are no whole photo of sane size and shape.

    With ``least``, which width and height a picture of some must at least have, a JPEG is decoded at 1/2, 1/4 or 1/8
    of its size where that is no less.
    """
    try:
        with Image.open(BytesIO(content), formats=_formats()) as image:
            _refuse_shape(*image.size)
            if least is not None:
                image.draft(image.mode, least(*image.size))
            upright, conversions = normalised(image)
            return Picture(upright, content, conversions)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UnidentifiedImageError:
        heic = content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc")
        raise BadImageError(_NO_HEIC if heic and not installed("pillow_heif") else "not an image") from None
    except BadImageError:
        raise
    except NoPhotoError as error:
        raise BadImageError(str(error)) from None
    except _DAMAGED as error:
        raise BadImageError(f"damaged: {error}") from None


def _refuse_shape(width: int, height: int) -> None:
    """What it would take to decode a picture, and to scale it, is known from its header."""
    if width * height > (Image.MAX_IMAGE_PIXELS or 2**63):
        raise BadImageError(f"more than {Image.MAX_IMAGE_PIXELS} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImageError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")


def member_locator(shard: str, member: str, offset: int, size: int) -> str:
    """The locator of a tar's member, which ``read_bytes`` takes in place of a file's path."""
    return f"{shard}::{member}@{offset}+{size}"


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, or by its locator of a tar's member or a table's cell; BadImageError if there are none."""
    file, offset, size = path, 0, -1
    if member := _MEMBER.fullmatch(str(path)):
        file, offset, size = Path(member[1]), int(member[3]), int(member[4])
    try:
        if "::" in str(path) and not member:
            from cs_aligner_cli.data.arrow_images import read_cell  # pandas and pyarrow, which few pictures need

            if (cell := read_cell(str(path))) is not None:
                return _sound(cell)
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")
        if (status.st_size if size < 0 else size) > MAX_FILE_BYTES:
            raise BadImageError(f"more than {MAX_FILE_BYTES >> 20} MiB")
        with file.open("rb") as handle:
            handle.seek(offset)
            content = handle.read(size)
    except (FileNotFoundError, NotADirectoryError):
        raise BadImageError(ABSENT) from None
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror}") from None
    if len(content) < size:
        raise BadImageError(f"the shard ends after {len(content)} of its {size} bytes")
    return _sound(content)


def _sound(content: bytes) -> bytes:
    if not content:
        raise BadImageError("an empty file")
    if len(content) > MAX_FILE_BYTES:
        raise BadImageError(f"more than {MAX_FILE_BYTES >> 20} MiB")
    return content


def read_image(path: Path, least: Least | None = None) -> Picture:
    """The picture of a file or a tar's member, as ``decode``; raise BadImageError if it is no whole photo."""
    return decode(read_bytes(path), least)


def is_plain_jpeg(content: bytes) -> bool:
    """Whether bytes begin as a JPEG of sane size, upright, in RGB or grey: what any decoder makes a picture of."""
    if not content.startswith(_JPEG):
        return False
    try:
        with Image.open(BytesIO(content), formats=["JPEG"]) as image:
            _refuse_shape(*image.size)
            return image.mode in ("RGB", "L") and not is_turned(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, *_DAMAGED):  # BadImageError is a ValueError
        return False


def look_at_all(root: Path, locators: Iterable[str], advance: Callable[[], None]) -> Iterator[Seen]:
    """Decode every file under ``root`` once, on all cores; yields in the order of ``locators``."""
    waiting = iter(locators)
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        # Between its warning and its error PIL leaves a factor of two; here the smaller limit holds.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # an odd EXIF block is no news for the user
        while block := list(islice(waiting, _QUEUED)):
            for seen in pool.map(lambda locator: _look_at(root, locator), block):
                yield seen
                advance()


def _look_at(root: Path, locator: str) -> Seen:
    try:
        image, content, conversions = read_image(root / locator)
    except (BadImageError, ValueError) as error:  # ValueError: a NUL character in the path
        return Seen(reason=str(error))
    return Seen(image.width, image.height, digest(content), dhash(image), conversions)


def digest(content: bytes) -> int:
    """64 bits by which equal contents are found."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def dhash(image: Image.Image) -> int:
    """The difference hash (Krawetz 2013), 64 bits: is each cell of 8 x 9 grey ones brighter than its left neighbour.

    Pictures that were scaled, compressed anew or slightly recoloured differ in few bits.
    """
    grey = np.asarray(as_rgb(image).convert("L").resize((9, 8), Image.Resampling.BOX), np.uint8)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")
