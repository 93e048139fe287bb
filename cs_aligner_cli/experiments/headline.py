"""The gap of a sweep's run that writes no gap report: its headline metrics, in one pass over the aligned stores."""

from __future__ import annotations

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.prepared import PreparedData
from cs_aligner_cli.gap.paired_rows import evenly_spaced
from cs_aligner_cli.gap.quick import headline_gap
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.runs.layout import Layout
from cs_aligner_cli.stores.embeddings import Store

# The file in a run's folder that holds them.
HEADLINE = "headline_gap.json"


def headline(recipe: Recipe) -> dict[str, dict[str, float]]:
    """The headline gap metrics of every store of a run on the split of its gap report, one caption per image.

    Raises InputError where a store's rows have no direction.
    """
    layout = Layout(recipe)
    split = PreparedData(layout.prepared.path).split(recipe.gap_split, "gap_report.split")
    images, captions = split.pairs
    chosen = evenly_spaced(len(images), recipe.gap_report.max_pairs)
    found = {}
    for name, artifact in layout.stores(recipe.gap_split).items():
        store = Store(artifact.path)
        if store.shares_space and name in layout.aligned_names:
            rows = store.array("image").take(images[chosen]), store.array("text").take(captions[chosen])
            try:
                found[name] = headline_gap(*rows)
            except InputError as error:
                raise InputError(f"{name} store of split {split.name}: {error}") from None
    return found
