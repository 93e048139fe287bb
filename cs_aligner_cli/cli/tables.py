"""What is shown of each stage's result: tables for people, one object for --json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.recipe.recipe import Recipe

Result = dict[str, Any]
_DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
_MIXED = {
    "mixed": "mixed corpus",
    "mixed/image": "mixed, answer an image",
    "mixed/text": "mixed, answer a text",
    "mixed/image_queries": "mixed, query an image",
}
_WAYS = {**_DIRECTIONS, "both": "both ways", **_MIXED}


def stage_data(stage: str, recipe: Recipe, result: Result) -> Result:
    """What one stage's --json holds."""
    return {"command": stage, "name": recipe.name, "run_dir": str(recipe.folder), **result}


def run_data(recipe: Recipe, results: dict[str, Result]) -> Result:
    """What the --json of a whole run holds: the status of every stage and all numbers per store."""
    retrieval, gap = results["eval_retrieval"], results["gap_report"]
    return {
        "command": "run",
        "name": recipe.name,
        "run_dir": str(recipe.folder),
        "seed": recipe.seed,
        "status": {stage: result["status"] for stage, result in results.items()},
        "train": results.get("train", {}).get("runs", {}),
        "eval_retrieval": retrieval["eval_retrieval"],
        **({"zero_shot": results["zero_shot"]["zero_shot"]} if "zero_shot" in results else {}),
        "gap_report": gap["gap_report"],
        "null_floor": gap["null_floor"],
        "notes": list(dict.fromkeys([*retrieval["notes"], *gap["notes"]])),
        "report": gap["report"],
    }


def prepare_tables(result: Result) -> list[Table]:
    """Counts per split; what was dropped, skipped or repeated."""
    counts = [(split, n["images"], n["captions"]) for split, n in result["splits"].items()]
    remarks = [
        *((f"bad {kind}", n) for kind, n in result["bad"].items() if kind != "first" and n),
        *((f"skipped: {what}", n) for what, n in result["skipped"].items() if n),
        *(
            (f"{what} of split {split} without {other}", n[what])
            for split, n in result["without_partner"].items()
            for what, other in (("images", "captions"), ("captions", "images"))
            if n[what]
        ),
        *((what, found["repeats"]) for what, found in result["duplicates"].items() if found["repeats"]),
        *(
            (f"{what}, in several splits", found["contents_in_several_splits"])
            for what, found in result["duplicates"].items()
            if found["contents_in_several_splits"]
        ),
        *_near_rows(result["near_duplicates"]),
        *((f"pictures: {what}", n) for what, n in result.get("pictures", {}).items()),
        *_length_rows(result["caption_lengths"]),
        *((f"unlike the manifest: {text}", "") for text in result["unlike_manifest"]),
    ]
    tables = [
        table(
            f"prepared data set {result['data_set']} in {result['folder']}",
            ["split", "images", "captions"],
            counts,
        )
    ]
    if pairing := result.get("pairing"):
        roles = {modality: found for modality, found in pairing.items() if modality != "status"}
        items = [(modality, *found.values()) for modality, found in roles.items()]
        tables.append(table("training items", ["modality", *next(iter(roles.values()))], items))
    if shards := result["shards"]:
        written = list(shards["splits"].items())
        tables.append(table(f"WebDataset shards in {shards['folder']}", ["split", "shards"], written))
    return [*tables, table("to know", ["what", "count"], remarks)] if remarks else tables


def _near_rows(near: Result) -> list[tuple[str, int]]:
    rows = []
    if images := near.get("images"):
        what = f"looking like one of another split (dhash, at most {images['distance']} of 64 bits)"
        rows += [(f"images of {split} {what}", n) for split, n in images["images"].items()]
    rows += [
        (f"captions of {split} saying what one of another split says", n)
        for split, n in near.get("captions", {}).items()
    ]
    return rows


def _length_rows(lengths: Result | None) -> list[tuple[str, int]]:
    if lengths is None:
        return []
    named = {"longest caption": "longest", "95% of the captions have at most": "p95"}
    return [
        (f"captions longer than {lengths['limit']} tokens, which lose their end", lengths["truncated"]),
        *((f"{what}, tokens", lengths[key]) for what, key in named.items()),
    ]


def embed_tables(result: Result) -> list[Table]:
    """Rows and dimensions of every store, and how fast each was made."""
    rows = [
        (
            name,
            split,
            *_embedded(part.get("image")),
            *_embedded(part.get("text")),
            part["status"],
        )
        for name, splits in result["stores"].items()
        for split, part in splits.items()
    ]
    return [
        table("embedding stores", ["store", "split", "images", "dim", "per s", "texts", "dim", "per s", "status"], rows)
    ]


def _embedded(part: Result | None) -> tuple[Any, ...]:
    """Rows, dimension and speed of one modality of a store; dashes where it holds none of it."""
    return (part["rows"], part["dim"], f"{part['per_second']:,.0f}") if part else ("-", "-", "-")


def train_tables(result: Result) -> list[Table]:
    """One row per training run."""
    rows = [
        (
            name,
            run["steps"],
            f"{run['trainable_parameters']:,}",
            run["best_step"],
            *(_percent(run["val_R@1"].get(direction)) for direction in _DIRECTIONS),
            f"{run['seconds']:.0f} s",
            run["status"],
        )
        for name, run in result["runs"].items()
    ]
    columns = ["run", "steps", "trained weights", "best step", "val i2t R@1", "val t2i R@1", "time", "status"]
    return [table("training", columns, rows)]


def retrieval_tables(result: Result) -> list[Table]:
    """Every metric with its 95% interval, store by store; fractions in percent."""
    from cs_aligner_cli.retrieval.metrics import flattened

    stores = {s: {(way, m): v for way, m, v in flattened(found)} for s, found in result["eval_retrieval"].items()}
    spans = {s: {(way, m): v for way, m, v in flattened(found)} for s, found in result["intervals"].items()}
    rows = [
        (
            _WAYS.get(way, way),
            metric.replace("_", " "),
            *(_with_interval(metric, v.get((way, metric)), spans[s].get((way, metric))) for s, v in stores.items()),
        )
        for way, metric in next(iter(stores.values()))
    ]
    title = f"retrieval on split {result['split']}: {result['images']} images, {result['captions']} captions"
    title += "; fractions in %, [95% intervals]"
    tables = [table(title, ["direction", "metric", *stores], rows)]
    for edge, found in result["edges"].items():
        ways: Result = next(iter(found.values()), {})
        lines = [
            (way.replace("_", " "), metric.replace("_", " "), *(_cell(metric, v[way][metric]) for v in found.values()))
            for way, metrics in ways.items()
            for metric in metrics
        ]
        tables.append(table(f"retrieval along the edge {edge}", ["direction", "metric", *found], lines))
    built = [
        (
            *(store, modality, index["factory"], index["rows"], f"{index['megabytes']:.1f}"),
            *(_percent(index[f"{whose}recall@10"]) for whose in ("", "search_")),
        )
        for store, modalities in result["indexes"].items()
        for modality, index in modalities.items()
    ]
    columns = ["store", "of", "index", "rows", "MB", "recall@10 by FAISS", "by csalign search"]
    named = [(key.replace("_", " "), _listed(value)) for key, value in result["protocol"].items()]
    return [*tables, table("saved indexes", columns, built), table("protocol", ["what", "how"], named)]


def search_tables(result: Result) -> list[Table]:
    """The nearest items of each query."""
    return [
        table(
            f"{query['modality']}: {query['query']} (nearest {query['gallery']}s of {result['store']})",
            ["id", "rank", "score", "caption", "path"],
            [
                (r["id"], r["rank"], f"{r['score']:.3f}", _short(r["caption"]), r["image_path"])
                for r in query["results"]
            ],
        )
        for query in result["queries"]
    ]


def zero_shot_tables(result: Result) -> list[Table]:
    """Accuracies per store, in percent."""
    stores = result["zero_shot"]
    names: list[str] = list(next(iter(stores.values())))
    rows = [
        (store, *(str(v) if name == "images" else _percent(v) for name, v in found.items()))
        for store, found in stores.items()
    ]
    title = (
        f"zero-shot on split {result['split']}: {result['classes']} classes, {len(result['templates'])} prompts each"
    )
    return [table(f"{title} (in %)", ["store", *(name.replace("_", " ") for name in names)], rows)]


def gap_tables(result: Result) -> list[Table]:
    """The headline metrics of every store with their 95% intervals, and what the last would read without a gap."""
    from cs_aligner_cli.report.headline import metric_keys

    stores, intervals = result["gap_report"], result["intervals"]
    keys = metric_keys({"stores": stores})
    rows = [
        (name, *(_spanned(values.get(key), intervals[name].get(key)) for key in keys))
        for name, values in stores.items()
    ]
    last, tests = list(result["tests"].items())[-1]
    rows.append((f"{last} without a gap", *(_without_gap(result["null_floor"][last], tests, key) for key in keys)))
    title = f"modality gap on split {result['split']}: {result['pairs']} pairs, [95% intervals]; all else in the report"
    return [table(title, ["store", *(key.replace("_", " ").replace("@", " at ") for key in keys)], rows)]


def _without_gap(levels: dict[str, float], tests: dict[str, float], key: str) -> str:
    """What a metric of the two clouds reads without a gap, and the p value of there being none."""
    return f"{levels[key]:.3f}, p {tests[key]:.3f}" if key in tests else ""


def _spanned(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return _number(value)
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def run_tables(results: dict[str, Result]) -> list[Table]:
    """The closing table of a whole run: what was won and what it cost, store by store."""
    gap_result = results["gap_report"]
    gaps = gap_result["gap_report"]
    # Baselines are the report's own; what both measured, on all images or another split, is eval-retrieval's.
    retrieval = {**gap_result["retrieval"], **results["eval_retrieval"]["eval_retrieval"]}
    mixed = {
        **gap_result.get("mixed", {}),
        **{name: found["mixed"] for name, found in retrieval.items() if "mixed" in found},
    }
    rows = []
    for store in dict.fromkeys([*gaps, *retrieval]):
        found, gap = {**retrieval.get(store, {}), "mixed": mixed.get(store, {})}, gaps.get(store, {})
        ways = (*_DIRECTIONS, "mixed") if mixed else _DIRECTIONS
        recalls = [_percent(found.get(d, {}).get(f"R@{k}")) for d in ways for k in (1, 10)]
        rows.append(
            (store, *recalls, *(_number(gap.get(m)) for m in ("centroid_gap", "margin", "margin_standardised")))
        )
    columns = ["store", "i2t R@1", "i2t R@10", "t2i R@1", "t2i R@10"]
    columns += ["mixed R@1", "mixed R@10"] if mixed else []
    columns += ["centroid gap", "margin", "margin, standardised"]
    return [table(f"split {results['eval_retrieval']['split']} (R@k in percent)", columns, rows)]


_FRACTIONS = ("R@", "mAP", "MRR", "nDCG")


def _cell(name: str, value: float) -> str:
    if name.startswith(_FRACTIONS):
        return _percent(value)
    if name in ("hubness", "spearman"):
        return f"{value:.3f}"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _with_interval(name: str, value: float | None, interval: list[float] | None) -> str:
    if value is None:
        return ""
    if interval is None:
        return _cell(name, value)
    low, high = (_cell(name, bound) for bound in interval)
    return f"{_cell(name, value)} [{low}, {high}]"


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def doctor_tables(checks: Sequence[Any]) -> list[Table]:
    """What doctor looked at: first what failed, then what is optional, then what is well."""
    order = ("failed", "warning", "ok")
    rows = [
        (
            check.name,
            check.state,
            "\n".join(part for part in (check.found, check.remedy and f"-> {check.remedy}") if part),
        )
        for check in sorted(checks, key=lambda check: order.index(check.state))
    ]
    return [table("doctor", ["check", "state", "found"], rows)]


def _short(text: str) -> str:
    return text if len(text) <= 48 else f"{text[:45]}..."


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    "prepare": prepare_tables,
    "embed": embed_tables,
    "train": train_tables,
    "eval_retrieval": retrieval_tables,
    "zero_shot": zero_shot_tables,
    "gap_report": gap_tables,
}
