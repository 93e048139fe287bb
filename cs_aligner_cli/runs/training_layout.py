"""Where what is trained lies, and the stores that training reads and gives, and what each is made from."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import ALIGNED, CACHED, FROZEN, MODALITIES, PAIRWISE_ONLY, TOKENS
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.files.places import file_stamps
from cs_aligner_cli.recipe.later import parts
from cs_aligner_cli.recipe.train import Train
from cs_aligner_cli.runs.input_layout import InputLayout
from cs_aligner_cli.runs.other_runs import (
    ORIGIN_FILE,
    finished,
    trained_file,
    trainings,
)

# What of the train section has no say in the trained weights.
_NOT_THE_WEIGHTS = (
    "device",
    "log_steps",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "keep_states",
    "conflict_steps",
    "trackers",
    "pairwise_only",
    "matching",
    "from",
)


class TrainingLayout(InputLayout):
    """What is trained, and the stores that training reads and gives."""

    def tokens(self, split: str) -> Artifact:
        """The tokens of one split as the untouched encoders give them, for the towers that read stored tokens."""
        shared = self.recipe.embed.dir
        # No split's name begins with a dot, so this is the folder of none in a shared store.
        folder = shared / f".{TOKENS}" if shared else self.folder / "embeddings" / TOKENS
        made_from = self._encoding(split, {"precision", "token_dtype", "shard_rows"})
        made_from["modalities"] = self.token_modalities
        return Artifact(f"token store of split {split}", folder / split, "csalign embed", made_from, (self.prepared,))

    @cached_property
    def token_modalities(self) -> list[str]:
        """The modalities whose towers read stored tokens: this recipe's, or those of the weights that it takes."""
        train = self.recipe.train
        if self.recipe.embed.weights is not None:
            return _token_towers(self.weights(ALIGNED))
        return train.cached_reading("tokens", self.modalities) if train is not None else []

    @property
    def token_splits(self) -> list[str]:
        """The splits that need a token store: those trained on, and those embedded through trained towers."""
        if not self.token_modalities:
            return []
        aligned = [split for name in self.aligned_names for split in self.aligned_splits(name)]
        return list(dict.fromkeys([*self.training_splits, *aligned]))

    @property
    def variants(self) -> dict[str, Train]:
        """What is trained: the recipe itself and, where asked, the control without the divergence."""
        train = self.recipe.train
        if train is None or not self.recipe.trains:
            return {}
        variants = {ALIGNED: train}
        if train.pairwise_only and not train.objective.is_pairwise_alone:
            control = train.model_copy(update={"objective": train.objective.pairwise_alone()})
            variants = {PAIRWISE_ONLY: control, **variants}
        return variants

    @property
    def training_splits(self) -> list[str]:
        """The splits that training reads: its own and, where it is not held out from that, the validation split."""
        train = self.recipe.train
        splits = (train.split, train.val_split) if train and self.recipe.trains else ()
        return list(dict.fromkeys(split for split in splits if split))

    @property
    def measured_on_training(self) -> str:
        """What to say where a split that is measured is one that is trained on; "" elsewhere."""
        measured = {"eval_retrieval.split": self.recipe.eval_retrieval.split, "gap_report.split": self.recipe.gap_split}
        train = self.recipe.train.split if self.recipe.train is not None and self.recipe.trains else None
        keys = [key for key, split in measured.items() if split == train]
        if not keys:
            return ""
        return (
            f"TRAINING DATA ARE MEASURED: {' and '.join(keys)}: {train}, which is trained on; the numbers show what"
            " was learnt by heart, not what holds for new data"
        )

    @property
    def frozen_splits(self) -> list[str]:
        """The splits that the frozen encoders must embed; live training reads its items itself."""
        cached = self.recipe.train is not None and self.recipe.train.reads_frozen(self.modalities)
        fitted = [self.fit_split] if self.fit_split else []
        fitted += [self.recipe.generate.fit_split] if self.recipe.generate else []
        return list(dict.fromkeys([*(self.training_splits if cached else []), *self.recipe.measured_splits, *fitted]))

    def aligned_splits(self, name: str) -> list[str]:
        """The splits that an aligned store is made of: those measured, and where a baseline of it is fitted."""
        fitted = [self.fit_split] if self.fit_split and self.baselines.get(name) else []
        return list(dict.fromkeys([*self.recipe.measured_splits, *fitted]))

    @property
    def baselines(self) -> dict[str, list[str]]:
        """The no-training baselines of the gap report, by the store that they start from."""
        spec = self.recipe.gap_report.baselines
        wanted: dict[str, list[str]] = {FROZEN: [*spec.frozen]}
        train = self.recipe.train
        # Embedding the training split once more is cheap through adapters, but not through live towers.
        live = train is not None and self.recipe.trains and (train.image.live or train.text.live)
        for name in self.aligned_names if spec.split or not live else ():
            wanted[name] = [*(spec.pairwise_only if name == PAIRWISE_ONLY else spec.aligned)]
        return {name: kinds for name, kinds in wanted.items() if kinds}

    @property
    def fit_split(self) -> str | None:
        """The split that baselines are fitted on; None where there are none, or no features to fit them on."""
        if not self.baselines:
            return None
        train = self.recipe.train
        if self.recipe.gap_report.baselines.split or train is None or not self.recipe.trains:
            return self.recipe.gap_report.baselines.split
        return train.split if train.cached_towers else None

    def trained(self, variant: str) -> Artifact:
        """The checkpoints of one variant."""
        train = self.variants[variant]
        pooled, tokens = train.reads_frozen(self.modalities), train.cached_reading("tokens", self.modalities)
        cached = [self.frozen(split) for split in self.training_splits if pooled]
        cached += [self.tokens(split) for split in self.training_splits if tokens]
        if self.pairing and pooled:
            cached += self.unpaired_stores.values()
        made_from = parts("train", train, exclude={*_NOT_THE_WEIGHTS})
        if train.origin is not None:
            made_from["from"] = self._origin(train.origin, variant)
        teacher = train.objective.teacher
        if teacher is not None:
            del made_from["objective"]["teacher"]["runs"]
            if teacher.runs:
                made_from["objective"]["teacher"]["runs"] = [_mark(run) or run.name for run in teacher.runs]
        return Artifact(
            f"training run {variant}",
            self.folder / "train" / variant,
            "csalign train",
            {
                "train": made_from,
                "encoders": parts("encoders", self.recipe.encoders),
                "seed": self.recipe.seed,
                **self._groups,
                **({} if self.recipe.data.seed is None else {"data_seed": self.recipe.data.seed}),
            },
            (self.prepared, *([self.pairing] if self.pairing else []), *cached),
        )

    @property
    def _groups(self) -> dict[str, str]:
        """What belongs together, where it is not an image and its captions."""
        return {} if self.recipe.data.groups == "image" else {"groups": self.recipe.data.groups}

    def refuse_absent_origin(self) -> None:
        """Raise InputError if this recipe has yet to train from, or be taught by, weights that are not there."""
        needs = self.recipe.train.other_runs if self.recipe.train else []
        if needs and not all(self.trained(variant).fresh() for variant in self.variants):
            for key, run in needs:
                trained_file(run, ORIGIN_FILE, key)

    def _origin(self, run: Path, variant: str) -> str | None:
        """The fingerprint of the training that this one begins with; of one that is gone, what it was."""
        found = _mark(run)
        if found is None and (own := finished(self.folder / "train" / variant).record()):
            found = own["inputs"]["recipe"]["train"].get("from")
        return found

    @property
    def aligned_names(self) -> list[str]:
        """The stores that trained towers give: one for every variant, or one from the weights of another run."""
        return list(self.variants) or ([ALIGNED] if self.recipe.embed.weights else [])

    def aligned(self, name: str, split: str) -> Artifact:
        """The embeddings of one split as trained towers give them."""
        embed = self.recipe.embed
        made_from = parts("embed", embed, include={"dtype", "shard_rows", "weights"})
        needs: tuple[Artifact, ...] = (self.frozen(split), *([self.tokens(split)] if self.token_modalities else []))
        folder = self.folder / "embeddings" / name / split
        if embed.weights is None:
            made_from["checkpoint"] = embed.checkpoint
            needs = (self.trained(name), *needs)
        else:
            made_from["weights"] = self._named_weights(folder)
        return Artifact(f"{name} store of split {split}", folder, "csalign embed", {"embed": made_from}, needs)

    def _named_weights(self, store: Path) -> str | None:
        """What the weights of another run are: its fingerprint, or a file's stamp; once gone, as it was."""
        try:
            file = self.weights(ALIGNED)
        except InputError:
            file = None
        if file is not None and file.is_file():
            return f"{file.name} {finished(file.parent).fingerprint() or file_stamps([file])}"
        own = finished(store).record()
        return own["inputs"]["recipe"]["embed"]["weights"] if own else None

    def weights(self, name: str) -> Path:
        """The weights file that an aligned store is made with."""
        embed = self.recipe.embed
        file = f"{embed.checkpoint}.safetensors"
        if embed.weights is None:
            return self.trained(name).path / file
        if not embed.weights.is_dir():
            return embed.weights
        return trained_file(embed.weights, file, "embed.weights")


def _mark(run: Path) -> str | None:
    """The fingerprint of another run's training; None if it is not there."""
    return next((mark for folder in trainings(run) if (mark := finished(folder).fingerprint())), None)


def _token_towers(weights: Path) -> list[str]:
    """The modalities whose towers in a weights file read stored tokens; none where it is no such file."""
    try:
        with safe_open(weights, framework="numpy") as file:
            plans = json.loads((file.metadata() or {}).get("csalign_towers", "{}"))
    except (SafetensorError, OSError, ValueError):
        return []  # whoever reads the weights themselves says what is wrong with them
    return [m for m in MODALITIES if (plan := plans.get(m, {})).get("reads") == "tokens" and plan.get("tune") in CACHED]
