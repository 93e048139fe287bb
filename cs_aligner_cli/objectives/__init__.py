"""Alignment objectives: pairwise terms, divergences between distributions, and their weighted sum."""

from cs_aligner_cli.objectives.bandwidths import auto_bandwidth, median_bandwidth
from cs_aligner_cli.objectives.densities import generalized_cs_divergence, hoelder_divergence
from cs_aligner_cli.objectives.divergences import cs_divergence, energy_distance, mmd
from cs_aligner_cli.objectives.pairwise import align_uniform, infonce, l2_contrastive, siglip
from cs_aligner_cli.objectives.terms import Logits, Term, TermValues, evaluate_terms

__all__ = [
    "Logits",
    "Term",
    "TermValues",
    "align_uniform",
    "auto_bandwidth",
    "cs_divergence",
    "energy_distance",
    "evaluate_terms",
    "generalized_cs_divergence",
    "hoelder_divergence",
    "infonce",
    "l2_contrastive",
    "median_bandwidth",
    "mmd",
    "siglip",
]
