"""Disks that do not take what is written: full, over a quota, read-only; whoever was writing, the file is named."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cs_aligner_cli.common.errors import CsalignError, InputError

# Writing failed for a reason that lies with the disk; these errors can also be those of reading another file.
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_UNREADABLE_TOO = (errno.EACCES, errno.EPERM, errno.EIO)
# Libraries below Python say so in words of their own.
_UNWRITABLE_TEXT = re.compile(
    r"No space left on device|Disk quota exceeded|Read-only file system|File too large|"
    r"(?P<short>\d+ requested and \d+ written)"
)
_FREE = "Free some room there (df -h), or name another folder; then the same command goes on where it stopped."


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tell a failure of the disk inside (full, over quota, read-only) as such, and where; other errors pass."""
    try:
        yield
    except CsalignError:
        raise
    except Exception as error:
        named = str(getattr(error, "filename", None) or path)
        reason = _unwritable(error, named.startswith(str(path)))
        if reason is None:
            raise
        raise InputError(f"{named}: cannot be written: {reason}", _FREE) from None


def _unwritable(error: Exception, is_ours: bool) -> str | None:
    """What the disk has against writing, None where an error is about something else."""
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number in (*_UNWRITABLE, *(_UNREADABLE_TOO if is_ours else ())):
        return os.strerror(number)
    found = _UNWRITABLE_TEXT.search(str(error))
    if found is None:
        return None
    return "no space left on device, or a quota is used up" if found["short"] else found[0]
