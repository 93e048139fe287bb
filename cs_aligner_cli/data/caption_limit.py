"""What open_clip knows of its models, and how many tokens a text tower reads, without loading a tower."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from cs_aligner_cli.recipe.encoders import EncoderSpec, OpenClipEncoder

_DEFAULT_CONTEXT = 77
# The package under whose name single modules of open_clip are imported.
_ALIAS = "_cs_aligner_open_clip"


def context_length(spec: EncoderSpec) -> int | None:
    """Tokens that an open_clip tower with open_clip's own tokenizer reads, the two marks included; None for others."""
    if not isinstance(spec, OpenClipEncoder):
        return None
    if spec.config is not None:
        return spec.config.text_cfg.context_length
    text = model_config(spec.model).get("text_cfg")
    # Tokenizers of the hub have their own ways, and need its files.
    if text is None or "hf_tokenizer_name" in text or "hf_model_name" in text:
        return None
    limit: int = text.get("context_length", _DEFAULT_CONTEXT)
    return limit


def model_config(model: str | None) -> dict[str, Any]:
    """What open_clip says of a model that it knows by name; importing it, and torch, would take seconds."""
    package = find_spec("open_clip")
    if package is None or not model or Path(model).name != model:
        return {}
    for folder in package.submodule_search_locations or ():
        file = Path(folder) / "model_configs" / f"{model}.json"
        if file.is_file():
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found
    return {}


def open_clip_module(name: str) -> Any:
    """The module ``tokenizer`` or ``pretrained`` of open_clip, without the package.

    The package imports torchvision, timm and transformers for all kinds of towers, which takes seconds; so its modules
    are imported as those of a package with another name and the same folder, unless it is there already.
    """
    package = find_spec("open_clip")
    if "open_clip" in sys.modules or package is None:
        return import_module(f"open_clip.{name}")
    if _ALIAS not in sys.modules:
        stand_in = ModuleType(_ALIAS)
        stand_in.__path__ = list(package.submodule_search_locations or ())
        sys.modules[_ALIAS] = stand_in
    return import_module(f"{_ALIAS}.{name}")
