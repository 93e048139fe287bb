"""Files against the checksums that their manifest states."""

from __future__ import annotations

import hashlib

from cs_aligner_cli.common.console import Console
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.manifest_base import OnDisk

_BLOCK = 2**20


def check_checksums(manifest: OnDisk, console: Console) -> None:
    """Raise InputError for a file that is not the one the manifest means; absent files are left to the readers."""
    assert manifest.root is not None
    files = {manifest.root / name: wanted for name, wanted in manifest.checksums.items()}
    there = {path: wanted for path, wanted in files.items() if path.is_file()}
    with console.progress("checking checksums (MiB)", sum(path.stat().st_size >> 20 for path in there)) as advance:
        for path, wanted in there.items():
            digest = hashlib.md5(usedforsecurity=False) if len(wanted) == 32 else hashlib.sha256()
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
                    advance(len(block) // _BLOCK)
            if digest.hexdigest() != wanted:
                raise InputError(
                    f"{path}: has the {digest.name} {digest.hexdigest()}, but the manifest expects {wanted}",
                    "Fetch the file again, or correct the manifest's checksums.",
                )
