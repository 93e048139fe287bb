"""The cache of Hugging Face's hub on this machine: what is in it, and the data sets that are read from it.

A data set is downloaded by huggingface_hub, files that a manifest names alone, and read in the cache where it lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.extras import require_package
from cs_aligner_cli.data.patterns import missing_of_total
from cs_aligner_cli.recipe.paths import HF


def is_cached(repository: str, kind: str = "models") -> bool:
    """Whether the cache knows a repository of a kind (models, datasets)."""
    from huggingface_hub import constants as hub

    return (Path(hub.HF_HUB_CACHE) / f"{kind}--{repository.partition('@')[0].replace('/', '--')}").is_dir()


def data_set_folder(name: str, patterns: Sequence[str], beside: Sequence[str] = ()) -> Path:
    """The folder of a data set's files: ``hf:ORG/NAME``, or ``hf:ORG/NAME@REVISION``; from the cache if all that the
    patterns name is there, else downloaded into it, with what lies ``beside``.

    Raises InputError if it is neither there nor to be had.
    """
    require_package("huggingface_hub", f"data.root: {name}")
    from huggingface_hub import constants as hub
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repository, _, revision = name.removeprefix(HF).partition("@")
    wanted = {"repo_id": repository, "repo_type": "dataset", "revision": revision or None}
    try:
        cached = Path(snapshot_download(**wanted, local_files_only=True))  # type: ignore[call-overload]
        if _is_whole(cached, patterns):
            return cached
    except LocalEntryNotFoundError:
        pass
    try:
        folder = Path(snapshot_download(**wanted, allow_patterns=[*patterns, *beside]))  # type: ignore[call-overload]
        if _is_whole(folder, patterns):
            return folder
        reason = f"some of {', '.join(patterns)} are missing"
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise InputError(
        f"data.root: {name} is not whole in {hub.HF_HUB_CACHE}, and cannot be fetched: {reason}",
        f"On a machine with a network: hf download --repo-type dataset {repository} --local-dir FOLDER; copy FOLDER"
        " here and name it: --set data.root=FOLDER",
    )


def _is_whole(folder: Path, patterns: Sequence[str]) -> bool:
    """Whether every pattern finds files, and of numbered shards all."""
    files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    found = [[file for file in files if fnmatch(file.as_posix(), pattern)] for pattern in patterns]
    return all(part and not missing_of_total(part) for part in found)
