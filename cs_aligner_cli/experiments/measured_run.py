"""What one finished run measured, read from its folder: numbers by path, and what each test image scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.common.modalities import ALIGNED
from cs_aligner_cli.common.types import Floats
from cs_aligner_cli.experiments.headline import HEADLINE
from cs_aligner_cli.experiments.ledger import STATES, SWEEP, Ledger
from cs_aligner_cli.experiments.plan import configurations, experiment_id
from cs_aligner_cli.files.artifact import RECORD, read_json, read_record
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.retrieval.metrics import DIRECTIONS
from cs_aligner_cli.retrieval.per_query import Records, read_mixed, read_records
from cs_aligner_cli.runs.run_record import read_run_record

# The direction that stands for the mean of both.
MEAN = "mean"
_RETRIEVAL = "eval_retrieval"
# What may differ between the protocols of two evaluations that are compared.
_FREE = ("search", "intervals")
# What the protocol says of the stores NAME+matching alone.
_RERANKED, _HEAD = "reranked", "+matching"
_HINT = "Name a run's folder, or one of ./runs, with a store where it has several: RUN or RUN:STORE."


@dataclass(frozen=True)
class MeasuredRun:
    """One store of a finished run. ``configuration`` names what the run is a replicate of.

    ``searched``: a search chose the configuration by what earlier runs measured; ``former``: the sweep that it was run
    for has no such configuration any more.
    """

    folder: Path
    store: str
    configuration: str
    configuration_id: str
    seed: int
    settings: Mapping[str, Any]
    searched: bool = False
    former: bool = False

    @cached_property
    def record(self) -> dict[str, Any]:
        """The run's own record."""
        return read_run_record(self.folder / "run.json")

    @cached_property
    def numbers(self) -> dict[str, float]:
        """Path (as eval_retrieval.aligned.i2t.R@1) to every number that the run's stages returned.

        Where both directions have a metric, ``mean`` is that of both.
        """
        found: dict[str, float] = {}
        for stage, result in self.record["stages"].items():
            found |= _numbers(result.get(stage, {}), stage)
            rest = {key: value for key, value in result.items() if key != stage}
            found |= {path: value for path, value in _numbers(rest, stage).items() if path not in found}
        costs = self.record.get("costs", {})
        found |= _numbers(costs, "cost")
        if costs:
            found["cost.seconds"] = sum(cost["seconds"] for cost in costs.values())
            found["cost.peak_memory_mb"] = max(cost["peak_memory_mb"] for cost in costs.values())
        if (self.folder / HEADLINE).is_file():
            found = {**_numbers(read_json(self.folder / HEADLINE), "gap_report"), **found}
        for path in [path for path in found if path.startswith(f"{_RETRIEVAL}.") and ".i2t." in path]:
            before, metric = path.split(".i2t.", 1)
            other = found.get(f"{before}.t2i.{metric}")
            if other is not None:
                found[f"{before}.{MEAN}.{metric}"] = (found[path] + other) / 2
        return found

    def path(self, key: str) -> str:
        """Where ``numbers`` has a metric: the store in its key is this run's, where the key names ``aligned``."""
        return key.replace(f".{ALIGNED}.", f".{self.store}.")

    def number(self, key: str) -> float | None:
        """One number, its key as for ``path``."""
        return self.numbers.get(self.path(key))

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """By what rules its retrieval was measured, less what does not change the numbers."""
        summary = read_record(self.folder / _RETRIEVAL / RECORD)["summary"]
        free = _FREE if self.store.endswith(_HEAD) else (*_FREE, _RERANKED)
        return {key: value for key, value in summary["protocol"].items() if key not in free}

    @cached_property
    def records(self) -> Records:
        """What every query scored."""
        return read_records(self.folder / _RETRIEVAL / self.store)

    def query_scores(self, direction: str, metric: str) -> tuple[pd.Series[str], Floats] | None:
        """(Q,) the image that each query of a direction belongs to, and what it scored; None where there are none.

        A query that does not count for a metric of mixed-modality retrieval is left out.
        """
        if direction in DIRECTIONS:
            queries, column = self.records[direction][0], metric
        else:
            mixed, column = read_mixed(self.folder / _RETRIEVAL / self.store), f"{direction} {metric}"
            if mixed is None:
                return None
            queries = mixed
        if column not in queries.columns:
            return None
        values = queries[column].to_numpy(np.float64)
        there = np.isfinite(values)
        return queries["image"].astype(str)[there], values[there]

    @property
    def data_set(self) -> str:
        """The data set that it was measured on."""
        prepared = self.record["stages"].get("prepare", {})
        return str(prepared.get("data_set") or self.record["recipe"]["data"]["manifest"])

    @property
    def split(self) -> str:
        """The split that it was measured on."""
        return str(self.record["recipe"]["eval_retrieval"]["split"])


def _numbers(value: Any, path: str) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {p: n for key, inner in value.items() for p, n in _numbers(inner, f"{path}.{key}").items()}
    return {path: float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else {}


def find_run(given: str) -> list[MeasuredRun]:
    """The run meant by RUN or RUN:STORE (default: the aligned store); a sweep's folder gives all its finished runs.

    Raises InputError if there is no run, it has no retrieval results, or no such store.
    """
    name, _, store = given.rpartition(":") if ":" in given and not Path(given).exists() else (given, "", "")
    folder = next((f for f in (Path(name), Path("runs") / name) if f.is_dir()), None)
    if folder is None:
        raise InputError(f"{given}: no such folder", _HINT)
    if (folder / STATES).is_dir():
        return _runs_of_sweep(folder, store or ALIGNED)
    if not (folder / _RETRIEVAL / RECORD).is_file():
        raise InputError(f"{given}: no retrieval results in {name}/{_RETRIEVAL}", _HINT)
    stores = _stores(folder)
    chosen = store or (ALIGNED if ALIGNED in stores else stores[0] if len(stores) == 1 else "")
    if chosen not in stores:
        problem = (
            f"no store {store!r}{did_you_mean(store, stores)}" if store else f"several stores: {', '.join(stores)}"
        )
        raise InputError(f"{given}: {problem}", _HINT)
    record = read_run_record(folder / "run.json")
    if _RETRIEVAL not in record["stages"]:
        raise InputError(
            f"{given}: its retrieval results are not of the recipe that {name}/run.json has now",
            f"Go on with it: csalign run {name}/recipe.yaml",
        )
    recipe = record["recipe"]
    label = f"{folder.name}:{chosen}"
    identity = f"{experiment_id(recipe, seeded=False)}:{chosen}"
    return [MeasuredRun(folder, chosen, label, identity, int(recipe["seed"]), {})]


def _stores(folder: Path) -> list[str]:
    """The stores of a run that retrieval was measured of."""
    return list(read_record(folder / _RETRIEVAL / RECORD)["summary"].get(_RETRIEVAL, {}))


def refuse_other_protocols(runs: Sequence[MeasuredRun]) -> None:
    """Raise InputError where runs were not measured on the same split of the same data by the same protocol.

    A store may be compared with what its matching head makes of it.
    """
    first = runs[0]
    for run in runs[1:]:
        for what, ours, theirs in (("data set", first.data_set, run.data_set), ("split", first.split, run.split)):
            if ours != theirs:
                raise InputError(
                    f"{run.folder}: its {what} is {theirs!r}, that of {first.folder} is {ours!r}",
                    "Only what was measured on the same split of the same data can be compared.",
                )
        for key in {**first.protocol, **run.protocol}:
            rules = first.protocol.get(key), run.protocol.get(key)
            if rules[0] != rules[1] and not (key == _RERANKED and None in rules):
                raise InputError(
                    f"the runs follow other protocols: {key} is {rules[0]!r} in {first.folder} and {rules[1]!r} in "
                    f"{run.folder}"
                )


def _runs_of_sweep(folder: Path, store: str) -> list[MeasuredRun]:
    """The finished runs of a sweep, its configurations in the order of its recipe."""
    planned = load_recipe(str(folder / SWEEP)).sweep
    names = [configuration.name for configuration in configurations(planned)] if planned else []
    ledger = Ledger(folder)
    done = [state for state in ledger.states() if state.status == "done"]
    if not done:
        raise InputError(f"{folder}: no run of this sweep is finished yet", "Go on with it: csalign sweep RECIPE")
    for run in (folder / "runs" / state.id for state in done):
        if store not in (stores := _stores(run)):
            raise InputError(f"{run}: no store {store!r}{did_you_mean(store, stores)}", _HINT)
    order = {name: place for place, name in enumerate(names)}
    own, searches = ledger.planned(), planned is not None and planned.search is not None
    return [
        MeasuredRun(
            folder / "runs" / state.id,
            store,
            state.configuration,
            f"{state.configuration_id}:{store}",
            state.seed,
            state.settings,
            searched=state.trial is not None,
            former=own is not None and state.configuration_id not in own and not (searches and state.trial is not None),
        )
        for state in sorted(done, key=lambda s: (order.get(s.configuration, len(order)), s.finished, s.seed))
    ]
