"""Weights files as people have them: plain state dicts out of what wraps them, and a clear word on what is none."""

from __future__ import annotations

import struct
import warnings
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cs_aligner_cli.common.errors import InputError

# Under which training programs keep their weights: the averaged ones first, as timm takes them.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module", "weights", "params")
_LFS = b"version https://git-lfs"
# Beside the weights in torch's averaged models.
_NO_WEIGHTS = ("n_averaged",)
_NAMED = 6
# What torch and pickle raise on what they cannot make sense of.
_NOT_READ = (
    *(RuntimeError, ValueError, LookupError, EOFError, OSError, AttributeError, TypeError),
    *(ArithmeticError, AssertionError, struct.error),
)
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".json", ".txt", ".model", ".index")

# What draws weights, as far as torch lets a mode see it, and what costs as much (the end of trunc_normal_).
_DRAWING = (
    *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),
    *(Tensor.normal_, Tensor.uniform_, Tensor.erfinv_),
)


class WeightsToCome(TorchFunctionMode):
    """Inside, parameters become NaN where they would be drawn: for models whose weights are all loaded afterwards.

    Drawing takes longer than loading (ViT-B-32: 1.4 s of 3.2); and a weight that nothing loads shows.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWING:
            weight = args[0] if args else kwargs["tensor"]
            if isinstance(weight, nn.Parameter):
                weight.detach().fill_(float("nan"))
                return weight
        return func(*args, **kwargs)


def weights_in(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files of a folder itself that match a pattern (in small letters) in any case: by pattern, then by name."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [file for pattern in patterns for file in files if fnmatchcase(file.name.lower(), pattern)]


def refuse_placeholders(folder: Path, key: str) -> None:
    """Raise InputError if a file of a model's folder is not the file itself but what a download left in its place."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix.lower() in _SUFFIXES:
            refuse_placeholder(file, key)


def refuse_placeholder(file: Path, key: str) -> None:
    """Raise InputError for a Git LFS pointer, an HTML page or an empty file, whatever the name promises."""
    with file.open("rb") as handle:
        head = handle.read(512)
    if head.startswith(_LFS):
        what = (
            "weights" if file.suffix.lower() in (".safetensors", ".bin", ".pth", ".pt", ".ckpt") else "the file itself"
        )
        raise InputError(
            f"{key}: {file} is a Git LFS pointer, not {what}",
            "In the folder that was cloned: git lfs pull (git lfs install comes first where it is new).",
        )
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        raise InputError(
            f"{key}: {file} is a web page, not what its name says: a download went wrong",
            "Fetch it again, with the address of the file itself; some models need you to be logged in.",
        )
    if not head:
        raise InputError(f"{key}: {file} is empty: a download went wrong", "Fetch it again.")


def read_state_dict(file: Path, key: str) -> dict[str, Tensor]:
    """The tensors by name that a .safetensors file or a torch checkpoint holds, out of what they are nested in.

    Raises InputError for anything else: placeholders, archives of TorchScript, pickles with Python objects, damage.
    """
    refuse_placeholder(file, key)
    if file.suffix.lower() == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{key}: {file} is no safetensors file, or damaged: {error}") from None
    _refuse_torchscript(file, key)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on pickle protocols; what cannot be read is refused below
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise not_plain(file, key) from None
    except _NOT_READ as error:
        raise InputError(
            f"{key}: {file} is no checkpoint of torch, or damaged: {str(error).partition(chr(10))[0]}"
        ) from None
    return _unnested(checkpoint, file, key)


def not_plain(file: Path, key: str) -> InputError:
    """The refusal of a file that torch does not read as plain weights."""
    with file.open("rb") as handle:
        pickled = zipfile.is_zipfile(file) or handle.read(1) == b"\x80"
    if not pickled:
        return InputError(f"{key}: {file} is no checkpoint of torch, or damaged")
    return InputError(
        f"{key}: {file} holds Python objects; csalign reads plain weights only",
        "A pickle with objects can run any program. Where the file was made, save the weights alone: "
        "safetensors.torch.save_file(model.state_dict(), FILE), or torch.save(model.state_dict(), FILE).",
    )


def _refuse_torchscript(file: Path, key: str) -> None:
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names) or any("/code/" in name for name in names):
        raise InputError(
            f"{key}: {file} is a TorchScript (JIT) archive, a program with weights inside",
            "If you trust where it is from, take the weights out of it: "
            "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), NEW), and name NEW.",
        )


def _unnested(checkpoint: Any, file: Path, key: str) -> dict[str, Tensor]:
    """The one dict of tensors inside a checkpoint; counters, settings and optimiser states beside it are left."""
    if not isinstance(checkpoint, Mapping):
        raise InputError(f"{key}: {file} holds a {type(checkpoint).__name__}, where weights by name are expected")
    for name in _NESTED:
        if isinstance(checkpoint.get(name), Mapping):
            return _unnested(checkpoint[name], file, key)
    tensors = {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}
    if tensors:
        return tensors
    inside = [str(name) for name, value in checkpoint.items() if isinstance(value, Mapping) and _has_tensors(value)]
    if len(inside) == 1:
        return _unnested(checkpoint[inside[0]], file, key)
    if inside:
        raise InputError(
            f"{key}: {file} holds several models: {', '.join(inside)}",
            "Save the one that is meant in a file of its own.",
        )
    raise InputError(f"{key}: {file} holds no weights, but {', '.join(map(str, checkpoint)) or 'nothing'}")


def _has_tensors(found: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor | Mapping) for value in found.values())


def without_prefix(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The state without what wrappers (DataParallel, torch.compile, Lightning) put before all of its names.

    ``names`` are the model's own; a prefix is what stands before one of them in every name of the state.
    """
    state = {name: value for name, value in state.items() if name not in _NO_WEIGHTS}
    own = {*names}
    if not state or own & {*state}:
        return state
    found = (name.removesuffix(end) for name in state for end in _ends(name) if end in own)
    prefix = next(found, None)
    if prefix is None or not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _ends(name: str) -> list[str]:
    """What follows each dot of a name, the longest first."""
    return [name[i + 1 :] for i, character in enumerate(name) if character == "."]


def in_order(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The state under a headless model's ``own`` names, taken one after another, as ``timm``'s ``remap_state_dict``
    does; None where a name is known or a shape differs, or where more than a last linear map is left over."""
    left = len(state) - len(own)
    if {*state} & {*own} or left not in (0, 1, 2):
        return None
    found = dict(zip(own, state.values(), strict=False))
    return found if all(found[name].shape == value.shape for name, value in own.items()) else None


def load_state(
    model: nn.Module, state: Mapping[str, Tensor], file: Path, key: str, may_lack: Collection[str] = ()
) -> None:
    """Load every weight of a model; InputError that names, one by one, what is missing, unknown or of another shape."""
    own = model.state_dict()
    missing = [name for name in own if name not in state and name not in may_lack]
    unknown = [name for name in state if name not in own]
    other = [
        f"{name} {tuple(state[name].shape)}, where the model has {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    found = {"lacks": missing, "also holds": unknown, "has other shapes:": other}
    if any(found.values()):
        describe_encoder = "; ".join(f"it {what} {_listed(names)}" for what, names in found.items() if names)
        raise InputError(
            f"{key}: the weights in {file} are not those of this model: {describe_encoder}",
            "The file must come from the architecture that is named, weight by weight.",
        )
    model.load_state_dict({**{name: own[name] for name in may_lack if name in own}, **state})


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
