"""Where what training and measuring read lies, and what it is made from: prepared data and frozen stores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from cs_aligner_cli.common.modalities import FROZEN
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.recipe.later import parts
from cs_aligner_cli.recipe.recipe import Recipe


class InputLayout:
    """The prepared data set, the frozen stores and the pairing of one recipe.

    ``modalities`` are those of every store: image, text and the further ones that the recipe names. A data set of
    unpaired items has a layout of its own, with its ``name`` and the modalities that are taken of it.
    """

    def __init__(self, recipe: Recipe, name: str = "", modalities: Sequence[str] | None = None) -> None:
        self.recipe, self.folder = recipe, recipe.folder
        self.modalities = tuple(modalities or recipe.encoders.modalities)
        self.data_name = name
        self._named = f" of {name}" if name else ""

    @cached_property
    def prepared(self) -> Artifact:
        """The prepared data set: the two tables."""
        data = self.recipe.data
        return Artifact(
            f"prepared data set{self._named}",
            data.dir or self.folder / "data",
            "csalign prepare",
            {
                "data": parts("data", data, exclude={"dir", "max_bad_fraction", "unpaired", "seed", "groups"}),
                "prepare": parts("prepare", self.recipe.prepare, exclude={"repack"}),
            },
        )

    def caption_lengths(self, limit: int) -> Artifact:
        """How long the captions are in tokens of open_clip's tokenizer, for a text tower that reads ``limit``."""
        folder = self.folder / "caption_lengths"
        return Artifact("caption lengths", folder, "csalign prepare", {"limit": limit}, (self.prepared,))

    def tower_check(self, modalities: Sequence[str]) -> Artifact:
        """What was found of towers with weights from elsewhere: that they tell items apart, and what they cut."""
        encoders = self.recipe.encoders
        made_from = {"encoders": {m: parts(f"encoders.{m}", encoders.of(m)) for m in modalities}}
        return Artifact("tower check", self.folder / "tower_check", "csalign prepare", made_from, (self.prepared,))

    @property
    def shards(self) -> Artifact | None:
        """The prepared data set as WebDataset shards, where the recipe asks for them."""
        repack = self.recipe.prepare.repack
        if repack is None:
            return None
        made_from, folder = {"shard_mb": repack.shard_mb}, repack.dir or self.folder / "shards"
        return Artifact("shards", folder, "csalign prepare", made_from, (self.prepared,))

    @cached_property
    def unpaired(self) -> dict[str, Self]:
        """The data sets that bring unpaired items, by name, with artifacts in this run's folder."""
        unpaired = self.recipe.data.unpaired
        found: dict[str, Self] = {}
        for source in unpaired.sources if unpaired else ():
            stem = Path(source.manifest).stem
            name = stem if stem not in found else f"{stem}-{len(found) + 1}"
            data = {"manifest": source.manifest, "root": source.root, "dir": None, "unpaired": None}
            changes = {
                "data": self.recipe.data.model_copy(update=data),
                "run_dir": self.folder / "unpaired" / name,
                "embed": self.recipe.embed.model_copy(update={"dir": None}),
                "train": None,
            }
            found[name] = type(self)(self.recipe.model_copy(update=changes), name, source.modalities)
        return found

    @cached_property
    def pairing(self) -> Artifact | None:
        """Which items of the training split are pairs and which are unpaired; None where all unpaired are left out."""
        unpaired, train = self.recipe.data.unpaired, self.recipe.train
        if unpaired is None or train is None or not self.recipe.trains:
            return None
        return Artifact(
            "pairing",
            self.folder / "pairing",
            "csalign prepare",
            {
                "data": {"unpaired": parts("data.unpaired", unpaired)},
                "train": parts("train", train, include={"split", "val_split", "val_fraction"}),
                "encoders": {"further": [*self.recipe.encoders.further]},
                "seed": self.recipe.data_seed,
            },
            (self.prepared, *(layout.prepared for layout in self.unpaired.values())),
        )

    @property
    def unpaired_stores(self) -> dict[str, Artifact]:
        """The frozen stores of unpaired items from elsewhere, by the name of their data set and its split."""
        sources = self.recipe.data.unpaired.sources if self.recipe.data.unpaired else []
        return {
            f"{name}:{source.split}": layout.frozen(source.split)
            for (name, layout), source in zip(self.unpaired.items(), sources, strict=True)
        }

    def frozen(self, split: str) -> Artifact:
        """The embeddings of one split as the untouched encoders give them."""
        folder = self.recipe.embed.dir or self.folder / "embeddings" / FROZEN
        made_from = self._encoding(split, {"precision", "dtype", "shard_rows"})
        if self._named:
            made_from["modalities"] = self.modalities
        name = f"frozen store of split {split}{self._named}"
        return Artifact(name, folder / split, "csalign embed", made_from, (self.prepared,))

    def _encoding(self, split: str, options: set[str]) -> dict[str, Any]:
        """What decides the encoders' output on a split, ``options`` being those of ``embed``."""
        recipe = self.recipe
        made_from: dict[str, Any] = {
            "encoders": parts("encoders", recipe.encoders),
            "embed": parts("embed", recipe.embed, include=options | {"jpeg"}),
            "split": split,
        }
        if any(getattr(recipe.encoders.of(m), "random_init", False) for m in self.modalities):
            made_from["seed"] = recipe.seed
        return made_from
