"""What every encoder that comes from a model hub or a local folder shares: is it there, and exactly which is it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from socket import gaierror
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from torch import nn

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.hub_files import is_cached
from cs_aligner_cli.encoders.checkpoints import refuse_placeholders, weights_in

LOCAL, HUB = "local-dir:", "hf-hub:"
_HUB_SECONDS = 5
_WEIGHTS = ("*.safetensors", "*.bin", "*.pth")
_VOCABULARIES = ("tokenizer.json", "vocab*.*", "*.model", "*.spm", "*.tiktoken", "tekken.json", "bpe.codes")
_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
# Tokenizers of bytes and characters, which need no vocabulary.
_OF_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")


def source_of(model: str) -> str:
    """The folder or the hub's repository that ``local-dir:FOLDER``, ``hf-hub:ORG/NAME`` or ``ORG/NAME`` means."""
    return model.removeprefix(LOCAL).removeprefix(HUB)


def refuse_absent(model: str, key: str, configuration: str = "config.json", any_case: bool = False) -> None:
    """Raise InputError, before anything is loaded, for a folder without a model or a hub that does not answer.

    ``key`` is the recipe's key; ``configuration`` the file that a folder of this kind always has. ``any_case``: the
    weights lie in the folder itself, their suffix in any case, as ``weights_in`` finds them; else transformers does.
    """
    if model.startswith(LOCAL):
        folder = Path(source_of(model))
        if not (folder / configuration).is_file():
            raise InputError(
                f"{key}: {folder} {f'has no {configuration}' if folder.is_dir() else 'is no folder'}",
                "Expected a folder as save_pretrained writes it: configuration, weights and tokenizer or preprocessor.",
            )
        deep = (file for pattern in _WEIGHTS for file in folder.rglob(pattern))
        if not any(weights_in(folder, _WEIGHTS) if any_case else deep):
            raise InputError(f"{key}: {folder} holds a configuration but no weights ({', '.join(_WEIGHTS)})")
        refuse_placeholders(folder, key)
    elif Path(model).expanduser().is_dir():
        raise InputError(
            f"{key}: {model} is a folder here, but is named like a model of the hub", f"Use {LOCAL}{model}"
        )
    elif why := unreachable(source_of(model)):
        raise InputError(f"{key}: {why}", how_to_fetch(source_of(model)))


def refuse_without_tokenizer(folder: Path, key: str) -> None:
    """Raise InputError if a model's folder has no vocabulary: transformers would make an empty one, without a word."""
    if any(file for pattern in _VOCABULARIES for file in folder.glob(pattern)):
        return
    config = folder / "tokenizer_config.json"
    named = json.loads(config.read_text(encoding="utf-8")).get("tokenizer_class") if config.is_file() else None
    if named in _OF_BYTES:
        return
    raise InputError(
        f"{key}: {folder} has no tokenizer files",
        "Copy those that the model was trained with: tokenizer.json, or vocab.txt, or vocab.json with merges.txt, or "
        "a SentencePiece model, and tokenizer_config.json beside them.",
    )


def refuse_without_preprocessor(folder: Path, key: str) -> None:
    """Raise InputError if an image model's folder does not say how its pictures are preprocessed."""
    if not any((folder / name).is_file() for name in _PREPROCESSORS):
        raise InputError(
            f"{key}: {folder} has no {_PREPROCESSORS[0]}",
            "Copy the one that the model was trained with: it says how pictures are scaled and normalised.",
        )


def how_to_fetch(repository: str) -> str:
    """How to get a hub model onto a machine that does not reach the hub."""
    return (
        f"On a machine with a network: hf download {repository} --local-dir FOLDER; copy FOLDER here and name it: "
        f"model: {LOCAL}FOLDER"
    )


def unreachable(repository: str) -> str | None:
    """Why a repository can be had neither from the cache nor from the hub, None where it may be.

    Asks once whether the hub can be reached; its own client would go on trying for half a minute.
    """
    if not repository or is_cached(repository):
        return None
    from huggingface_hub import constants as hub  # a light install has none, and features need none

    try:
        urlopen(Request(hub.ENDPOINT, method="HEAD"), timeout=_HUB_SECONDS).close()  # noqa: S310 - the user's own setting
    except HTTPError:
        return None  # it answers
    except (URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, gaierror | TimeoutError | ConnectionError):
            return f"{repository} is not cached, and {hub.ENDPOINT} cannot be reached ({reason})"
    return None


def weights_digest(model: nn.Module) -> str:
    """A digest of all weights, names and values: two encoders with the same one are the same."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# What says where an encoder came from or how it was run, but not which encoder it is.
_NOT_WHO = {"model", "pretrained", "file", "tensor", "precision", "tokens", "jpeg"}


def same_encoder(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two identities name the same encoder, wherever its files lay."""
    return not difference(one, other)


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """In what two encoders differ, "" where they are the same."""
    one, other = (json.loads(json.dumps(identity)) for identity in (one, other))  # one may have been read from a file
    keys = [key for key in {**one, **other} if key not in _NOT_WHO and one.get(key) != other.get(key)]
    return ", ".join(keys) + (" differ" if len(keys) > 1 else " differs") if keys else ""


def describe_encoder(identity: dict[str, Any]) -> str:
    """An identity in a few words, for messages."""
    name = identity.get("model") or identity.get("file") or "a model of its own config"
    weights = f" (weights {identity['weights']})" if "weights" in identity else ""
    layers = f", layers {', '.join(map(str, identity['layers']))}" if "layers" in identity else ""
    return f"{identity['kind']} {name}{weights}{layers}"
