"""FuseMix: the pairs of a step mixed with one another before the towers, both modalities in the same shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.recipe.few_pairs import Mixup
from cs_aligner_cli.training.optimizer import step_seed
from cs_aligner_cli.training.samplers import DrawnPairs

# Keeps the draws of mixing apart from those of dropout, which have a step and a part.
_DRAWS = 7919


class Mixing:
    """``share * own + (1 - share) * partner`` of unit features, the same share for an image and its captions.

    FuseMix (Vouitsis et al., CVPR 2024, arXiv 2312.10144, eq. 4): image i and its caption are mixed with image pi(i)
    and its caption, the share being drawn from Beta(alpha, alpha) for every pair and pi being a permutation of the
    step's images. Rows are scaled to unit length first, since features of any length are given to the towers, which
    scale them. Shares and permutation are functions of seed and step.
    """

    def __init__(self, spec: Mixup, seed: int) -> None:
        self._alpha, self._seed = spec.alpha, seed

    def drawn(self, step: int, pairs: DrawnPairs) -> DrawnMixing:
        """Partners and shares of one step."""
        rng = np.random.default_rng(step_seed(self._seed, step, _DRAWS))
        images = len(pairs.images)
        partner = rng.permutation(images)
        share = rng.beta(self._alpha, self._alpha, images)
        owner = np.arange(images) if pairs.owner is None else pairs.owner
        return DrawnMixing(partner, share, owner)


@dataclass(frozen=True, eq=False)
class DrawnMixing:
    """What one step mixes with what: ``partner`` and ``share`` (M,) of each image, ``owner`` (N,) of captions."""

    partner: Ints
    share: Floats
    owner: Ints

    def partners(self, modality: str, rows: Ints) -> Ints:
        """The row that each of the step's paired ``rows`` is mixed with.

        The j-th caption of an image goes with the j-th of its partner, counted round where that has fewer.
        """
        if modality == "image":
            return rows[self.partner]
        start = np.searchsorted(self.owner, np.arange(len(self.partner)))
        counts = np.bincount(self.owner, minlength=len(self.partner))
        of = self.partner[self.owner]
        place = np.arange(len(rows)) - start[self.owner]
        return rows[start[of] + place % counts[of]]

    def mix(
        self,
        modality: str,
        rows: Ints,
        loaded: Tensor,
        load: Callable[[Ints], Tensor],
        part: slice = slice(None),
    ) -> Tensor:
        """``loaded`` features (n, d) of a part of a step's items, those of its paired ``rows`` being mixed.

        Paired items stand before unpaired ones; ``load`` gives the features of some rows.
        """
        partners = self.partners(modality, rows)[part]
        share = (self.share if modality == "image" else self.share[self.owner])[part]
        weight = torch.from_numpy(share).to(loaded.device, torch.float32).unsqueeze(1)
        own, unpaired = loaded.float().tensor_split([len(partners)])
        mixed = weight * l2_normalize(own) + (1 - weight) * l2_normalize(load(partners).float())
        return torch.cat([mixed, unpaired]).to(loaded.dtype)
