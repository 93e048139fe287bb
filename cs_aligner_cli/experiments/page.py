"""Comparisons and leaderboards as HTML pages that open without a network."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from cs_aligner_cli.common.templates import load_template, read_resource
from cs_aligner_cli.experiments.comparison import Comparison
from cs_aligner_cli.experiments.figures import Figure, figures
from cs_aligner_cli.experiments.rank_tables import figure
from cs_aligner_cli.experiments.ranks import AcrossDataSets
from cs_aligner_cli.report import SORT_SCRIPT

if TYPE_CHECKING:
    from cs_aligner_cli.experiments.leaderboard import Leaderboard


def render_page(found: Comparison, title: str) -> str:
    """The page: conclusions, a sortable table, figures, importance and protocol; all text is escaped."""
    return _rendered("page.html.j2", found=found, title=title, figures=list(figures(found)))


def render_ranks(found: AcrossDataSets, title: str) -> str:
    """The page: mean ranks over data sets as a table and a figure, and what each data set says by itself."""
    return _rendered("ranks.html.j2", found=found, title=title, figure=figure(found.ranks))


def render_figure(figure: Figure) -> str:
    """A figure as an SVG file of its own, with a background, since nobody knows what it will stand on."""
    style = read_resource(__package__, "page.css")
    head, rest = figure.svg.split(">", 1)
    ground = '<rect width="100%" height="100%" fill="var(--card)"/>'
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{ground}{rest}\n'


def render_leaderboard(found: Leaderboard, title: str) -> str:
    """The page: a sortable table for everything that was measured alike, and what was left out."""
    return _rendered("leaderboard.html.j2", found=found, title=title)


def _rendered(template: str, **values: object) -> str:
    script = read_resource("cs_aligner_cli.report", SORT_SCRIPT)
    return load_template(__package__, template).render(
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=read_resource(__package__, "page.css"),
        **values,
    )
