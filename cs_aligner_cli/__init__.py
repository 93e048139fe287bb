"""csalign: the open toolkit for distributional vision-language alignment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cs_aligner_cli.common.lazy import lazy_names

if TYPE_CHECKING:
    from cs_aligner_cli.api.adapters import FittedAdapter, fit_adapter, load_adapter
    from cs_aligner_cli.api.aligners import CCA, Centring, Procrustes
    from cs_aligner_cli.api.runs import Run, open_run, run
    from cs_aligner_cli.common.errors import InputError, NotUnitRowsWarning
    from cs_aligner_cli.gap.metrics import measure_gap
    from cs_aligner_cli.objectives import cs_divergence, infonce, token_cs_divergence
    from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
    from cs_aligner_cli.retrieval import evaluate_mixed, evaluate_retrieval

__version__ = "0.2.0"
__all__ = [
    "CCA",
    "Centring",
    "FittedAdapter",
    "InputError",
    "NotUnitRowsWarning",
    "Procrustes",
    "Recipe",
    "Run",
    "cs_divergence",
    "evaluate_mixed",
    "evaluate_retrieval",
    "fit_adapter",
    "infonce",
    "load_adapter",
    "load_recipe",
    "measure_gap",
    "open_run",
    "run",
    "token_cs_divergence",
]
# Imported when they are first used: torch takes seconds, and who only reads a recipe needs none of it.
_WHERE = {
    "CCA": "api.aligners",
    "Centring": "api.aligners",
    "FittedAdapter": "api.adapters",
    "InputError": "common.errors",
    "NotUnitRowsWarning": "common.errors",
    "Procrustes": "api.aligners",
    "Recipe": "recipe.recipe",
    "Run": "api.runs",
    "cs_divergence": "objectives",
    "evaluate_mixed": "retrieval",
    "evaluate_retrieval": "retrieval",
    "fit_adapter": "api.adapters",
    "infonce": "objectives",
    "load_adapter": "api.adapters",
    "load_recipe": "recipe.recipe",
    "measure_gap": "gap.metrics",
    "open_run": "api.runs",
    "run": "api.runs",
    "token_cs_divergence": "objectives",
}

__getattr__ = lazy_names(__name__, _WHERE)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
