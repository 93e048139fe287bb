"""Whether a recipe's splits and ks fit its data: asked of what the manifest says, or of tables that are prepared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.data.manifest import LatentManifest, Manifest, ScenesManifest, TableManifest
from cs_aligner_cli.data.manifest_base import OnDisk
from cs_aligner_cli.data.manifest_layouts import (
    CocoManifest,
    ConversationsManifest,
    FolderManifest,
    MixbenchManifest,
    WebDatasetManifest,
)
from cs_aligner_cli.recipe.eval_retrieval import EvalRetrieval
from cs_aligner_cli.recipe.recipe import Recipe


class Finding(NamedTuple):
    """What does not fit at a key of the recipe; ``certain``: the run would end there."""

    key: str
    message: str
    certain: bool


class KnownSplits(NamedTuple):
    """The splits of a data set, each with how many images and captions it has, None where that is not known.

    ``whole``: there are no others. ``exact``: the counts are those of the data, not what is expected of them.
    """

    counts: Mapping[str, tuple[int, int] | None]
    whole: bool
    exact: bool = False


def stated_splits(manifest: Manifest) -> KnownSplits:
    """What a manifest itself says of its splits."""
    if isinstance(manifest, ScenesManifest | LatentManifest):
        return KnownSplits({name: (count, count) for name, count in manifest.images.model_dump().items()}, True, True)
    expected = {name: (found.images, found.captions) for name, found in manifest.expected.items()}
    named = _named(manifest)
    if named is None:
        return KnownSplits(expected, False)
    return KnownSplits({name: expected.get(name) for name in named}, True)


def _named(manifest: OnDisk) -> list[str] | None:
    """The splits that the manifest names one by one; None where only the data name them."""
    if manifest.split_fractions:
        return [*manifest.split_fractions]
    if isinstance(manifest, TableManifest) and manifest.tables:
        return [*manifest.tables]
    if isinstance(manifest, TableManifest) and manifest.split_column is None:
        return ["all"]
    if isinstance(manifest, CocoManifest):
        return [*manifest.splits]
    if isinstance(manifest, WebDatasetManifest):
        return [*manifest.shards]
    if isinstance(manifest, ConversationsManifest | MixbenchManifest):
        return [manifest.split]
    if isinstance(manifest, FolderManifest) and not manifest.split_folders:
        return [manifest.split]
    return None


def split_findings(recipe: Recipe, known: KnownSplits, *, of_set: bool = False) -> Iterator[Finding]:
    """The splits of a recipe, or of it on a further data set, that are not there, and ks that are larger than the
    gallery."""
    names = [*known.counts]
    for key, split in recipe.splits.items():
        if names and split not in known.counts:
            of = "splits" if known.whole else "the manifest expects"
            near = did_you_mean(split, names)
            near = near if "did you mean" in near else ""
            message = f"split {split!r} is absent{near} ({of}: {', '.join(sorted(names))})"
            yield Finding(key, message, known.whole)
    retrieval = recipe.eval_retrieval
    counts = known.counts.get(retrieval.split)
    if counts is None or not all(counts):
        return
    key = "eval_retrieval.ks"
    try:
        if remark := cut_ks(retrieval, *counts, of_set=of_set):
            yield Finding(key, remark.removeprefix(f"{key}: "), False)
    except InputError as error:
        yield Finding(key, str(error).removeprefix(f"{key}: ").partition("\n")[0], known.exact)


def cut_ks(retrieval: EvalRetrieval, images: int, captions: int, *, of_set: bool = False) -> str:
    """What to say where ks are cut to a split of so many images and captions; "" where they fit.

    The default is cut, and any of a further data set, which takes those of the recipe's own; InputError if others are
    larger. A gallery may turn out smaller still, never larger.
    """
    largest = max(1, min(images, captions) // retrieval.folds)
    ks = retrieval.ks_within(largest, cut=of_set)
    if ks == retrieval.ks:
        return ""
    holds = f"a gallery of split {retrieval.split!r} holds {counted(largest, 'items')}"
    return f"eval_retrieval.ks: {retrieval.ks} is cut to {ks}: {holds}"
