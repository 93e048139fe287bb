"""Names that stand in the place of paths: of another run, and of a data set of Hugging Face's hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo

from cs_aligner_cli.recipe.messages import resolve_path

# Begins the name of another run in ./runs.
RUN = "run:"
# Begins the name of a data set of the hub.
HF = "hf:"


def run_folder(name: str) -> Path:
    """The folder that ``run:NAME`` means, in every key of a recipe: NAME in ./runs, where runs lie by default."""
    return Path.cwd() / "runs" / name.removeprefix(RUN)


def _root(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str):
        return value
    if not value.startswith(HF):
        return resolve_path(value, info)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", value.removeprefix(HF)):
        raise ValueError("expected hf:ORG/NAME, or hf:ORG/NAME@REVISION")
    return Path(value)


def _run(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and value.startswith(RUN):
        return run_folder(value)
    return resolve_path(value, info) if isinstance(value, str) else value


RootPath = Annotated[Path, BeforeValidator(_root)]
# run:NAME for a run in ./runs, run:NAME/data for what lies in it, or a folder.
RunFolder = Annotated[Path, BeforeValidator(_run)]
