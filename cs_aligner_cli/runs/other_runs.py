"""Trainings and stores of other finished runs: any that hold the same items, or one recipe's with other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import ALIGNED, FROZEN, PAIRWISE_ONLY
from cs_aligner_cli.files.artifact import Artifact, read_json
from cs_aligner_cli.files.checksums import unsealed
from cs_aligner_cli.files.places import same_place
from cs_aligner_cli.recipe.later import without_later_keys
from cs_aligner_cli.recipe.recipe import Recipe

if TYPE_CHECKING:  # they bring numpy and pandas along
    from cs_aligner_cli.data.prepared import Split
    from cs_aligner_cli.stores.embeddings import Store

# The weights of another run that a training begins with.
ORIGIN_FILE = "last.safetensors"
# What makes one configuration, and which of its keys say only where things lie or how fast they come.
_SECTIONS = ("data", "prepare", "encoders", "train", "embed")
_FREE = ("dir", "device", "compile", "shard_rows", "log_steps", "checkpoint_steps", "keep_checkpoints", "keep_states")


class Taken(Artifact):
    """An output of another run, which is taken as it is, by whatever version and recipe it was made."""

    def current(self, seen: dict[Path, tuple[Artifact, dict[str, Any]]] | None = None) -> dict[str, Any]:
        """Its record; InputError if it is not there in full."""
        record = self.record()
        if record is None:
            raise InputError(f"no {self.name} in {self.path}", "Make it first: csalign run, on the recipe of that run")
        return record


def trained_file(run: Path, file: str, key: str) -> Path:
    """A file of a finished training: of a run's aligned towers, or of one training's own folder.

    Raises InputError, naming the recipe key that wants it, if it is not there.
    """
    tried = [folder / file for folder in trainings(run)]
    found = next((path for path in tried if path.is_file()), None)
    if found is None:
        raise InputError(
            f"{key}: {run} holds no trained weights ({tried[0]} is not there)",
            "Expected the folder of a run that has finished training.",
        )
    return found


def trainings(run: Path) -> tuple[Path, Path]:
    """Where the folder of a run may have its training: inside it, or it is itself one, as train/aligned.1."""
    return run / "train" / ALIGNED, run


def finished(folder: Path) -> Artifact:
    """What lies finished in a folder, whatever it was made from."""
    return Artifact("training", folder, "csalign train", {})


def finished_stores(folder: Path, split: str) -> dict[str, Artifact]:
    """The whole stores of a split in another run's folder: frozen, the control, aligned."""
    stores = {
        name: Taken(f"{name} store of {folder}", folder / "embeddings" / name / split, "csalign embed", {})
        for name in (FROZEN, PAIRWISE_ONLY, ALIGNED)
    }
    return {name: store for name, store in stores.items() if store.record() is not None}


def stores_beside(key: str, folders: Sequence[Path], split: str, trained: bool = False) -> dict[str, Artifact]:
    """The finished stores of a split of every run that a recipe key names, as RUN:STORE; ``trained``: less frozen ones.

    They are taken as they are, by whatever version and recipe they were made. Raises InputError where a folder holds
    none, or two have one name.
    """
    found: dict[str, Artifact] = {}
    for folder in folders:
        stores = finished_stores(folder, split)
        if trained:
            stores.pop(FROZEN, None)
        if not stores:
            kind = "aligned store" if trained else "store"
            raise InputError(
                f"{key}: {folder} holds no finished {kind} of split {split!r} in embeddings/",
                f"Name the folder of a finished run, as in runs/NAME, or none: --set {key}=[]",
            )
        for name, store in stores.items():
            if f"{folder.name}:{name}" in found:
                raise InputError(f"{key}: two folders are named {folder.name}", "Rename one of them.")
            found[f"{folder.name}:{name}"] = store
    return found


def refuse_other_items(name: str, store: Store, split: Split) -> None:
    """Raise InputError, with the ``name`` of a store, where it holds other items than this run's split."""
    for modality, column in (("image", "image_id"), ("text", "caption_id")):
        theirs, ours = store.keys(modality)[column].tolist(), split.table(modality)[column].tolist()
        if theirs == ours:
            continue
        shorter = min(len(theirs), len(ours))
        row = next((i for i in range(shorter) if theirs[i] != ours[i]), shorter)
        found, expected = (keys[row] if row < len(keys) else "nothing" for keys in (theirs, ours))
        raise InputError(
            f"{name} holds other items than split {split.name!r} of this run: {column} of row {row} "
            f"is {found}, expected {expected}",
            "Only stores of the same data set and split can be put side by side.",
        )


def runs_of_other_seeds(recipe: Recipe) -> dict[str, dict[str, Artifact]]:
    """The stores of every run in ``gap_report.seeds``, by the name of its folder, then by store.

    Raises InputError where a folder holds no store of the split, differs from this recipe in more than its seed, has a
    seed that is there already, or the name of another.
    """
    seen = {recipe.seed: recipe.folder.name}
    found: dict[str, dict[str, Artifact]] = {}
    for folder in recipe.gap_report.seeds:
        stores = finished_stores(folder, recipe.gap_split)
        if not stores or not (folder / "run.json").is_file():
            raise InputError(
                f"gap_report.seeds: {folder} holds no finished run with stores of split {recipe.gap_split!r}",
                "Name the folder of a finished run, as in runs/NAME.",
            )
        hint = "Run csalign run on its recipe again: it notes what the run is."
        record = unsealed(read_json(folder / "run.json", hint), folder / "run.json", hint)
        ours, theirs = (without_later_keys(one) for one in (recipe.model_dump(mode="json"), record["recipe"]))
        for section in _SECTIONS:
            key = _first_difference(ours[section], theirs.get(section), section)
            if key:
                raise InputError(
                    f"gap_report.seeds: {folder} is no run of this recipe with another seed: {key} differs",
                    "Runs of other recipes can stand beside this one: gap_report.beside.",
                )
        seed = record["seed"]
        if seed in seen:
            raise InputError(
                f"gap_report.seeds: {folder} has seed {seed}, as {seen[seed]} has",
                "Every run counts as one seed: name each once, and not this run itself.",
            )
        if folder.name in seen.values():
            raise InputError(f"gap_report.seeds: two folders are named {folder.name}", "Rename one of them.")
        seen[seed] = folder.name
        found[folder.name] = stores
    return found


def _first_difference(ours: Any, theirs: Any, key: str) -> str:
    """The first key below ``key`` that differs, those apart that say only where or how fast; "" for none."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in (*ours, *(name for name in theirs if name not in ours)):
            if name not in _FREE and (found := _first_difference(ours.get(name), theirs.get(name), f"{key}.{name}")):
                return found
        return ""
    if isinstance(ours, str) and isinstance(theirs, str) and Path(ours).is_absolute() and Path(theirs).is_absolute():
        return "" if same_place(theirs, ours) else key
    return key if ours != theirs else ""
