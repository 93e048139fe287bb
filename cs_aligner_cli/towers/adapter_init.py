"""Closed-form starts: where adapters begin, from the second moments of paired features, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.closed_forms import cca, principal_whitening, procrustes, ridge
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.data.prepared import Split, captions_of
from cs_aligner_cli.recipe.few_pairs import StartMoments
from cs_aligner_cli.towers.spectral_start import spectral_maps
from cs_aligner_cli.towers.towers import Inputs, Towers, embed_split

# x -> W x + b, W (out_dim, in_dim), b (out_dim,)
Affine: TypeAlias = tuple[Floats, Floats]

# What is added to a covariance before it is inverted, as a share of its mean eigenvalue: little for whitening, and for
# cca and ridge (StartMoments) what retrieved best on Flickr8k's dev images of 0.01, 0.1 and 1.
_WHITEN_SHRINKAGE = 1e-3
# Pairs, and unpaired items of each modality, that the moments are taken over; more change nothing that could be seen.
MAX_PAIRS = 20_000
_PLAIN_MOMENTS = StartMoments()


def start_adapters(
    kind: str,
    towers: Towers,
    inputs: Inputs,
    split: Split,
    image_rows: Ints,
    moments: StartMoments | None = None,
    unpaired: Mapping[str, Sequence[tuple[Split, Ints]]] = {},
) -> None:
    """Put the closed form of the training pairs (each caption with its image) into the towers' adapters, in place.

    Where ``moments`` say so, means and covariances are those of the ``unpaired`` items, too. Raises InputError, before
    anything is changed, where that start does not exist for these towers.
    """
    plans = towers.plans
    adapted = [m for m in MODALITIES if plans[m].adapter is not None]
    fixed = next((m for m in MODALITIES if m not in adapted), None)
    _refuse_impossible(kind, towers, fixed)
    captions = captions_of(split, image_rows)
    captions = captions[np.linspace(0, len(captions) - 1, min(len(captions), MAX_PAIRS)).astype(int)]
    rows = {"image": split.image_of_caption[captions], "text": captions}
    device = towers.log_logit_scale.device

    def unit_rows(m: str, part: Split, which: Ints) -> Floats:
        if m == fixed:
            return embed_split(towers, inputs, m, part, which, device).astype(np.float64)
        return l2_normalize(inputs(m, part, which).double()).numpy()

    moments, out_dim = moments or _PLAIN_MOMENTS, plans["image"].out_dim
    adapters: dict[str, Any] = {m: towers.parts[m] for m in adapted}

    def put(starts: Mapping[str, Affine]) -> None:
        for m, (weight, bias) in starts.items():
            adapters[m].start_at(torch.from_numpy(weight).float(), torch.from_numpy(bias).float())

    if kind == "spectral":
        images, owner = np.unique(rows["image"], return_inverse=True)
        parts = {"image": [(split, images)], "text": [(split, captions)]}
        for m in MODALITIES if moments.unpaired else ():
            parts[m] += unpaired.get(m, ())
        items = {m: np.concatenate([unit_rows(m, *part) for part in parts[m]]) for m in MODALITIES}
        put(
            _scaled(spectral_maps(items, (owner, np.arange(len(captions))), out_dim, moments.shrinkage), items, out_dim)
        )
        return
    unit = {m: unit_rows(m, split, rows[m]) for m in MODALITIES}
    every = None
    if moments.unpaired:
        every = {
            m: np.concatenate([unit[m], *(unit_rows(m, *part) for part in unpaired.get(m, ()))]) for m in MODALITIES
        }
    plain = {m: adapter.linear.weight.detach().double().cpu().numpy() for m, adapter in adapters.items()}
    put(closed_form(kind, unit, plain, fixed, out_dim, moments.shrinkage, every))


def _refuse_impossible(kind: str, towers: Towers, fixed: str | None) -> None:
    live = [m for m, plan in towers.plans.items() if plan.live and plan.adapter is not None]
    if live:
        raise InputError(f"train.start: {kind} is computed from cached features, but train.{live[0]} is live")
    if fixed and kind in ("cca", "spectral"):
        raise InputError(
            f"train.start: {kind} maps both towers, but train.{fixed} has no adapter", "Use procrustes or ridge."
        )
    without_bias = [m for m, plan in towers.plans.items() if plan.adapter and plan.adapter.get("bias") is False]
    if without_bias:
        raise InputError(
            f"train.start: {kind} needs the offset that train.{without_bias[0]}.adapter.bias: false denies"
        )
    text = towers.plans["text"]
    if kind == "ridge" and fixed is None and text.in_dim != text.out_dim:
        raise InputError(
            f"train.start: ridge maps images onto the text features ({text.in_dim} dimensions), but the shared space "
            f"has {text.out_dim}",
            f"Set train.embed_dim to {text.in_dim}.",
        )


def closed_form(
    kind: str,
    rows: Mapping[str, Floats],
    plain: Mapping[str, Floats],
    fixed: str | None,
    out_dim: int,
    shrinkage: float = 1.0,
    every: Mapping[str, Floats] | None = None,
) -> dict[str, Affine]:
    """The maps of a start for every modality but ``fixed``, whose rows stay what they are (None: both are mapped).

    ``rows`` are paired unit rows (n, d), image and text; ``plain`` is the linear map (out_dim, d) that each adapter
    has without a start; ``every``: the unit rows (m, d) of each modality that means and covariances are taken from,
    None for those of the pairs; ``shrinkage``: that of the covariances of cca and ridge. Kinds, with x' = x minus its
    modality's mean:

    - centre: plain x'
    - whiten: the leading principal axes of x', each divided by its standard deviation
    - procrustes: orthogonal maps from the SVD of the cross-covariance (Schoenemann 1966)
    - cca: both sides on their canonical axes, weighted by the correlations (Hotelling 1936; the weights as in Gong et
      al. 2014, arXiv 1212.4522)
    - ridge: the regression of the fixed side, or of text, on the other

    Every map is scaled so that its outputs have unit length on average; directions are all that is compared.
    """
    means = {m: x.mean(0) for m, x in (every or rows).items()}
    centred = {m: x - means[m] for m, x in rows.items()}
    spread = centred if every is None else {m: x - means[m] for m, x in every.items()}
    maps = _maps(kind, {m: x - x.mean(0) for m, x in rows.items()}, spread, plain, fixed, out_dim, shrinkage)
    shift = means[fixed] if fixed else np.zeros(out_dim)
    result = {}
    for m, w in maps.items():
        scale = 1.0 if fixed else 1 / max(float(np.linalg.norm(centred[m] @ w.T, axis=1).mean()), 1e-12)
        result[m] = (scale * w, shift - scale * w @ means[m])
    return result


def _maps(
    kind: str,
    x: Mapping[str, Floats],
    spread: Mapping[str, Floats],
    plain: Mapping[str, Floats],
    fixed: str | None,
    out_dim: int,
    shrinkage: float,
) -> dict[str, Floats]:
    mapped = [m for m in x if m != fixed]
    if kind == "centre":
        return {m: plain[m] for m in mapped}
    if kind == "whiten":
        return {m: _padded(principal_whitening(spread[m], _WHITEN_SHRINKAGE).T[:out_dim], out_dim) for m in mapped}
    if kind == "procrustes":
        axes = dict(zip(MODALITIES, procrustes(x["image"], x["text"]), strict=True))
        if fixed:
            return {m: axes[fixed] @ axes[m].T for m in mapped}
        return {m: _padded(axes[m].T[:out_dim], out_dim) for m in mapped}
    if kind == "cca":
        spreads = spread["image"], spread["text"]
        sides = dict(zip(MODALITIES, cca(x["image"], x["text"], shrinkage, spreads), strict=True))
        return {m: _padded(sides[m].T[:out_dim], out_dim) for m in mapped}
    target = fixed or "text"
    source = "image" if target == "text" else "text"
    maps = {source: ridge(x[source], x[target], shrinkage, spread[source]).T}
    return maps if fixed else {**maps, target: plain[target]}


def _scaled(maps: Mapping[str, Affine], items: Mapping[str, Floats], out_dim: int) -> dict[str, Affine]:
    """Maps (weight, mean) of some rows as those of a start: outputs of unit length on average."""
    result = {}
    for m, (weight, mean) in maps.items():
        scale = 1 / max(float(np.linalg.norm((items[m] - mean) @ weight.T, axis=1).mean()), 1e-12)
        result[m] = (_padded(scale * weight, out_dim), _padded((-scale * weight @ mean)[:, None], out_dim)[:, 0])
    return result


def _padded(w: Floats, out_dim: int) -> Floats:
    """Rows of zeros below, where the features have fewer axes than the shared space."""
    return np.pad(w, ((0, out_dim - len(w)), (0, 0)))
