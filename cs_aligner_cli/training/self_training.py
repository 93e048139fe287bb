"""Self-training: rounds in which unpaired images and texts that are each other's nearest become pairs of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from cs_aligner_cli.common.arrays import l2_normalize
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.modalities import MODALITIES
from cs_aligner_cli.common.types import Floats, Ints
from cs_aligner_cli.data.prepared import Split
from cs_aligner_cli.files.artifact import read_json, write_json
from cs_aligner_cli.files.checksums import sealed, unsealed
from cs_aligner_cli.recipe.few_pairs import SelfTraining as SelfTrainingSpec
from cs_aligner_cli.retrieval.rows import Rows
from cs_aligner_cli.retrieval.scan import TruePairs, scan
from cs_aligner_cli.towers.towers import Inputs, Towers, embed_split
from cs_aligner_cli.training.teacher import Teacher

# Items of one modality by split, and all of them with a number for each item's split.
Items: TypeAlias = Sequence[tuple[Split, Ints]]
_FILE = "self-training-{:03d}.json"


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Pairs of rows (P,) of images and texts that are each other's nearest, with cosine and margin."""

    image: Ints
    text: Ints
    cosine: Floats
    margin: Floats

    def where(self, kept: npt.NDArray[np.bool_] | Ints) -> Neighbours:
        """Some of the pairs."""
        return Neighbours(self.image[kept], self.text[kept], self.cosine[kept], self.margin[kept])


def mutual_nearest(image: npt.NDArray[Any], text: npt.NDArray[Any], device: str = "cpu") -> Neighbours:
    """The rows of images (M, d) and texts (N, d) that are each other's nearest by cosine, in the order of the images.

    The margin is by how much the cosine exceeds that of the image's second nearest text, or that of the text's second
    nearest image, whichever is less. Of equal cosines the first row is the nearest. None where a side has one row.
    """
    x, y = Rows(image, "images"), Rows(text, "texts")
    if min(len(x), len(y)) < 2:
        return Neighbours(*np.zeros((2, 0), np.int64), *np.zeros((2, 0)))
    none = TruePairs.none()
    forth, back = scan(x, y, none, none, k=2, device=device)
    assert forth is not None
    assert back is not None
    texts, images = forth.top_ids, back.top_ids
    mutual = np.flatnonzero(images[texts[:, 0], 0] == np.arange(len(x)))
    partner = texts[mutual, 0]

    def cosine(rows: Ints, columns: Ints) -> Floats:
        found: Floats = (x.take(rows).double() * y.take(columns).double()).sum(dim=1).numpy()
        return found

    best = cosine(mutual, partner)
    second = np.maximum(cosine(mutual, texts[mutual, 1]), cosine(images[partner, 1], partner))
    return Neighbours(mutual, partner, best, best - second)


@dataclass(frozen=True, eq=False)
class AcceptedPairs:
    """What a round accepted: ``parts`` of items by modality, and (P,) places in them, one after another, of each pair.

    ``right`` (P,): 1 where a pair is one of the data set, 0 where it is not, -1 where nobody knows.
    """

    parts: Mapping[str, Items]
    found: Neighbours
    mutual: int
    right: Ints

    def counts(self) -> dict[str, int]:
        """How many items were each other's nearest, accepted, of known partners, and right."""
        known = self.right >= 0
        kept = {"mutual": self.mutual, "accepted": len(self.right)}
        return {**kept, "known": int(known.sum()), "right": int((self.right == 1).sum())}

    def places(self, modality: str) -> Ints:
        """(P,) the place of each pair's item."""
        return self.found.image if modality == "image" else self.found.text

    def rows(self, modality: str) -> list[tuple[Split, Ints]]:
        """The rows of the accepted items by split, for each of the parts."""
        ends = np.cumsum([0, *(len(rows) for _, rows in self.parts[modality])])
        places = self.places(modality)
        return [
            (split, rows[places[(places >= start) & (places < start + len(rows))] - start])
            for (split, rows), start in zip(self.parts[modality], ends, strict=False)
        ]

    def drawn(self, modality: str, chosen: Ints) -> list[tuple[Split, Ints]]:
        """The items of some pairs in their order, neighbours of one split together."""
        ends = np.cumsum([len(rows) for _, rows in self.parts[modality]])
        places = self.places(modality)[chosen]
        part = np.searchsorted(ends, places, side="right")
        cuts = np.flatnonzero(np.diff(part)) + 1
        found = []
        for run in np.split(np.arange(len(chosen)), cuts):
            if len(run):
                split, rows = self.parts[modality][part[run[0]]]
                found.append((split, rows[places[run] - (ends[part[run[0]]] - len(rows))]))
        return found


@dataclass(frozen=True, eq=False)
class SelfTraining:
    """The rounds of one training run.

    ``parts``: the unpaired items that are compared, by modality. ``truth`` (captions,): the row of the image that each
    caption of ``own``, the training split, belongs to in the data, -1 for none: it is counted with, never trained on.
    ``judges``: closed-form maps under which two items must be each other's nearest, too.
    """

    spec: SelfTrainingSpec
    parts: Mapping[str, Items]
    own: str
    truth: Ints
    judges: Sequence[Teacher]
    epoch_steps: int

    def round_at(self, step: int) -> int | None:
        """The number, from 1, of the round before this step; None where there is none."""
        number, rest = divmod(step - self.spec.first_epoch * self.epoch_steps, self.spec.every * self.epoch_steps)
        return number + 1 if not rest and number >= 0 else None

    def rounds_before(self, step: int) -> int:
        """How many rounds came before a step that was taken before this one."""
        begun = step - 1 - self.spec.first_epoch * self.epoch_steps
        return begun // (self.spec.every * self.epoch_steps) + 1 if begun >= 0 else 0

    def segments(self, steps: range) -> Iterator[range]:
        """The steps, cut where a round comes before one."""
        cuts = [step for step in steps if step == steps.start or self.round_at(step) is not None]
        for start, stop in zip(cuts, [*cuts, steps.stop][1:], strict=False):
            yield range(start, stop)

    def choose(self, towers: Towers, inputs: Inputs, device: torch.device, batch_size: int) -> AcceptedPairs:
        """The pairs that the towers as they are, and the judges, find among the unpaired items."""
        embedded = {
            m: np.concatenate(
                [embed_split(towers, inputs, m, split, rows, device, batch_size) for split, rows in items]
            )
            for m, items in self.parts.items()
            if items
        }
        if len(embedded) < len(MODALITIES):
            return self._accepted(Neighbours(*np.zeros((2, 0), np.int64), *np.zeros((2, 0))), 0)
        found = mutual_nearest(embedded["image"], embedded["text"], "cuda" if device.type == "cuda" else "cpu")
        mutual = len(found.image)
        found = found.where((found.cosine >= self.spec.min_cosine) & (found.margin >= self.spec.min_margin))
        for judge in self.judges:
            image, text = (l2_normalize(judge(m, inputs.features(m, self.parts[m]))).numpy() for m in MODALITIES)
            theirs = mutual_nearest(image, text)
            partner = np.full(len(image), -1)
            partner[theirs.image] = theirs.text
            found = found.where(partner[found.image] == found.text)
        most = max(1, round(self.spec.share * min(map(len, embedded.values()))))
        best = np.sort(np.argsort(-found.cosine, kind="stable")[:most])
        return self._accepted(found.where(best), mutual)

    def write(self, folder: Path, number: int, accepted: AcceptedPairs) -> None:
        """Keep a round in the run's folder: what was accepted, by the items' names and by their places."""
        names: dict[str, list[str]] = {m: [] for m in MODALITIES}
        for m, key in (("image", "image_id"), ("text", "caption_id")):
            for split, rows in accepted.drawn(m, np.arange(len(accepted.right))):
                names[m] += split.table(m)[key].iloc[rows].astype(str).tolist()
        columns = {**vars(accepted.found), "right": accepted.right}
        pairs = {f"{key}_place" if key in MODALITIES else key: values.tolist() for key, values in columns.items()}
        content = {"round": number, **accepted.counts(), "pairs": {**names, **pairs}}
        write_json(folder / _FILE.format(number), sealed(content))

    def read(self, folder: Path, number: int) -> AcceptedPairs:
        """A round that was written. Raises InputError if it is missing or damaged."""
        path = folder / _FILE.format(number)
        hint = f"Remove {folder} to begin it anew."
        if not path.is_file():
            raise InputError(f"{path}: is missing", hint)
        content = unsealed(read_json(path), path, hint)
        pairs = content["pairs"]
        image, text = (np.array(pairs[f"{m}_place"], np.int64) for m in MODALITIES)
        cosine, margin = (np.array(pairs[key], np.float64) for key in ("cosine", "margin"))
        found = Neighbours(image, text, cosine, margin)
        return self._accepted(found, content["mutual"])

    def counts(self, folder: Path, number: int) -> list[dict[str, int]]:
        """What the first so many rounds accepted, with the epochs after which they came."""
        return [
            {"epoch": self.spec.first_epoch + (i - 1) * self.spec.every, **self.read(folder, i).counts()}
            for i in range(1, number + 1)
        ]

    def _accepted(self, found: Neighbours, mutual: int) -> AcceptedPairs:
        """With the truth, where captions of the training split have an image in the data."""
        empty = AcceptedPairs(self.parts, found, mutual, np.full(len(found.image), -1))
        right = empty.right
        owned, belongs = (np.full(len(right), -1) for _ in MODALITIES)
        for m, into in (("image", owned), ("text", belongs)):
            start = 0
            for split, rows in empty.drawn(m, np.arange(len(right))):
                if split.name == self.own:
                    into[start : start + len(rows)] = rows if m == "image" else self.truth[rows]
                start += len(rows)
        known = belongs >= 0
        right[known] = belongs[known] == owned[known]
        return AcceptedPairs(self.parts, found, mutual, right)


def say(name: str, epoch: int, counts: Mapping[str, Any]) -> str:
    """A round in words."""
    truth = f"; {counts['right']} of the {counts['known']} whose partner is known are right" if counts["known"] else ""
    return (
        f"{name}: self-training after epoch {epoch}: {counts['accepted']} pairs accepted of {counts['mutual']} mutual "
        f"nearest neighbours{truth}"
    )
