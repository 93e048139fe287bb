"""What prepare returns: counts per split, and all that was dropped, skipped, repeated or is odd."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field, RootModel

from cs_aligner_cli.common.console import table
from cs_aligner_cli.common.results import Frozen, StageResult, Status
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.data.findings import cut_captions, data_findings, leak, repeated_texts

# Fewer different texts than this share of the captions are worth a warning.
_DISTINCT = 0.9


class Counts(Frozen):
    """Items of one split."""

    images: int
    captions: int


class Repeats(Frozen):
    """How often a content is repeated."""

    repeats: int = Field(description="rows whose content an earlier row has, too")
    contents_in_several_splits: int = Field(description="contents that stand in more than one split: a leak")


class NearImages(Frozen):
    """Images that look like one of another split."""

    distance: int = Field(description="the most of the 64 bits of dhash that may differ")
    images: dict[str, int] = Field(description="how many in each split")


class NearDuplicates(Frozen):
    """What stands in several splits without being equal; a part that was not looked for is left out."""

    captions: dict[str, int] = Field({}, description="captions of a split that say what one of another split says")
    images: NearImages | None = None


class BadItem(Frozen):
    """One item that could not be used."""

    kind: str
    item: str
    reason: str


class Bad(Frozen):
    """How many items could not be used, and the first few of them; the whole list is in report.json."""

    images: int
    captions: int
    rows: int = 0
    members: int = 0
    shards: int = 0
    first: list[BadItem]

    def counts(self) -> dict[str, int]:
        """How many of each kind, where there are any."""
        kinds = {kind: count for kind, count in self if isinstance(count, int)}
        return {kind: count for kind, count in kinds.items() if count}


class CaptionLengths(Frozen):
    """Lengths in tokens of the text tower's tokenizer, the two marks included."""

    status: Status | None = Field(None, description="absent where they were measured with the check of the towers")
    limit: int = Field(description="what the tower reads")
    truncated: int = Field(description="captions that are longer, and lose their end")
    median: int
    p95: int
    longest: int


class Shards(Frozen):
    """The prepared data as WebDataset shards."""

    status: Status
    folder: str
    splits: dict[str, int] = Field(description="shards of each split")


class Roles(Frozen):
    """Training items of one modality by what training does with them."""

    paired: int
    unpaired: int
    left_out: int = Field(alias="left out")


class Pairing(RootModel[dict[str, Roles | Status]], frozen=True):
    """Roles by modality; ``status`` says whether they were drawn now."""

    def by_modality(self) -> dict[str, Roles]:
        """The roles alone."""
        return {name: roles for name, roles in self.root.items() if isinstance(roles, Roles)}


class PreparedSet(Frozen):
    """A further data set that the recipe is evaluated on."""

    status: Status
    folder: str
    splits: dict[str, Counts]
    caption_lengths: CaptionLengths | None


class PrepareResult(StageResult):
    """The prepared data set."""

    data_set: str
    folder: str
    splits: dict[str, Counts]
    duplicates: dict[str, Repeats]
    near_duplicates: NearDuplicates
    bad: Bad
    bad_fraction: float = Field(description="of the kind of items of which the largest part is bad")
    skipped: dict[str, int] = Field(description="what was left out for a reason that is no fault, and how often")
    without_partner: dict[str, Counts] = Field(description="images without captions and captions without image")
    different_texts: dict[str, int] = Field({}, description="of the splits in which captions share their text")
    pictures: dict[str, int] = Field({}, description="how pictures are converted, and how many of each")
    notes: list[str]
    unlike_manifest: list[str] = Field(description="counts that are not what the manifest expects")
    towers: dict[str, str] = Field(description="towers with weights from elsewhere that were tried, by modality")
    caption_lengths: CaptionLengths | None
    shards: Shards | None
    pairing: Pairing | None
    sets: dict[str, PreparedSet] = Field({}, description="of eval_retrieval.sets; absent without")

    def warnings(self) -> list[str]:
        """Leaks, captions that are cut, and what the reader of the data warns of."""
        leaks = [
            leak(what, found.contents_in_several_splits)
            for what, found in self.duplicates.items()
            if found.contents_in_several_splits
        ]
        repeated = [
            repeated_texts(split, self.splits[split].captions, texts)
            for split, texts in self.different_texts.items()
            if texts < _DISTINCT * self.splits[split].captions
        ]
        lengths = self.caption_lengths
        cut = [cut_captions(lengths.truncated, lengths.limit)] if lengths and lengths.truncated else []
        for name, found in self.sets.items():
            if (read := found.caption_lengths) and read.truncated:
                cut.append(f"{name}: {cut_captions(read.truncated, read.limit)}")
        return [*self.notes, *leaks, *repeated, *cut]

    def findings(self) -> list[str]:
        """All that was dropped, cut, leaked, unmatched or repeated."""
        lengths = self.caption_lengths
        return data_findings(self.model_dump(mode="json"), lengths.model_dump() if lengths else None)

    def tables(self) -> list[Table]:
        """Counts per split; what was dropped, skipped or repeated."""
        title = f"prepared data set {self.data_set} in {self.folder}"
        counts = [(split, n.images, n.captions) for split, n in self.splits.items()]
        tables = [table(title, ["split", "images", "captions"], counts)]
        if self.pairing:
            roles = [(m, r.paired, r.unpaired, r.left_out) for m, r in self.pairing.by_modality().items()]
            tables.append(table("training items", ["modality", "paired", "unpaired", "left out"], roles))
        if self.shards:
            written = list(self.shards.splits.items())
            tables.append(table(f"WebDataset shards in {self.shards.folder}", ["split", "shards"], written))
        for name, found in self.sets.items():
            rows = [(split, n.images, n.captions) for split, n in found.splits.items()]
            tables.append(table(f"evaluated on {name} in {found.folder}", ["split", "images", "captions"], rows))
        remarks = list(self._to_know())
        return [*tables, table("to know", ["what", "count"], remarks)] if remarks else tables

    def _to_know(self) -> Iterator[tuple[str, int | str]]:
        yield from ((f"bad {kind}", n) for kind, n in self.bad.counts().items())
        yield from ((f"skipped: {what}", n) for what, n in self.skipped.items() if n)
        for split, alone in self.without_partner.items():
            if alone.images:
                yield f"images of split {split} without captions", alone.images
            if alone.captions:
                yield f"captions of split {split} without images", alone.captions
        yield from ((f"different texts among the captions of split {s}", n) for s, n in self.different_texts.items())
        yield from ((f"pictures: {what}", n) for what, n in self.pictures.items())
        yield from ((what, found.repeats) for what, found in self.duplicates.items() if found.repeats)
        for what, found in self.duplicates.items():
            if found.contents_in_several_splits:
                yield f"{what}, in several splits", found.contents_in_several_splits
        if near := self.near_duplicates.images:
            what = f"looking like one of another split (dhash, at most {near.distance} of 64 bits)"
            yield from ((f"images of {split} {what}", n) for split, n in near.images.items())
        for split, n in self.near_duplicates.captions.items():
            yield f"captions of {split} saying what one of another split says", n
        if lengths := self.caption_lengths:
            yield f"captions longer than {lengths.limit} tokens, which lose their end", lengths.truncated
            yield "longest caption, tokens", lengths.longest
            yield "95% of the captions have at most, tokens", lengths.p95
        yield from ((f"unlike the manifest: {text}", "") for text in self.unlike_manifest)
