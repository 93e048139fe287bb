"""What holds of every source: splits spelt in one way, captions on their own images, what has no partner counted."""

from __future__ import annotations

import pandas as pd

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.data.caption_text import PLACEHOLDERS
from cs_aligner_cli.data.collector import LOST_CAPTIONS, Source, folded

# What a caption shows nothing by: spaces, marks without a width, the byte order mark.
_BLANK = "".join(chr(code) for code in range(2**16) if chr(code).isspace()) + "\u00ad\u200b\u200c\u200d\u2060\ufeff"
# Of a split that has pairs, so many images or captions without a partner are worth a warning.
_MANY = 0.01


def unify_splits(source: Source) -> None:
    """Give splits that differ in case or surrounding spaces alone one name, the first, and note it."""
    tables = [source.images, source.captions, *source.further.values()]
    spelt = pd.unique(pd.concat([table["split"].astype(object) for table in tables], ignore_index=True))
    first: dict[str, str] = {}
    names = {name: first.setdefault(folded(name), name.strip()) for name in spelt}
    changed = {name: kept for name, kept in names.items() if name != kept}
    if not changed:
        return
    for table in tables:
        table["split"] = table["split"].map(names)
    renamed = ", ".join(f"{name!r} as {kept!r}" for name, kept in changed.items())
    source.notes.append(f"splits that differ in case or spaces alone are one: {renamed}")


def linked(source: Source) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Images and captions: captions that are empty or do not fit their image are dropped, the rest is numbered."""
    images, captions = source.images, source.captions
    image_split = captions["image_id"].map(images.set_index("image_id")["split"])
    paired = captions["image_id"].notna()
    # An image that was dropped or skipped takes its captions along; they are no bad items of their own.
    lost = paired & image_split.isna()
    unlisted = lost & ~captions["image_id"].isin(source.dropped)
    text = captions["text"].str.strip(_BLANK)
    empty = ~lost & (text == "")
    missing = ~lost & text.isin(PLACEHOLDERS)
    other_split = ~(lost | empty | missing) & paired & (image_split != captions["split"])
    reasons = {
        "empty caption": empty,
        "stands for a missing caption": missing,
        "caption and image are in different splits": other_split,
    }
    for reason, mask in reasons.items():
        source.bad += [
            {
                "kind": "caption",
                "item": f"caption {i} (counted from 0) of image {image_id}",
                "reason": f"{written!r} {reason}" if mask is missing else reason,
            }
            for i, image_id, written in captions.loc[mask, ["image_id", "text"]].itertuples(name=None)
        ]
    source.bad += _without_image(captions.loc[unlisted, "image_id"], images["image_id"])
    if along := int((lost & ~unlisted).sum()):
        source.skipped[LOST_CAPTIONS] = source.skipped.get(LOST_CAPTIONS, 0) + along
    captions = captions[~(lost | empty | missing | other_split)].reset_index(drop=True)
    captions.insert(0, "caption_id", [f"{i:08d}" for i in range(len(captions))])
    return images, captions


def _without_image(named: pd.Series, images: pd.Series) -> list[dict[str, str]]:
    """Captions that name an image that is not listed, as bad items; says which id may have been meant."""
    alike = {_bare(image): image for image in images} if len(named) else {}
    return [
        {
            "kind": "caption",
            "item": f"caption {i} (counted from 0) of image {image_id}",
            "reason": f"names the image {image_id!r}, which is not listed"
            + (f", but {meant!r} is: write both in the same way" if (meant := alike.get(_bare(image_id))) else ""),
        }
        for i, image_id in named.items()
    ]


def _bare(image_id: str) -> str:
    """An id without what spreadsheets and file systems change in it: leading zeros, case, ".0", a folder, a suffix."""
    stem = image_id.strip().replace("\\", "/").rpartition("/")[2].casefold()
    stem = stem.rpartition(".")[0] or stem
    return stem.lstrip("0") or "0"


def without_partner(images: pd.DataFrame, captions: pd.DataFrame) -> tuple[dict[str, dict[str, int]], list[str]]:
    """{split: {"images", "captions"}} that have no partner, where there are any; and what to warn of.

    A split in which nothing is paired is one of unpaired items, and needs no warning.
    """
    has_caption = images["image_id"].isin(captions["image_id"])
    tables = {"images": images, "captions": captions}
    alone = {"images": images[~has_caption], "captions": captions[captions["image_id"].isna()]}
    found: dict[str, dict[str, int]] = {}
    warnings: list[str] = []
    paired = set(images.loc[has_caption, "split"])
    for split in dict.fromkeys([*images["split"].unique(), *captions["split"].unique()]):
        counts = {what: int((table["split"] == split).sum()) for what, table in alone.items()}
        if any(counts.values()):
            found[str(split)] = counts
        for what, other in (("images", "captions"), ("captions", "images")) if split in paired else ():
            total = int((tables[what]["split"] == split).sum())
            if counts[what] > _MANY * total:
                warnings.append(f"split {split}: {counted(counts[what], what, 'have', of=total)} no {other}")
    return found, warnings
