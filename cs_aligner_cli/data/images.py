"""Image files: is this a whole image of sane size, and what is in it."""

from __future__ import annotations

import hashlib
import stat
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

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
# A queue of so many files keeps every core busy, and a list of millions out of the queue.
_QUEUED = 4096


class BadImageError(ValueError):
    """A file is no whole image of sane size; the message says why."""


@dataclass(frozen=True)
class Seen:
    """What a look at an image file showed: its size and a digest of its bytes, or why it is no use."""

    width: int = 0
    height: int = 0
    digest: str = ""
    reason: str = ""


def decode(content: bytes) -> Image.Image:
    """The RGB picture that a file's bytes hold; raise BadImageError if they are no whole image."""
    try:
        with Image.open(BytesIO(content)) as image:
            return image.convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImageError(f"more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UnidentifiedImageError:
        raise BadImageError("not an image") from None
    except _DAMAGED as error:
        raise BadImageError(f"damaged: {error}") from None


def read_image(path: Path) -> tuple[Image.Image, bytes]:
    """The RGB picture and the bytes of a file; raise BadImageError if it is no whole image."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadImageError("a folder" if stat.S_ISDIR(status.st_mode) else "no regular file")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise BadImageError(ABSENT) from None
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror}") from None
    if not content:
        raise BadImageError("an empty file")
    return decode(content), content


def look_at_all(paths: Sequence[Path], advance: Callable[[], None]) -> Iterator[Seen]:
    """Decode every file once, on all cores; yields in the order of ``paths``."""
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        # Between its warning and its error PIL leaves a factor of two; here the smaller limit holds.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # an odd EXIF block is no news for the user
        for start in range(0, len(paths), _QUEUED):
            for seen in pool.map(_look_at, paths[start : start + _QUEUED]):
                yield seen
                advance()


def _look_at(path: Path) -> Seen:
    try:
        image, content = read_image(path)
    except (BadImageError, ValueError) as error:  # ValueError: a NUL character in the path
        return Seen(reason=str(error))
    return Seen(image.width, image.height, digest(content))


def digest(content: bytes) -> str:
    """A short digest by which equal contents are found."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()
