"""Weights files: trained towers as one self-describing safetensors file, not pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cs_aligner_cli import __version__
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.encoders import Encoder
from cs_aligner_cli.encoders.hub import describe_encoder, difference, same_encoder
from cs_aligner_cli.files.artifact import verify_file, written_aside
from cs_aligner_cli.files.checksums import digest
from cs_aligner_cli.towers.towers import TowerPlan, Towers

# Raised when what is in a weights file changes in form.
FORMAT = 1


def save_weights(path: Path, towers: Towers) -> str:
    """Write the towers' weights as one self-describing safetensors file, atomically; return its checksum."""
    plans: dict[str, Any] = {modality: asdict(plan) for modality, plan in towers.plans.items()}
    # One entry only: safetensors writes several in no fixed order, and equal runs must leave equal bytes.
    return save_tensors(path, towers.own_state(), {"csalign_towers": json.dumps({"format": FORMAT, **plans})})


def described(path: Path, entry: str) -> dict[str, Any]:
    """What a weights file says of itself under an entry, {} where that cannot be read.

    Raises InputError if it is no safetensors file, or of another form.
    """
    metadata = _open(path).metadata() or {}
    try:
        read: dict[str, Any] = json.loads(metadata.get(entry, "{}"))
        form = read.pop("format", FORMAT)
    except (ValueError, TypeError, AttributeError):
        return {}
    if form != FORMAT:
        raise other_form(path, form)
    return read


def read_plans(path: Path) -> dict[str, TowerPlan]:
    """What the towers in a weights file are made of; raise InputError if it is no such file."""
    try:
        plans = {modality: TowerPlan(**plan) for modality, plan in described(path, "csalign_towers").items()}
    except TypeError:
        plans = {}
    if not {*MODALITIES} <= plans.keys():
        raise InputError(f"{path}: is no weights file of this csalign (it does not describe both towers)")
    return plans


def load_towers(
    path: Path,
    encoders: Mapping[str, Encoder],
    dims: Mapping[str, int],
    identities: Mapping[str, dict[str, Any]] | None = None,
    precision: str = "fp32",
) -> Towers:
    """Towers with the weights of a file; raise InputError if they were trained for other dimensions or encoders.

    ``identities`` are those of the encoders at hand, None where they are not known.
    """
    verify_file(path)
    plans = read_plans(path)
    for modality, plan in plans.items():
        if modality in dims and plan.in_dim != dims[modality]:
            raise InputError(
                f"{path}: its {modality} tower takes {plan.in_dim} dimensions, "
                f"but the {modality} embeddings have {dims[modality]}",
                "Use the encoders that it was trained on.",
            )
    for modality, identity in (identities or {}).items():
        own = plans[modality].encoder
        if own is not None and not same_encoder(own, identity):
            raise InputError(
                f"{path}: its {modality} tower was trained on {describe_encoder(own)}, "
                f"but encoders.{modality} is {describe_encoder(identity)}: {difference(own, identity)}",
                "Use the encoders that it was trained on; card.json beside it names them.",
            )
    towers = Towers(plans, encoders, precision=precision)
    load_weights(path, towers)
    return towers


def begin_with(path: Path, towers: Towers, key: str) -> None:
    """Put the weights of another run's file into towers that are to be trained on.

    Raises InputError, with the recipe key that names the run, if its towers are made otherwise, or read other encoders.
    """
    verify_file(path)
    theirs = read_plans(path)
    for modality, plan in towers.plans.items():
        differs = _other_tower(theirs.get(modality), plan)
        if differs:
            raise InputError(
                f"{key}: {path} is of other towers: {modality}: {differs}",
                "What is trained on has the towers and encoders of the run that it begins with; card.json beside its"
                " weights names them.",
            )
    load_weights(path, towers)


def _other_tower(theirs: TowerPlan | None, ours: TowerPlan) -> str:
    """In what a tower is another one, "" where its weights may fit; shapes and adapters show when they are loaded."""
    if theirs is None:
        return "it has none"
    for part in ("tune", "reads", "in_dim", "out_dim"):
        if getattr(theirs, part) != getattr(ours, part):
            return f"{part} is {getattr(theirs, part)} there, and {getattr(ours, part)} here"
    return difference(theirs.encoder, ours.encoder) if theirs.encoder and ours.encoder else ""


def load_weights(path: Path, towers: Towers, checksum: str | None = None) -> None:
    """Put the weights of a file into towers of the same plan.

    Raises InputError if one does not fit, or if the file does not have the checksum, where one is given.
    """
    try:
        towers.load_own_state(read_tensors(path, checksum))
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit the towers: {str(error).splitlines()[-1].strip()}") from None


def other_form(path: Path, form: object, own: int = FORMAT) -> InputError:
    """The error of a file that another version wrote in another form than our ``own``."""
    return InputError(
        f"{path}: is in form {form}; this csalign ({__version__}) reads form {own}",
        "Use the csalign that wrote it, or train again.",
    )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> str:
    """Write tensors, atomically; return the checksum of the file."""
    with written_aside(path) as aside:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, aside, metadata)
        return digest(aside)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise InputError(f"{path}: cannot be read as safetensors: {error}") from None


def read_tensors(path: Path, checksum: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name.

    Raises InputError if it is none, or if it does not have the checksum, where one is given.
    """
    if checksum is not None and path.is_file() and digest(path) != checksum:
        raise InputError(f"{path}: is damaged: its content does not have the checksum it was written with")
    file = _open(path)
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safe_open handle is no dict)
