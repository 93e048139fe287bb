"""Training state on disk: the last state to resume from, the best weights to use; safetensors, not pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer

from cs_aligner_cli.artifacts import read_json, write_json, written_aside
from cs_aligner_cli.encoders import Encoder
from cs_aligner_cli.encoders.hub import difference, same_encoder, told
from cs_aligner_cli.errors import InputError
from cs_aligner_cli.layout import MODALITIES
from cs_aligner_cli.memory import Memory
from cs_aligner_cli.towers import TowerPlan, Towers

_STATE = "last.json"


def save_weights(path: Path, towers: Towers) -> None:
    """Write the towers' weights as one self-describing safetensors file, atomically."""
    plans = {modality: asdict(plan) for modality, plan in towers.plans.items()}
    # One entry only: safetensors writes several in no fixed order, and equal runs must leave equal bytes.
    _save(path, towers.own_state(), {"csalign_towers": json.dumps(plans)})


def read_plans(path: Path) -> dict[str, TowerPlan]:
    """What the towers in a weights file are made of; raise InputError if it is no such file."""
    described = (_open(path).metadata() or {}).get("csalign_towers", "{}")
    try:
        plans = {modality: TowerPlan(**plan) for modality, plan in json.loads(described).items()}
    except (ValueError, TypeError, AttributeError):
        plans = {}
    if set(plans) != set(MODALITIES):
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
    plans = read_plans(path)
    for modality, plan in plans.items():
        if plan.in_dim != dims[modality]:
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


def load_weights(path: Path, towers: Towers) -> None:
    """Put the weights of a file into towers of the same plan; raise InputError if one does not fit."""
    try:
        towers.load_own_state(_tensors(path))
    except RuntimeError as error:
        raise InputError(f"{path}: its weights do not fit the towers: {str(error).splitlines()[-1].strip()}") from None


def save_state(folder: Path, towers: Towers, optimizer: Optimizer, memory: Memory, state: dict[str, Any]) -> None:
    """Write all that resuming needs. The JSON file commits: until it is replaced, the former state stands."""
    tensors = {f"towers.{name}": value for name, value in towers.own_state().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    tensors |= {f"memory.{modality}": rows for modality, rows in memory.rows.items()}
    name = f"last-{state['step']:08d}.safetensors"
    _save(folder / name, tensors, {})
    write_json(folder / _STATE, {**state, "tensors": name})
    for former in folder.glob("last-*.safetensors"):
        if former.name != name:
            former.unlink()


def load_state(folder: Path, towers: Towers, optimizer: Optimizer, memory: Memory) -> dict[str, Any] | None:
    """Restore towers, optimizer and memory from the last state in ``folder``; return its JSON, or None."""
    if not (folder / _STATE).is_file():
        return None
    state: dict[str, Any] = read_json(folder / _STATE)
    towers_state: dict[str, Tensor] = {}
    optimizer_state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _tensors(folder / state["tensors"]).items():
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
    return state


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    with written_aside(path) as aside:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, aside, metadata)


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
