"""A comparison as one HTML page that opens without a network."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

from cs_aligner_cli.experiments.comparison import Comparison
from cs_aligner_cli.experiments.figures import figures
from cs_aligner_cli.report import SORT_SCRIPT


def render_page(found: Comparison, title: str) -> str:
    """The page: conclusions, a sortable table, figures, importance and protocol; all text is escaped."""
    from jinja2 import Environment, StrictUndefined

    folder = files("cs_aligner_cli.experiments")
    script = files("cs_aligner_cli.report").joinpath(SORT_SCRIPT).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(folder.joinpath("page.html.j2").read_text(encoding="utf-8")).render(
        found=found,
        title=title,
        figures=list(figures(found)),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
