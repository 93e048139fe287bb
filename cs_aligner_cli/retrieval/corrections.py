"""Score corrections that need no training: centring, CSLS, the inverted softmax and QB-Norm.

Each is an inner product of longer rows, so the exact pass, the ranks and the tests are the same for all: what is taken
off an item's scores stands in a coordinate of its own. All are learnt from a bank of other images and texts (of the
training split), so what is measured never helps itself, and a query's result does not depend on the other queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.retrieval.protocol import Searched
from cs_aligner_cli.retrieval.rows import Rows
from cs_aligner_cli.retrieval.scores import query_blocks


@dataclass(frozen=True, eq=False)
class Bank:
    """What a correction learns from: unit rows image (B, d) and text (C, d), and its two parameters."""

    image: Tensor
    text: Tensor
    neighbors: int = 10
    beta: float = 20.0


def corrected(name: str, image: Rows, text: Rows, bank: Bank) -> Searched:
    """The rows whose inner products are the corrected scores, per direction.

    ``name`` is a key of CORRECTIONS; image (M, d) and text (N, d) are unit rows. Raises InputError if the bank holds
    fewer rows than csls needs.
    """
    return CORRECTIONS[name](image.all(), text.all(), bank)


def _centred(image: Tensor, text: Tensor, bank: Bank) -> Searched:
    """Subtract each modality's mean, scale to unit length again (GR-CLIP, arXiv 2507.19054)."""
    pair = Rows(image - bank.image.mean(dim=0), "image"), Rows(text - bank.text.mean(dim=0), "text")
    return {"i2t": pair, "t2i": pair}


def _csls(image: Tensor, text: Tensor, bank: Bank) -> Searched:
    """2 cos(x, y) - r(x) - r(y), r the mean cosine to the nearest bank items of the other modality (Conneau et al.,
    ICLR 2018, eq. 4)."""
    if bank.neighbors > min(len(bank.image), len(bank.text)):
        raise InputError(
            f"query_bank.neighbors = {bank.neighbors}, but the bank holds {len(bank.image)} images and "
            f"{len(bank.text)} texts"
        )
    r_image = _each(image, bank.text, lambda cosines: cosines.topk(bank.neighbors, dim=1).values.mean(dim=1))
    r_text = _each(text, bank.image, lambda cosines: cosines.topk(bank.neighbors, dim=1).values.mean(dim=1))
    return _both(2 * image, text, r_image, r_text)


def _inverted_softmax(image: Tensor, text: Tensor, bank: Bank) -> Searched:
    """The softmax over queries in place of items (Smith et al., ICLR 2017, eq. 7): log of exp(beta cos) over its sum
    over the bank's queries, divided by beta."""
    return _both(image, text, _log_mass(image, bank.text, bank.beta), _log_mass(text, bank.image, bank.beta))


def _qb_norm(image: Tensor, text: Tensor, bank: Bank) -> Searched:
    """The dynamic inverted softmax (Bogolin et al., CVPR 2022, section 3.3): only queries whose nearest item is also
    the nearest of some bank query are corrected."""
    mass_image, mass_text = _log_mass(image, bank.text, bank.beta), _log_mass(text, bank.image, bank.beta)
    for_images = torch.isin(_nearest(image, text), _nearest(bank.image, text)).float()
    for_texts = torch.isin(_nearest(text, image), _nearest(bank.text, image)).float()
    return {
        "i2t": (_wide(image, for_images), _wide(text, -mass_text)),
        "t2i": (_wide(image, -mass_image), _wide(text, for_texts)),
    }


# Corrections that leave unit rows of one space, where a row has a cosine with rows of its own modality, too.
ONE_SPACE = ("centred",)
CORRECTIONS: dict[str, Callable[[Tensor, Tensor, Bank], Searched]] = {
    "centred": _centred,
    "csls": _csls,
    "inverted_softmax": _inverted_softmax,
    "qb_norm": _qb_norm,
}


def _both(image: Tensor, text: Tensor, off_image: Tensor, off_text: Tensor) -> Searched:
    """Rows of image . text - off_image - off_text: one matrix for both directions."""
    one_image, one_text = torch.ones(len(image)), torch.ones(len(text))
    pair = _wide(image, -off_image, one_image), _wide(text, one_text, -off_text)
    return {"i2t": pair, "t2i": pair}


def _wide(rows: Tensor, *coordinates: Tensor) -> Rows:
    return Rows(torch.cat([rows, torch.stack(coordinates, dim=1)], dim=1), "corrected rows", normalize=False)


def _each(rows: Tensor, bank: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """``reduce`` of each row's cosines with the bank, never all at once."""
    return torch.cat([reduce(rows[block] @ bank.T) for block in query_blocks(len(rows), len(bank))])


def _log_mass(items: Tensor, queries: Tensor, beta: float) -> Tensor:
    return _each(items, queries, lambda cosines: torch.logsumexp(beta * cosines, dim=1) / beta)


def _nearest(queries: Tensor, items: Tensor) -> Tensor:
    return _each(queries, items, lambda cosines: cosines.argmax(dim=1))


def bank_of(image: Rows, text: Rows, size: int, neighbors: int, beta: float, seed: int) -> Bank:
    """A bank of at most ``size`` images and ``size`` texts, drawn at random."""
    drawn = []
    for rows in (image, text):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:size]
        drawn.append(l2_normalize(rows.take(order.sort().values.numpy())))
    return Bank(drawn[0], drawn[1], neighbors, beta)
