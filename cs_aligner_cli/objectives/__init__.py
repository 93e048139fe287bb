"""Alignment objectives: pairwise terms, divergences between distributions, and their weighted sum."""

from cs_aligner_cli.objectives.approximation import nystroem_cs, nystroem_error, rff_cs
from cs_aligner_cli.objectives.bandwidths import auto_bandwidth, median_bandwidth
from cs_aligner_cli.objectives.clouds import Clouds, Logits, Pairs
from cs_aligner_cli.objectives.conflict import conflict, conflict_sweep, mutual_information
from cs_aligner_cli.objectives.densities import generalized_cs_divergence, hoelder_divergence
from cs_aligner_cli.objectives.direction_agreement import direction_agreement
from cs_aligner_cli.objectives.divergences import cs_divergence, energy_distance, mmd
from cs_aligner_cli.objectives.joint import joint_loss
from cs_aligner_cli.objectives.moments import coral, frechet, gaussian_kl, jeffreys
from cs_aligner_cli.objectives.pairwise import align_uniform, infonce, l2_contrastive, siglip
from cs_aligner_cli.objectives.plan_matching import plan_divergence
from cs_aligner_cli.objectives.pseudo_pairs import Side, pseudo_pairs
from cs_aligner_cli.objectives.sinkhorn import sinkhorn
from cs_aligner_cli.objectives.sliced_wasserstein import sliced_wasserstein
from cs_aligner_cli.objectives.structure import structure
from cs_aligner_cli.objectives.terms import Term, TermValues, evaluate_terms, on_clouds, on_pairs, on_sums, on_tokens
from cs_aligner_cli.objectives.tokens import token_cs_divergence
from cs_aligner_cli.objectives.unpaired_negatives import infonce_with_negatives, siglip_with_negatives

__all__ = [
    "Clouds",
    "Logits",
    "Pairs",
    "Side",
    "Term",
    "TermValues",
    "align_uniform",
    "auto_bandwidth",
    "conflict",
    "conflict_sweep",
    "coral",
    "cs_divergence",
    "direction_agreement",
    "energy_distance",
    "evaluate_terms",
    "frechet",
    "gaussian_kl",
    "generalized_cs_divergence",
    "hoelder_divergence",
    "infonce",
    "infonce_with_negatives",
    "jeffreys",
    "joint_loss",
    "l2_contrastive",
    "median_bandwidth",
    "mmd",
    "mutual_information",
    "nystroem_cs",
    "nystroem_error",
    "on_clouds",
    "on_pairs",
    "on_sums",
    "on_tokens",
    "plan_divergence",
    "pseudo_pairs",
    "rff_cs",
    "siglip",
    "siglip_with_negatives",
    "sinkhorn",
    "sliced_wasserstein",
    "structure",
    "token_cs_divergence",
]
