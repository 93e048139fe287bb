"""A gap report as files: the page, its summary, the data as JSON and CSV, every figure as SVG and more."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cs_aligner_cli.common.results import finite
from cs_aligner_cli.common.safe_csv import csv_bytes
from cs_aligner_cli.report import REPORT
from cs_aligner_cli.report.canvas import Format, Picture
from cs_aligner_cli.report.markdown import render_summary
from cs_aligner_cli.report.page import render_page, report_rows


def report_files(
    report: Mapping[str, Any],
    figures: Mapping[str, Picture],
    shown: Mapping[str, Any],
    spectra: Mapping[str, Any],
    formats: Sequence[Format] = (),
) -> dict[str, bytes]:
    """Name of each file to its content; ``report`` and ``shown`` as in ``render_page``, ``spectra`` by store.

    ``formats``: of the figures, beside SVG.
    """
    tables = {
        "report": report_rows(report),
        "differences": report["differences"],
        "sweep": [{"store": name, **row} for name, rows in report["sweep"].items() for row in rows],
        "conflict": [{"store": name, **row} for name, rows in report["conflict"].items() for row in rows],
        "spectra": [
            {"store": name, "modality": modality, "dimension": i, "share": share}
            for name, sides in spectra.items()
            for modality, shares in sides.items()
            for i, share in enumerate(shares, start=1)
        ],
    }
    files = {
        REPORT: render_page(report, figures, shown).encode(),
        "report.md": render_summary(report).encode(),
        "report.json": (json.dumps(finite(report), indent=2, allow_nan=False) + "\n").encode(),
        **{f"{name}.csv": csv_bytes(pd.DataFrame(rows)) for name, rows in tables.items()},
    }
    for name, picture in figures.items():
        files |= {f"{name}.svg": picture.svg, **{f"{name}.{kind}": picture.drawn(kind) for kind in formats}}
    return files
