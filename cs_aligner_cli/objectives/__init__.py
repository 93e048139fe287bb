"""Alignment objectives: pairwise terms, divergences between distributions, and their weighted sum."""

from cs_aligner_cli.objectives.bandwidths import median_bandwidth
from cs_aligner_cli.objectives.divergences import DIVERGENCES, cs_divergence
from cs_aligner_cli.objectives.pairwise import PAIRWISE, infonce
from cs_aligner_cli.objectives.terms import Term, TermValues, evaluate_terms

__all__ = [
    "DIVERGENCES",
    "PAIRWISE",
    "Term",
    "TermValues",
    "cs_divergence",
    "evaluate_terms",
    "infonce",
    "median_bandwidth",
]
