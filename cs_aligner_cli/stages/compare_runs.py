"""eval-retrieval --compare: is one run better than another, metric by metric, on the same queries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.files.artifact import RECORD, read_record
from cs_aligner_cli.retrieval.bootstrap import LOWER_IS_BETTER, compare
from cs_aligner_cli.retrieval.per_query import mixed_statistics, paired_statistics, read_records

DRAWS = 2000
LEVEL = 0.05
_HINT = "Name a run's folder, or one of ./runs, with a store where it has several: RUN or RUN:STORE."
# What may differ between the protocols of two evaluations that are compared.
_FREE = ("search", "intervals")


def compare_runs(first: str, second: str, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Compare the retrieval results of two runs; each is ``RUN`` or ``RUN:STORE`` (default: the aligned store).

    Returns the numbers of ``bootstrap.compare``, and the verdict in words. Raises InputError if a run has no results,
    or if the two were not measured on the same queries by the same protocol.
    """
    runs = [_find(first), _find(second)]
    protocols = [{k: v for k, v in run["summary"]["protocol"].items() if k not in _FREE} for run in runs]
    for key in protocols[0]:
        if protocols[0][key] != protocols[1].get(key):
            raise InputError(
                f"the two runs follow other protocols: {key} is {protocols[0][key]!r} in {first}"
                f" and {protocols[1].get(key)!r} in {second}"
            )
    folders = [run["folder"] for run in runs]
    found = compare(*paired_statistics(*map(read_records, folders)), draws=draws, seed=seed)
    if mixed := mixed_statistics(*folders):
        found |= compare(*mixed, draws=draws, seed=seed)
    names = {"a": runs[0]["label"], "b": runs[1]["label"]}
    tests = [(direction, metric, test) for direction, metrics in found.items() for metric, test in metrics.items()]
    return {**names, "draws": draws, "comparison": found, "verdict": _verdict(tests, names)}


def _find(given: str) -> dict[str, Any]:
    name, _, store = given.rpartition(":") if ":" in given and not Path(given).exists() else (given, "", "")
    folder = next((f for f in (Path(name), Path("runs") / name) if (f / "eval_retrieval" / RECORD).is_file()), None)
    if folder is None:
        raise InputError(f"{given}: no retrieval results in {name}/eval_retrieval", _HINT)
    summary = read_record(folder / "eval_retrieval" / RECORD)["summary"]
    stores = list(summary.get("eval_retrieval", {}))
    chosen = store or ("aligned" if "aligned" in stores else stores[0] if len(stores) == 1 else "")
    if chosen not in stores:
        problem = (
            f"no store {store!r}{did_you_mean(store, stores)}" if store else f"several stores: {', '.join(stores)}"
        )
        raise InputError(f"{given}: {problem}", _HINT)
    return {"summary": summary, "folder": folder / "eval_retrieval" / chosen, "label": f"{folder.name}:{chosen}"}


def judge(metric: str, test: dict[str, Any]) -> str:
    """One metric's verdict in words."""
    if test["p"] >= LEVEL:
        return "no difference shown"
    better = (test["difference"] < 0) == metric.startswith(LOWER_IS_BETTER)
    return "b better" if better else "a better"


def _verdict(tests: list[tuple[str, str, dict[str, Any]]], names: dict[str, str]) -> list[str]:
    """What the whole comparison says, most important first."""
    words = {(direction, metric): judge(metric, test) for direction, metric, test in tests}
    lines = []
    for side, other in (("a", "b"), ("b", "a")):
        won = [f"{d} {m}" if d != "both" else m for (d, m), word in words.items() if word == f"{side} better"]
        if won:
            lines.append(f"{names[side]} is better than {names[other]} in {', '.join(won)}.")
    open_ = sum(word == "no difference shown" for word in words.values())
    if open_ == len(words):
        return [f"No difference between {names['a']} and {names['b']} is shown in any of {open_} metrics."]
    if open_:
        lines.append(f"No difference is shown in the other {open_} of {len(words)} metrics.")
    lines.append(
        f"Each test errs in {LEVEL:.0%} of the cases without a difference; p is not corrected for {len(words)} tests."
    )
    return lines
