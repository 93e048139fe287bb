"""The recipe: one typed, frozen description of an experiment that drives every stage."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from cs_aligner_cli import __version__
from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.recipe.data import Data
from cs_aligner_cli.recipe.distributed import Distributed
from cs_aligner_cli.recipe.embed import Embed
from cs_aligner_cli.recipe.encoders import Encoders
from cs_aligner_cli.recipe.eval_retrieval import EvalRetrieval, ZeroShot
from cs_aligner_cli.recipe.expected import Expected
from cs_aligner_cli.recipe.gap_report import GapReport
from cs_aligner_cli.recipe.generate import Generate
from cs_aligner_cli.recipe.messages import (
    NAME_PATTERN,
    CommandLineText,
    FilePath,
    Strict,
    key_paths,
    set_value,
    validate,
)
from cs_aligner_cli.recipe.prepare import Prepare
from cs_aligner_cli.recipe.strict_yaml import KeyPath, YamlFile, dump_yaml, parse_value, plain, read_yaml
from cs_aligner_cli.recipe.sweep import Sweep
from cs_aligner_cli.recipe.train import Train, keys_of_unpaired_items

RECIPE_VARIABLE = "CSALIGN_RECIPE"
DEFAULT_RECIPE = Path("recipe.yaml")
# What stands in messages for the file of a recipe that is given as a dict.
_GIVEN = Path("recipe")
# Raised when a key changes its meaning, so that no recipe is read as what it was not.
VERSION = 1


class Recipe(Strict):
    """One experiment from data to report."""

    version: int = Field(
        VERSION,
        ge=VERSION,
        le=VERSION,
        description="The version of the recipe's keys; csalign refuses recipes of another one, and says so.",
    )
    name: str = Field(pattern=NAME_PATTERN, description="Short name; letters, digits, _ . -")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of every random draw.")
    run_dir: FilePath | None = Field(
        None, description="Where the run is written; null: runs/NAME in the current folder."
    )
    data: Data = Field(Data(), description="What is aligned.")
    prepare: Prepare = Field(Prepare(), description="How the data are checked.")
    encoders: Encoders = Field(Encoders(), description="The towers before training.")
    embed: Embed = Field(Embed(), description="How embeddings are computed.")
    train: Train | None = Field(Train(), description="What is trained; null: nothing, the frozen towers are measured.")
    eval_retrieval: EvalRetrieval = Field(EvalRetrieval(), description="Retrieval numbers.")
    zero_shot: ZeroShot = Field(ZeroShot(), description="Zero-shot classification.")
    gap_report: GapReport = Field(GapReport(), description="Gap numbers and pictures.")
    generate: Generate | None = Field(None, description="Pictures drawn from text embeddings; null: none are.")
    distributed: Distributed = Field(Distributed(), description="Several processes, started by torchrun.")
    sweep: Sweep | None = Field(None, description="Many runs of this recipe (csalign sweep); null: one run.")

    expected: Expected | None = Field(None, description="What was published of this experiment; null: nothing.")

    @model_validator(mode="after")
    def _ours_are_keys(self) -> Recipe:
        known = key_paths(Recipe)
        for number, key in enumerate(self.expected.ours if self.expected else ()):
            if key not in known:
                raise ValueError(f"expected.ours.{number}: unknown key {key!r}{did_you_mean(key, known)}")
        return self

    @model_validator(mode="after")
    def _modalities_are_named(self) -> Recipe:
        known, train, measured = self.encoders.modalities, self.train, self.gap_report.modalities
        for name in train.further if train else ():
            if name not in self.encoders.further:
                raise ValueError(f"train.further: encoders.further names no {name!r}{did_you_mean(name, known[2:])}")
        for name in measured:
            if name not in known:
                raise ValueError(f"gap_report.modalities: {name!r} is no modality here{did_you_mean(name, known)}")
        if len({*measured}) < 2:
            raise ValueError("gap_report.modalities: expected two different ones, as in [audio, text]")
        for key, folders in (("beside", self.gap_report.beside), ("seeds", self.gap_report.seeds)):
            if folders and measured != ["image", "text"]:
                raise ValueError(f"gap_report.{key} goes with gap_report.modalities: [image, text]")
        return self

    @model_validator(mode="after")
    def _edges_bind_all(self) -> Recipe:
        known, train = self.encoders.modalities, self.train
        if train is None:
            return self
        for edge in train.edges or ():
            if len(edge) != 2 or edge[0] == edge[1]:
                raise ValueError(f"train.edges: expected pairs of two modalities, as in [image, text]; got {edge}")
            for name in edge:
                if name not in known:
                    raise ValueError(f"train.edges: {name!r} is no modality here{did_you_mean(name, known)}")
        if len({*self.edges}) < len(self.edges):
            raise ValueError("train.edges: an edge is named twice")
        if lonely := [m for m in known if not any(m in edge for edge in self.edges)]:
            raise ValueError(f"train.edges: {', '.join(lonely)} is in no edge, so nothing would bind it to the others")
        if (train.objective.sees_tokens or train.matching) and self.edges[0] != known[:2]:
            raise ValueError("train.edges: terms of tokens, and matching, need [image, text] as the first edge")
        if train.objective.pseudo_pairs and known[:2] not in self.edges:
            raise ValueError("train.edges: objective.pseudo_pairs needs [image, text] among the edges")
        return self

    @model_validator(mode="after")
    def _of_images_and_texts_alone(self) -> Recipe:
        train = self.train
        if train is None or not self.encoders.further:
            return self
        for modality in [m for m in ("image", "text") if train.tower(m).live]:
            raise ValueError(f"train.{modality}.tune: further modalities go with towers on cached features")
        if train.conflict_steps:
            raise ValueError("train.conflict_steps: the conflict is measured of images and texts alone")
        if train.start != "plain":
            raise ValueError(f"train.start: {train.start} is of images and texts alone; use plain")
        for key, does in (("mixup", "mixes"), ("self_training", "finds")):
            if getattr(train, key):
                raise ValueError(f"train.{key}: it {does} pairs of images and texts alone; use null")
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> Recipe:
        self.embed.refuse_jpegs_of(self.encoders.image.kind)
        for m in ("image", "text"):
            if self.train and self.train.tower(m).live:
                self.encoders.refuse_layers(m, self.train.tower(m).tune)
        if self.shots_split == self.zero_shot_split:
            raise ValueError(f"zero_shot.shots_split: {self.shots_split!r} is the split that is classified")
        _refuse_what_is_not_there(self)
        return self

    @model_validator(mode="after")
    def _sweep_varies_known_keys(self) -> Recipe:
        known = key_paths(Recipe)
        for key, place in self.sweep.varied_keys.items() if self.sweep else ():
            if key.split(".")[0] == "sweep" or key in ("seed", "name", "run_dir"):
                seeds = "; seeds stand in sweep.seeds" if key == "seed" else ""
                raise ValueError(f"{place}: the sweep itself sets {key}{seeds}")
            # Keys below a free mapping (train.further.audio.tune) are judged when the configuration is resolved.
            if key not in known and ".further." not in key:
                raise ValueError(f"{place}: unknown key{did_you_mean(key, known)}")
        return self

    @property
    def edges(self) -> list[tuple[str, str]]:
        """The pairs of modalities that the pairwise term ranks."""
        if self.train and self.train.edges:
            order = self.encoders.modalities.index
            return [(min(edge, key=order), max(edge, key=order)) for edge in self.train.edges]
        return [("image", "text"), *((name, "text") for name in self.encoders.further)]

    @model_validator(mode="after")
    def _no_tokens_from_elsewhere(self) -> Recipe:
        reading = self.train.cached_reading("tokens", self.encoders.modalities) if self.train else []
        for number, source in enumerate(self.data.unpaired.sources if self.data.unpaired else []):
            if both := [modality for modality in source.modalities if modality in reading]:
                raise ValueError(
                    f"data.unpaired.sources.{number} brings {both[0]} items, but train.{both[0]}.reads: tokens needs a "
                    "token store, which other manifests do not get; data.unpaired.paired_fraction goes with tokens"
                )
        return self

    @property
    def trains(self) -> bool:
        """Whether this recipe trains anything itself."""
        return self.train is not None and self.embed.weights is None

    @property
    def data_seed(self) -> int:
        """The seed of what is drawn of the data."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def folder(self) -> Path:
        """The run directory."""
        return self.run_dir or Path.cwd() / "runs" / self.name

    def to_yaml(self) -> str:
        """The recipe with every default written out and every path absolute; csalign reads it back."""
        return dump_yaml(self.model_dump(mode="json"))

    @property
    def gap_split(self) -> str:
        """The split that the gap report measures."""
        return self.gap_report.split or self.eval_retrieval.split

    @property
    def zero_shot_split(self) -> str:
        """The split that zero-shot classifies."""
        return self.zero_shot.split or self.eval_retrieval.split

    @property
    def shots_split(self) -> str | None:
        """The split that few-shot classification draws from; None where it is not wanted."""
        spec, of_training = self.zero_shot, self.train.split if self.train else "train"
        return (spec.shots_split or of_training) if spec.wanted and spec.shots else None

    @property
    def drawn_split(self) -> str:
        """The split whose captions are drawn from."""
        return (self.generate.split if self.generate else None) or self.eval_retrieval.split

    @property
    def splits(self) -> dict[str, str]:
        """The splits that this recipe reads, by the key that names each; keys that are null are left out."""
        train, retrieval = self.train, self.eval_retrieval
        named: dict[str, str | None] = {}
        if train is not None and self.trains:
            named |= {"train.split": train.split, "train.val_split": train.val_split}
        named |= {"eval_retrieval.split": retrieval.split, "gap_report.split": self.gap_report.split}
        if self.zero_shot.wanted:
            named |= {"zero_shot.split": self.zero_shot.split, "zero_shot.shots_split": self.shots_split}
        if retrieval.corrections:
            named["eval_retrieval.query_bank.split"] = retrieval.query_bank.split
        if self.generate is not None:
            named |= {"generate.split": self.generate.split, "generate.fit_split": self.generate.fit_split}
        named["gap_report.baselines.split"] = self.gap_report.baselines.split
        return {key: split for key, split in named.items() if split}

    @property
    def measured_splits(self) -> list[str]:
        """The splits that eval-retrieval, zero-shot, generate and gap-report read, and the query bank's."""
        retrieval = self.eval_retrieval
        bank = [retrieval.query_bank.split] if retrieval.corrections else []
        classified = [self.zero_shot_split, self.shots_split] if self.zero_shot.wanted else []
        drawn = [self.drawn_split] if self.generate else []
        return [*dict.fromkeys(s for s in (retrieval.split, self.gap_split, *classified, *drawn, *bank) if s)]


def _refuse_what_is_not_there(recipe: Recipe) -> None:
    """Raise ValueError where keys want unpaired items or a matching head, and there are none."""
    for key in keys_of_unpaired_items(recipe.train) if recipe.train and recipe.data.unpaired is None else ():
        raise ValueError(
            f"{key}: without data.unpaired there are no unpaired items; data.unpaired: {{}} takes what is unpaired "
            "by itself"
        )
    if recipe.eval_retrieval.rerank and not (recipe.trains and recipe.train and recipe.train.matching):
        why = "embed.weights names towers without one" if recipe.embed.weights else "train.matching: {} trains one"
        raise ValueError(f"eval_retrieval.rerank: there is no matching head: {why}")


def load_recipe(
    name_or_path: str | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    settings_of: str = "",
) -> Recipe:
    """Read, override and validate a recipe.

    ``name_or_path`` is a file or a recipe of the shelf, or the content of one as a dict (paths relative to the current
    folder, numpy's numbers as good as Python's, messages say "recipe" in place of a file); None means $CSALIGN_RECIPE,
    then ./recipe.yaml. Each override is ``a.b.c=value``; ``settings`` then set key paths to values as a recipe file
    holds them, and ``settings_of`` says in messages where they come from. Raises InputError with all problems in one
    report.
    """
    if isinstance(overrides, str):
        raise InputError(f"overrides: expected a list, got {overrides!r} alone", "Put it into a list: [...].")
    if not isinstance(overrides, Sequence) or not all(isinstance(text, str) for text in overrides):
        raise InputError(f"overrides: expected a list of texts, as train.lr=1e-3; got {overrides!r}")
    if isinstance(name_or_path, Mapping):
        file = YamlFile(_GIVEN, plain(name_or_path))
    else:
        file = read_yaml(find_recipe(name_or_path))
    changes: dict[KeyPath, str] = {}
    for text in overrides:
        path, raw = _override(text)
        set_value(file.data, path, _from_command_line(parse_value(raw, f"--set {text}")))
        changes[path] = raw
    _refuse_other_version(file)
    if not settings:
        return validate(Recipe, file, changes)
    own = {tuple(key.split(".")): value for key, value in settings.items()}
    for path, value in own.items():
        set_value(file.data, path, plain(value), settings_of)
    return validate(Recipe, file, dict.fromkeys(own, ""), settings_of)


def _refuse_other_version(file: YamlFile) -> None:
    """Raise InputError if a recipe is of another version: what it says of its keys would mislead."""
    given = file.data.get("version", VERSION)
    if isinstance(given, bool) or not isinstance(given, int) or given == VERSION:
        return
    newer = given > VERSION
    remedy = (
        "pip install --upgrade cs-aligner-cli" if newer else "write its keys as docs/recipe.md has them, and version: 1"
    )
    raise InputError(
        f"{file.where(('version',))}: version: this recipe is {'newer' if newer else 'older'} than what this csalign "
        f"({__version__}) reads: version {given}, and it reads {VERSION}; {remedy}"
    )


def named_recipe(name_or_path: str | None = None) -> str | None:
    """The file or name of a recipe where there is one to take: the one given, $CSALIGN_RECIPE, ./recipe.yaml."""
    here = str(DEFAULT_RECIPE) if DEFAULT_RECIPE.is_file() else None
    return name_or_path or os.environ.get(RECIPE_VARIABLE) or here


def find_recipe(name_or_path: str | None = None) -> Path:
    """The recipe file that is meant; raise InputError if there is none."""
    if name_or_path is not None:
        if not isinstance(name_or_path, str | Path):
            raise InputError(f"recipe: expected a name, a file or a dict, got {name_or_path!r}")
        return shelf.find("recipes", name_or_path)
    if named := os.environ.get(RECIPE_VARIABLE):
        return shelf.find("recipes", named, said_by=f"${RECIPE_VARIABLE}: ")
    if DEFAULT_RECIPE.is_file():
        return DEFAULT_RECIPE
    raise InputError(
        f"no recipe is named, ${RECIPE_VARIABLE} is not set, and there is no {DEFAULT_RECIPE} here",
        "Name a file or one of: " + ", ".join(shelf.names("recipes")),
    )


def _override(text: str) -> tuple[KeyPath, str]:
    key, separator, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not separator or not all(path):
        raise InputError(f"--set {text}: expected key.path=value, for example --set train.lr=1e-3")
    return path, value.strip()


def _from_command_line(value: Any) -> Any:
    """Mark all text inside a value as given on the command line."""
    if isinstance(value, dict):
        return {key: _from_command_line(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_from_command_line(inner) for inner in value]
    return CommandLineText(value) if isinstance(value, str) else value


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of recipes; shipped recipes name it in their second line for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema()}
