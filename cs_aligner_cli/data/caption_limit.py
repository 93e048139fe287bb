"""How many tokens a text tower reads, known without loading it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cs_aligner_cli.recipe.encoders import EncoderSpec, OpenClipEncoder

_DEFAULT_CONTEXT = 77


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
