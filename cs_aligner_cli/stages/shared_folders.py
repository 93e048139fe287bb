"""Folders that a recipe names for what several runs may share: nothing else that lies there is replaced."""

from __future__ import annotations

from pathlib import Path

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import RECORD, Artifact, read_json
from cs_aligner_cli.files.locks import HOLDER, LOCK
from cs_aligner_cli.recipe.paths import RUN, run_folder
from cs_aligner_cli.recipe.recipe import Recipe


def refuse_run_folders(recipe: Recipe) -> None:
    """Raise InputError if ``data.dir`` or ``embed.dir`` names the whole folder of a run, not what is shared in it."""
    named = (("data.dir", recipe.data.dir, "data"), ("embed.dir", recipe.embed.dir, "embeddings/frozen"))
    for key, folder, inside in named:
        if folder is not None and (folder == recipe.folder or _is_run(folder)):
            by_name = folder == run_folder(folder.name)
            meant = f"{RUN}{folder.name}/{inside}" if by_name else str(folder / inside)
            raise InputError(
                f"{key}: {folder} is the folder of a whole run", f"Name what is shared in it: {key}={meant}"
            )


def refuse_foreign(artifact: Artifact, key: str) -> None:
    """Raise InputError, with the recipe ``key`` that names its folder, if an output would take the place of anything
    but an earlier one of its kind."""
    folder = artifact.path
    if not folder.is_dir() or all(path.name in (LOCK, HOLDER) for path in folder.iterdir()):
        return
    kind = _kind(folder / RECORD) if (folder / RECORD).is_file() else ""
    if kind not in (None, artifact.name):
        found = f"the {kind}" if kind else "other files"
        raise InputError(
            f"{key}: {folder} holds {found}, which the {artifact.name} would replace",
            "Name a folder that is not there yet, or an empty one.",
        )


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, by its record or its trainings."""
    return (folder / "run.json").is_file() or any((folder / "train").glob(f"*/{RECORD}"))


def _kind(file: Path) -> str | None:
    """What a record says that its output is; None if it is damaged, as --force may replace it."""
    try:
        record = read_json(file)
    except InputError:
        return None
    return record.get("name") if isinstance(record, dict) else None
