"""From finished runs to docs/results, for tables of recipes that results.py does not run itself:

python benchmarks/finished_runs.py photos_few_pairs RUN --where COMMIT DAY DEVICE    # its stores, one seed
python benchmarks/finished_runs.py few_shot RUN --where COMMIT DAY DEVICE            # its zero-shot stage with shots
python benchmarks/results.py tables                                                  # into the pages
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import results

LABELS = {
    "frozen+cca": "CCA of the frozen features",
    "pairwise_only": "`pairwise_only`, the control: InfoNCE on the pairs",
    "aligned": "`aligned`: the teacher and CS, with unpaired items",
}


def measured_stores(run: Path) -> dict[str, Any]:
    """What a run's stores and CCA measure, as results.py takes it."""
    import numpy as np

    from cs_aligner_cli.data.prepared import PreparedData
    from cs_aligner_cli.recipe.recipe import load_recipe
    from cs_aligner_cli.retrieval.evaluation import true_ranks
    from cs_aligner_cli.runs.layout import Layout
    from cs_aligner_cli.stages.gap_stores import compared

    recipe = load_recipe(str(run / "recipe.yaml"), [f"run_dir={run}"])
    layout = Layout(recipe)
    split = PreparedData(layout.prepared.path).split(recipe.eval_retrieval.split, "eval_retrieval.split")
    rows = []
    for store in compared(layout, split, []):
        if store.name in LABELS and store.take is not None:
            pair = [store.take(m, np.arange(len(split.table(m)))) for m in ("image", "text")]
            values = results.measured(*pair, split, true_ranks(*pair, split.image_of_caption, (1, 10)))
            shown = {key: [round(value, 6)] for key, value in values.items()}
            rows.append({"label": LABELS[store.name], "store": store.name, "settings": [], "values": shown})
    return {"seeds": [recipe.seed], "rows": rows}


def few_shot(run: Path) -> dict[str, Any]:
    """What the zero-shot stage of a run measured with shots."""
    found = json.loads((run / "zero_shot" / "results.json").read_text())
    return {"few_shot": found["few_shot"]}


TAKEN: dict[str, Callable[[Path], dict[str, Any]]] = {"photos_few_pairs": measured_stores, "few_shot": few_shot}


def main() -> None:
    """Write one file of docs/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(TAKEN))
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--where", nargs=3, required=True, metavar=("COMMIT", "DAY", "DEVICE"), help="what made the run"
    )
    options = parser.parse_args()
    where = dict(zip(("commit", "date", "device"), options.where, strict=True))
    command = f"python benchmarks/finished_runs.py {options.name} RUN"
    content = {"name": options.name, "command": command, **where, **TAKEN[options.name](options.run.resolve())}
    (results.RESULTS / f"{options.name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
