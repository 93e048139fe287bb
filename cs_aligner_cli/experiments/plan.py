"""What a sweep runs: its configurations, each with every seed, as resolved recipes with an id of their own."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.files.artifact import fingerprint
from cs_aligner_cli.files.places import all_places, by_name
from cs_aligner_cli.recipe.later import without_later_keys
from cs_aligner_cli.recipe.recipe import Recipe, find_recipe, load_recipe
from cs_aligner_cli.recipe.strict_yaml import parse_value, read_yaml, shown
from cs_aligner_cli.recipe.sweep import Drawn, Settings, Space, Sweep
from cs_aligner_cli.runs.layout import Layout

# What a run is called, where it lies and how its recipe and figures are written says nothing about its results.
_NOT_THE_EXPERIMENT = (
    "version",
    "expected",
    "name",
    "run_dir",
    "sweep",
    "distributed",
    "data.dir",
    "embed.dir",
    "embed.device",
    "gap_report.formats",
)
# The name of the recipe as it stands, beside what an ablation takes away from it.
FULL = "full"
# How often values are drawn again that a configuration has already, before the space counts as exhausted.
_ATTEMPTS = 1000


@dataclass(frozen=True)
class Configuration:
    """One configuration: its name, the settings that make it of the recipe, and the trial of a search that it is."""

    name: str
    settings: Settings = field(default_factory=dict)
    trial: int | None = None


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep. ``id``: fingerprint of the resolved recipe; ``configuration_id``: the same without seed."""

    configuration: Configuration
    seed: int
    recipe: Recipe

    @cached_property
    def id(self) -> str:
        """What tells this run from all others; equal experiments have equal ids."""
        return experiment_id(self.recipe.model_dump(mode="json"))

    @cached_property
    def configuration_id(self) -> str:
        """The run's id without its seed."""
        return experiment_id(self.recipe.model_dump(mode="json"), seeded=False)

    @cached_property
    def places(self) -> dict[str, str]:
        """By key of the recipe, where the files from outside lie; no part of the id."""
        return all_places(_experiment(self.recipe.model_dump(mode="json")))

    @property
    def label(self) -> str:
        """The run in a line of talk."""
        return f"{self.configuration.name}, seed {self.seed}"


def experiment_id(recipe: Mapping[str, Any], seeded: bool = True) -> str:
    """The fingerprint of what decides a run's results; ``recipe`` is a resolved one, as run.json holds it.

    Not ``seeded``: what runs that differ in their seed alone have in common. Files from outside count by their names,
    so that data and runs may be moved.
    """
    kept = _experiment(recipe)
    return fingerprint(by_name(kept if seeded else {key: value for key, value in kept.items() if key != "seed"}))


def _experiment(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a resolved recipe that its results follow from."""
    kept = without_later_keys({key: value for key, value in recipe.items() if key not in _NOT_THE_EXPERIMENT})
    for section, value in kept.items():
        if isinstance(value, Mapping):
            kept[section] = {k: v for k, v in value.items() if f"{section}.{k}" not in _NOT_THE_EXPERIMENT}
    return kept


@dataclass(frozen=True)
class Source:
    """Where a sweep's recipe comes from: a file, a name or its content, and what --set changed."""

    recipe: str | Mapping[str, Any] | None
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, name_or_path: str | None, overrides: Sequence[str] = ()) -> Source:
        """The recipe that a command names; InputError if there is none. It is read again for every run, wherever that
        is, so that a file becomes an absolute path, and of standard input and pipes the content is kept."""
        path = find_recipe(name_or_path)
        return cls(str(path.resolve()) if path.is_file() else read_yaml(path).data, tuple(overrides))

    def resolve(self, base: Recipe, configuration: Configuration, seed: int) -> PlannedRun:
        """The run of one configuration and seed, with its folders inside the sweep's; InputError if it is not valid."""
        settings = {**configuration.settings, "seed": seed, "sweep": None}
        recipe = load_recipe(self.recipe, self.overrides, settings, f"sweep ({configuration.name})")
        run = PlannedRun(configuration, seed, recipe)
        layout, folder = Layout(recipe), base.folder
        prepared = fingerprint(layout.prepared.recipe)
        frozen = fingerprint([prepared, layout.frozen("any").recipe])
        # A recipe that names shared folders of its own keeps them.
        data = {} if recipe.data.dir else {"dir": folder / "data" / prepared[:8]}
        embed = {} if recipe.embed.dir else {"dir": folder / "frozen" / frozen[:8]}
        changes = {
            "name": f"{base.name}-{run.id[:8]}",
            "run_dir": folder / "runs" / run.id,
            "data": recipe.data.model_copy(update=data),
            "embed": recipe.embed.model_copy(update=embed),
        }
        return PlannedRun(configuration, seed, recipe.model_copy(update=changes))


def load_sweep(source: Source, grid: Sequence[str] = (), seeds: str | None = None) -> Recipe:
    """The recipe with its sweep section, to which the command line's ``--grid key=a,b`` and ``--seeds`` are added.

    Raises InputError where neither names any configuration.
    """
    given = load_recipe(source.recipe, source.overrides).sweep
    own: dict[str, Any] = given.model_dump(mode="python", exclude_unset=True) if given else {}
    if grid:
        own["grid"] = {**own.get("grid", {}), **dict(map(_grid_axis, grid))}
    if seeds is not None:
        own["seeds"] = parse_value(seeds, "--seeds")
    if not own:
        raise InputError(
            "this recipe has no sweep section, and no --grid is given",
            "For example: csalign sweep RECIPE --grid train.objective.divergence.weight=0,0.3,1 --seeds 3",
        )
    return load_recipe(source.recipe, source.overrides, {"sweep": own}, "--grid, --seeds")


def _grid_axis(text: str) -> tuple[str, list[Any]]:
    key, separator, values = text.partition("=")
    if not separator or not key.strip() or not values.strip():
        raise InputError(f"--grid {text}: expected key.path=value,value, for example --grid train.lr=1e-3,1e-4")
    parsed = parse_value(f"[{values}]", f"--grid {text}")
    if not isinstance(parsed, list):
        raise InputError(
            f"--grid {text}: [{values}] is no list as YAML has them",
            "Close what is opened, and put text with brackets, quotes or a colon into quotes.",
        )
    return key.strip(), parsed


def configurations(sweep: Sweep) -> list[Configuration]:
    """All configurations of a sweep, in the order of its sections.

    Raises InputError where two configurations have one name or equal settings, or the control is not among them.
    """
    found: list[Configuration] = []
    if sweep.ablation:
        found += _ablations(sweep.ablation)
    found += [Configuration(name, settings) for name, settings in sweep.settings.items()]
    if sweep.grid:
        keys = _short_names(list(sweep.grid))
        for values in itertools.product(*sweep.grid.values()):
            chosen = dict(zip(sweep.grid, values, strict=True))
            found.append(Configuration(_named(chosen, keys), chosen))
    if sweep.random:
        if not sweep.random.keys:
            raise InputError("sweep.random.keys: expected at least one key path and its values")
        rng = random.Random(sweep.random.draw_seed)
        keys = _short_names(list(sweep.random.keys))
        taken = {_setting_text(configuration.settings) for configuration in found}
        for number in range(sweep.random.count):
            chosen = _drawn_anew(sweep.random, rng, taken, number)
            taken.add(_setting_text(chosen))
            found.append(Configuration(_named(chosen, keys), chosen))
    _refuse_twins(found)
    if not found and not sweep.search:
        raise InputError("sweep: names no configurations", "Expected grid, settings, random, search or ablation.")
    if sweep.control is not None and sweep.control not in {c.name for c in found}:
        raise InputError(
            f"sweep.control: no configuration is named {sweep.control!r}"
            + did_you_mean(sweep.control, [c.name for c in found])
        )
    return found


def plan(source: Source, base: Recipe, known: Sequence[Configuration]) -> list[PlannedRun]:
    """Every run of these configurations, seed by seed, so that a sweep that is stopped early has whole replicates.

    Raises InputError where a configuration is not valid, or two come to the same experiment.
    """
    assert base.sweep is not None
    runs = [source.resolve(base, configuration, seed) for seed in base.sweep.seeds for configuration in known]
    owners: dict[str, PlannedRun] = {}
    for run in runs:
        twin = owners.setdefault(run.id, run)
        if twin is not run:
            raise InputError(
                f"sweep: {run.configuration.name} and {twin.configuration.name} are the same experiment",
                "Two configurations must differ in a key that is in force (in a path, its last name): remove one.",
            )
    return runs


def _drawn_anew(spec: Drawn, rng: random.Random, taken: Collection[str], number: int) -> Settings:
    """Settings that no configuration has yet; InputError where many draws give none."""
    for _ in range(_ATTEMPTS):
        chosen = {key: drawn(key, space, rng) for key, space in spec.keys.items()}
        if _setting_text(chosen) not in taken:
            return chosen
    raise InputError(
        f"sweep.random.count: {spec.count} configurations, but after {number} of them {_ATTEMPTS:,} draws gave nothing "
        "that is not among the sweep's already",
        "Name fewer configurations, or more values under sweep.random.keys.",
    )


def _setting_text(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True, default=str)


def drawn(key: str, space: Space, rng: random.Random) -> Any:
    """One value of a space of sweep.random."""
    if space.choices is not None:
        return rng.choice(space.choices)
    if space.low is None:
        raise InputError(f"sweep: {key}: expected low and high, or choices")
    low, high = space.range
    if space.whole and not space.log:
        return rng.randint(math.ceil(low), math.floor(high))
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if space.log else rng.uniform(low, high)
    return round(value) if space.whole else rounded(space, value)


def rounded(space: Space, value: float) -> float:
    """A value of a range with four digits: all that a reader of the table wants, and what the run is named by."""
    low, high = space.range
    return min(max(float(f"{value:.4g}"), low), high)


def named_by(chosen: Settings) -> str:
    """The name of a configuration that nobody has named."""
    return _named(chosen, _short_names(list(chosen)))


def _ablations(components: Sequence[str]) -> list[Configuration]:
    removed: list[tuple[str, str, Any]] = []
    for component in components:
        key, separator, raw = component.partition("=")
        key = key.strip()
        removed.append((key, key, parse_value(raw, f"sweep.ablation: {component}") if separator else None))
    names = _short_names([key for key, _, _ in removed])
    each = [Configuration(f"without {names[key]}", {key: value}) for _, key, value in removed]
    together = {key: value for _, key, value in removed}
    return [Configuration(FULL), *each, *([Configuration("without all", together)] if len(each) > 1 else [])]


def _named(chosen: Settings, keys: Mapping[str, str]) -> str:
    return ", ".join(f"{keys[key]}={_text(value)}" for key, value in chosen.items())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict) and "kind" in value:
        return str(value["kind"])
    return "null" if value is None else str(value)


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """Each key path by as many of its last parts as tell it from the others; ``kind`` and ``weight`` keep one above."""
    names: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            short = ".".join(parts[-count:])
            if parts[-count] == "kind":
                continue
            if sum(other == key or other.endswith(f".{short}") for other in keys) == 1:
                break
        names[key] = short
    return names


def _refuse_twins(found: Sequence[Configuration]) -> None:
    names: dict[str, Configuration] = {}
    for configuration in found:
        twin = names.setdefault(configuration.name, configuration)
        if twin is not configuration:
            what = "are equal" if twin.settings == configuration.settings else "have one name"
            raise InputError(
                f"sweep: two configurations {what}: {shown(configuration.name)}",
                "Remove one, or name both under sweep.settings.",
            )
