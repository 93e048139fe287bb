"""Training state on disk: the last state to resume from; safetensors, not pickle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.optim import Optimizer

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.files.artifact import read_json, write_bytes, write_json
from cs_aligner_cli.files.checksums import digest, sealed, unsealed
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.towers.weights import other_form, read_tensors, save_tensors
from cs_aligner_cli.training.memory_bank import Memory
from cs_aligner_cli.training.metrics_log import LogMark
from cs_aligner_cli.training.scheduled_objective import ObjectiveState

# Raised when TrainingState, or what lies in its tensors' file, changes in form.
FORMAT = 2
_STATE = "last.json"
# What a state's file says of itself and of its tensors' file.
_ABOUT_FILES = ("format", "tensors", "checksum")


class Trained(Protocol):
    """What a state is kept of: towers, or a matching head."""

    def own_state(self) -> dict[str, Tensor]:
        """The tensors that training changes."""
        ...

    def load_own_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of ``own_state``."""
        ...


class Best(BaseModel):
    """The best validation so far: mean R@1 of both directions, its step, both values, its weights' checksum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float = -1.0
    step: int = 0
    val: dict[str, float] = {}
    checksum: str | None = None


class TrainingState(BaseModel):
    """What is in force after ``step`` steps, beside the tensors of towers, optimizer and memory.

    The step is the sampler's position and, with the seed, the state of all random generators: batches and draws are
    functions of it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = 0
    log: LogMark = LogMark()
    objective: ObjectiveState = ObjectiveState()
    best: Best = Best()
    scaler: dict[str, int | float] = {}


def is_due(spec: Train, done: int, saved: float) -> bool:
    """Whether a state is to be saved within an epoch, after ``done`` steps; ``saved``: when the last one was."""
    by_number = spec.checkpoint_steps is not None and done % spec.checkpoint_steps == 0
    return by_number or time.monotonic() - saved > 60 * spec.checkpoint_minutes


def save_state(
    folder: Path, trained: Trained, optimizer: Optimizer, memory: Memory, state: TrainingState, keep: int = 2
) -> None:
    """Write all that resuming needs; the ``keep`` newest states stay, so that a damaged one costs little.

    ``last.json`` commits: until it is replaced, the former state stands.
    """
    tensors = {f"towers.{name}": value for name, value in trained.own_state().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    tensors |= {f"memory.{modality}": rows for modality, rows in memory.rows.items()}
    tensors |= {f"memory_features.{modality}": rows for modality, rows in memory.features.items()}
    tensors |= {f"memory_pairs.{'/'.join(edge)}": places for edge, places in memory.pairs.items()}
    tensors |= {f"memory_averages.{name}": average for name, average in memory.averages.items()}
    name = _name(state.step, "safetensors")
    checksum = save_tensors(folder / name, tensors, {})
    if (folder / _STATE).is_file():
        former = (folder / _STATE).read_bytes()
        write_bytes(folder / _name(_step_of(former), "json"), former)
    about = {"format": FORMAT, "tensors": name, "checksum": checksum}
    write_json(folder / _STATE, sealed({**state.model_dump(mode="json"), **about}))
    # What a run that was killed left of later steps, which this one has not reached yet, is no state to go on from.
    others = sorted(path for path in folder.glob("last-*.safetensors") if path.name != name)
    earlier = [path for path in others if path.name < name]
    for old in {*others} - {*earlier[max(0, len(earlier) - keep + 1) :]}:
        old.unlink()
    kept = {path.stem for path in folder.glob("last-*.safetensors") if path.name != name}
    for old in folder.glob("last-*.json"):
        if old.stem not in kept:
            old.unlink()


def states_beyond(folder: Path, keep: int) -> list[Path]:
    """The files of all states in a folder but the ``keep`` newest."""
    about = [*folder.glob(_STATE), *sorted(folder.glob("last-*.json"), reverse=True)]
    tensors = sorted(folder.glob("last-*.safetensors"), reverse=True)
    return [*about[keep:], *tensors[keep:]]


def load_state(
    folder: Path,
    trained: Trained,
    optimizer: Optimizer,
    memory: Memory,
    warn: Callable[[str], None] = lambda message: None,
) -> TrainingState | None:
    """Restore all tensors from the newest whole state in ``folder``; return the rest of it, None if there is none.

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
        _restore(read_tensors(folder / state["tensors"]), trained, optimizer, memory)
        return TrainingState.model_validate({key: value for key, value in state.items() if key not in _ABOUT_FILES})
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
    if isinstance(read, dict) and isinstance(read.get("format"), int) and read["format"] != FORMAT:
        raise other_form(path, read["format"], FORMAT)
    state = unsealed(read, path)
    tensors = path.with_name(state["tensors"])
    if not tensors.is_file():
        raise InputError(f"{tensors}: is missing")
    if digest(tensors) != state["checksum"]:
        raise InputError(f"{tensors}: is damaged: its content does not have the checksum it was written with")
    return state


def _restore(tensors: dict[str, Tensor], trained: Trained, optimizer: Optimizer, memory: Memory) -> None:
    kept = {"memory": memory.rows, "memory_features": memory.features, "memory_averages": memory.averages}
    own_state: dict[str, Tensor] = {}
    device = next(iter(trained.own_state().values())).device
    optimizer_state: dict[int, dict[str, Tensor]] = {}
    # What is read lies where the file has it, at odd addresses, and products of it can differ from those of tensors
    # that torch made in their last digits: so what stays in use is copied.
    for name, tensor in tensors.items():
        owner, rest = name.split(".", 1)
        if owner == "towers":
            own_state[rest] = tensor
        elif owner == "memory_pairs":
            first, second = rest.split("/")
            memory.pairs[first, second] = tensor.to(device, copy=True)
        elif owner in kept:
            kept[owner][rest] = tensor.to(device, copy=True)
        else:
            index, key = rest.split(".", 1)
            optimizer_state.setdefault(int(index), {})[key] = tensor.clone()
    trained.load_own_state(own_state)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": optimizer_state})
