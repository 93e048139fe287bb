"""Writes docs/schemas (make docs): the JSON Schema of everything that programs read of csalign."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cs_aligner_cli.cli.options import RESULTS
from cs_aligner_cli.cli.schemas import result_schema

FOLDER = Path(__file__).with_name("schemas")


def file_of(name: str) -> Path:
    """Where the schema of a name of ``RESULTS`` stands."""
    return FOLDER / f"{name}.schema.json"


def text_of(name: str) -> str:
    """The schema of a name of ``RESULTS`` as it is written."""
    return json.dumps(result_schema(name), indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in RESULTS:
        file_of(name).write_text(text_of(name), encoding="utf-8")
    sys.stdout.write(f"{len(RESULTS)} schemas written\n")
