"""Training state on disk: the last state to resume from, the best weights to use; safetensors, not pickle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from cs_aligner_cli import __version__
from cs_aligner_cli.artifacts import read_json, verify_file, write_bytes, write_json, written_aside
from cs_aligner_cli.checksums import digest, sealed, unsealed
from cs_aligner_cli.encoders import Encoder
from cs_aligner_cli.encoders.hub import difference, same_encoder, told
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.layout import MODALITIES
from cs_aligner_cli.memory import Memory
from cs_aligner_cli.towers import TowerPlan, Towers

_STATE = "last.json"
# Raised when what is in a weights file or a training state changes in form.
_FORMAT = 1
# What a state's file says of itself and of its tensors' file.
_ABOUT_FILES = ("format", "tensors", "checksum")


def save_weights(path: Path, towers: Towers) -> str:
    """Write the towers' weights as one self-describing safetensors file, atomically; return its checksum."""
    plans: dict[str, Any] = {modality: asdict(plan) for modality, plan in towers.plans.items()}
    # One entry only: safetensors writes several in no fixed order, and equal runs must leave equal bytes.
    return _save(path, towers.own_state(), {"csalign_towers": json.dumps({"format": _FORMAT, **plans})})


def read_plans(path: Path) -> dict[str, TowerPlan]:
    """What the towers in a weights file are made of; raise InputError if it is no such file."""
    described = (_open(path).metadata() or {}).get("csalign_towers", "{}")
    try:
        read = json.loads(described)
        form = read.pop("format", _FORMAT)
        plans = {modality: TowerPlan(**plan) for modality, plan in read.items()} if form == _FORMAT else {}
    except (ValueError, TypeError, AttributeError):
        form, plans = _FORMAT, {}
    if form != _FORMAT:
        raise _other_form(path, form)
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
                f"{path}: its {modality} tower was trained on {told(own)}, "
                f"but encoders.{modality} is {told(identity)}: {difference(own, identity)}",
                "Use the encoders that it was trained on; card.json beside it names them.",
            )
    towers = Towers(plans, encoders, precision=precision)
    load_weights(path, towers)
    return towers


def load_weights(path: Path, towers: Towers, checksum: str | None = None) -> None:
    """Put the weights of a file into towers of the same plan.

    Raises InputError if one does not fit, or if the file does not have the checksum, where one is given.
    """
    if checksum is not None and path.is_file() and digest(path) != checksum:
        raise InputError(f"{path}: is damaged: its content does not have the checksum it was written with")
    try:
        towers.load_own_state(_tensors(path))
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit the towers: {str(error).splitlines()[-1].strip()}") from None


def save_state(
    folder: Path, towers: Towers, optimizer: Optimizer, memory: Memory, state: dict[str, Any], keep: int = 2
) -> None:
    """Write all that resuming needs; the ``keep`` newest states stay, so that a damaged one costs little.

    ``state["step"]`` is the sampler's position and, with the seed, the state of all random generators: batches and
    draws are functions of it. ``last.json`` commits: until it is replaced, the former state stands.
    """
    tensors = {f"towers.{name}": value for name, value in towers.own_state().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    tensors |= {f"memory.{modality}": rows for modality, rows in memory.rows.items()}
    name = _name(state["step"], "safetensors")
    checksum = _save(folder / name, tensors, {})
    if (folder / _STATE).is_file():
        former = (folder / _STATE).read_bytes()
        write_bytes(folder / _name(_step_of(former), "json"), former)
    write_json(folder / _STATE, sealed({**state, "format": _FORMAT, "tensors": name, "checksum": checksum}))
    # What a run that was killed left of later steps, which this one has not reached yet, is no state to go on from.
    others = sorted(path for path in folder.glob("last-*.safetensors") if path.name != name)
    earlier = [path for path in others if path.name < name]
    for old in {*others} - {*earlier[max(0, len(earlier) - keep + 1) :]}:
        old.unlink()
    kept = {path.stem for path in folder.glob("last-*.safetensors") if path.name != name}
    for old in folder.glob("last-*.json"):
        if old.stem not in kept:
            old.unlink()


def load_state(
    folder: Path,
    towers: Towers,
    optimizer: Optimizer,
    memory: Memory,
    warn: Callable[[str], None] = lambda message: None,
) -> dict[str, Any] | None:
    """Restore all from the newest whole state in ``folder``; return its JSON, None if there is none.

    Instead of a damaged state the one before it is taken, with a warning, which ends the same, only later. Raises
    InputError if no state is whole, or if it is of another form.
    """
    written = [*folder.glob(_STATE), *sorted(folder.glob("last-*.json"), reverse=True)]
    damages: list[str] = []
    for path in written:
        try:
            state = _whole_state(path)
        except InputError as error:
            damages.append(str(error))
            continue
        for damage in damages:
            warn(f"{damage}; the state of step {state['step']} before it is taken")
        _restore(_tensors(folder / state["tensors"]), towers, optimizer, memory)
        return {key: value for key, value in state.items() if key not in _ABOUT_FILES}
    if damages:
        raise InputError(damages[0], f"No earlier state of this run is whole. Remove {folder} to begin it anew.")
    return None


def _name(step: int, suffix: str) -> str:
    return f"last-{step:08d}.{suffix}"


def _step_of(state: bytes) -> int:
    """The step of a state that is being replaced; a damaged one is as old as can be."""
    try:
        return int(json.loads(state)["step"])
    except (ValueError, TypeError, KeyError):
        return 0


def _whole_state(path: Path) -> dict[str, Any]:
    """The JSON of a state whose tensors are whole, too; InputError names the file that is not."""
    read = read_json(path)
    if isinstance(read, dict) and isinstance(read.get("format"), int) and read["format"] != _FORMAT:
        raise _other_form(path, read["format"])
    state = unsealed(read, path)
    tensors = path.with_name(state["tensors"])
    if not tensors.is_file():
        raise InputError(f"{tensors}: is missing")
    if digest(tensors) != state["checksum"]:
        raise InputError(f"{tensors}: is damaged: its content does not have the checksum it was written with")
    return state


def _restore(tensors: dict[str, Tensor], towers: Towers, optimizer: Optimizer, memory: Memory) -> None:
    towers_state: dict[str, Tensor] = {}
    optimizer_state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, rest = name.split(".", 1)
        if owner == "towers":
            towers_state[rest] = tensor
        elif owner == "memory":
            memory.rows[rest] = tensor.to(towers.log_logit_scale.device)
        else:
            index, key = rest.split(".", 1)
            optimizer_state.setdefault(int(index), {})[key] = tensor
    towers.load_own_state(towers_state)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": optimizer_state})


def _other_form(path: Path, form: object) -> InputError:
    return InputError(
        f"{path}: is in form {form}; this csalign ({__version__}) reads form {_FORMAT}",
        "Use the csalign that wrote it, or train again.",
    )


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> str:
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


def _tensors(path: Path) -> dict[str, Tensor]:
    file = _open(path)
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (a safe_open handle is no dict)
