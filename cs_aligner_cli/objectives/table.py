"""What a recipe can name: every kind of pairwise term and of divergence, with the function behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from cs_aligner_cli.objectives.approximation import nystroem_cs, rff_cs
from cs_aligner_cli.objectives.densities import generalized_cs_divergence, hoelder_divergence
from cs_aligner_cli.objectives.divergences import cs_divergence, energy_distance, mmd
from cs_aligner_cli.objectives.moments import coral, frechet, gaussian_kl, jeffreys
from cs_aligner_cli.objectives.pairwise import align_uniform, infonce, l2_contrastive, siglip
from cs_aligner_cli.objectives.sinkhorn import sinkhorn
from cs_aligner_cli.objectives.sliced_wasserstein import sliced_wasserstein
from cs_aligner_cli.objectives.unpaired_negatives import infonce_with_negatives, siglip_with_negatives

# Each takes (image, text), the logits, the groups (rows of one are no negatives), and the recipe's options by name.
PAIRWISE: Final[dict[str, Callable[..., Tensor]]] = {
    "infonce": lambda x, y, logits, groups: infonce(x, y, logits.scale, groups),
    "siglip": lambda x, y, logits, groups: siglip(x, y, logits.scale, logits.bias, groups),
    "align_uniform": lambda x, y, logits, groups, **options: align_uniform(x, y, **options),
    "l2_contrastive": lambda x, y, logits, groups, **options: l2_contrastive(x, y, logits.scale, groups, **options),
}
# The same with the unpaired images and texts (None: there are none) as further negatives.
UNPAIRED_NEGATIVES: Final[dict[str, Callable[..., Tensor]]] = {
    "infonce": lambda x, y, logits, groups, *more: infonce_with_negatives(x, y, logits.scale, groups, *more),
    "siglip": lambda x, y, logits, groups, *more: siglip_with_negatives(x, y, logits.scale, logits.bias, groups, *more),
}
# Each takes (image, text) and the recipe's options by their names.
DIVERGENCES: Final[dict[str, Callable[..., Tensor]]] = {
    "cs": cs_divergence,
    "mmd": mmd,
    "energy": energy_distance,
    "hoelder": hoelder_divergence,
    "gaussian_kl": gaussian_kl,
    "jeffreys": jeffreys,
    "frechet": frechet,
    "coral": coral,
    "sliced_wasserstein": sliced_wasserstein,
    "sinkhorn": sinkhorn,
}
# Each takes a sequence of clouds, one of every modality, and the recipe's options by their names.
JOINT: Final[dict[str, Callable[..., Tensor]]] = {"generalized_cs": generalized_cs_divergence}
# Approximations of the Cauchy-Schwarz divergence; each takes (image, text), the bandwidth and its options.
APPROXIMATIONS: Final[dict[str, Callable[..., Tensor]]] = {"nystroem": nystroem_cs, "rff": rff_cs}
