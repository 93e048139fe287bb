"""Agreement of both directions: an image's distribution over texts is that of its text over images."""

from __future__ import annotations

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import ArrayLike, same_width
from cs_aligner_cli.objectives.pairwise import checked_pairs, rows_of_pairs
from cs_aligner_cli.objectives.row_blocks import sum_over_blocks


def direction_agreement(
    image: ArrayLike,
    text: ArrayLike,
    logit_scale: float | Tensor,
    queue: tuple[ArrayLike, ArrayLike] | None = None,
) -> Tensor:
    """Return the Jeffreys divergence between both directions' retrieval distributions, a scalar tensor in nats.

    ``mean_i KL(p_i || q_i) + KL(q_i || p_i)`` with ``p_i = softmax_j(logit_scale x_i . y_j)``, what image i retrieves
    among the texts of all pairs j, and ``q_i = softmax_j(logit_scale x_j . y_i)``, what text i retrieves among the
    images (the task-level interaction of COTS, Lu et al., CVPR 2022, arXiv 2204.07441). image (N, d) and text (N, d)
    are row by row a pair, unit rows being expected; so are those of the ``queue`` (Q, d), past pairs, which j runs over
    after the N, but i does not. 0 where the similarities are symmetric. Memory is linear in N + Q. Raises InputError as
    ``infonce``.
    """
    x, y, scale, _ = checked_pairs(image, text, logit_scale, None)
    pairs = len(x)
    if queue is not None:
        past_x, past_y = rows_of_pairs(*queue)  # looked at when they were pairs of a step
        same_width(past_x, x)
        x, y = torch.cat([x, past_x.to(x)]), torch.cat([y, past_y.to(y)])

    def loss(block: slice, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        log_p, log_q = ((scale * (a[block] @ b.T)).log_softmax(dim=1) for a, b in ((x, y), (y, x)))
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum() / pairs

    return sum_over_blocks(loss, pairs, len(x), x, y, scale)
