"""What every manifest says of its data set, whatever the kind."""

from __future__ import annotations

import re
from string import Formatter
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, field_validator

from cs_aligner_cli.recipe.messages import Strict
from cs_aligner_cli.recipe.paths import RootPath

# The place of a prepared data set's files among the places of its record.
ROOT = "root"


class Counts(Strict):
    """How many images and captions a split should have."""

    images: int = Field(ge=0, description="Images.")
    captions: int = Field(ge=0, description="Captions.")


class PublishedFile(Strict):
    """What is known of a file or folder before it is there."""

    size: str | None = Field(None, description="Its size as it is published, as in 13 GB; null: not stated.")
    source: str | None = Field(None, description="Where it is published; null: where the data set is.")


class Described(Strict):
    """What every manifest may say of its data set."""

    name: str = Field(description="Name of the data set.")
    source: str | None = Field(None, description="Where it is obtained.")
    licence: str | None = Field(None, description="Terms of use.")
    citation: str | None = Field(None, description="How to cite it.")
    expected: dict[str, Counts] = Field({}, description="Counts per split; a difference is reported, not refused.")


def _checksum(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", value):
        raise ValueError("expected an MD5 (32 digits) or SHA-256 (64 digits) in hexadecimal, lower case")
    return value


Checksum = Annotated[str, AfterValidator(_checksum)]


def _encoding(value: str) -> str:
    try:
        "a".encode(value)
    except (LookupError, ValueError):  # no encoding of text, or no name of one
        raise ValueError("expected a name that Python knows, such as utf-8, utf-16, cp1252") from None
    return value


Encoding = Annotated[str, AfterValidator(_encoding)]


def _column_pattern(value: str) -> str:
    expected = "expected names of columns in braces, as {id}.jpg or {id:012d}.jpg"
    try:
        fields = [part[1:] for part in Formatter().parse(value) if part[1] is not None]
    except ValueError as error:
        raise ValueError(f"{error}; {expected}") from None
    for name, spec, conversion in fields:
        if not name or name.isdigit() or re.search(r"[.\[]", name) or conversion or "{" in (spec or ""):
            raise ValueError(f"{expected}, and nothing else in them")
    if not {name for name, *_ in fields} - {"split"}:
        raise ValueError(f"every row would have the same image; {expected}")
    return value


ColumnPattern = Annotated[str, AfterValidator(_column_pattern)]


class OnDisk(Described):
    """A data set whose files lie in a folder."""

    checksums: dict[str, Checksum] = Field(
        {}, description="MD5 or SHA-256 by file, relative to root; a file that is there and differs is refused."
    )
    files: dict[str, PublishedFile] = Field(
        {}, description="Size and source by file or folder, relative to root, for csalign doctor to name."
    )
    root: RootPath | None = Field(
        None,
        description="Folder of the files, or hf:ORG/NAME[@REVISION] for a data set of Hugging Face's hub, of which what"
        " the manifest names is fetched once; null: the manifest's own folder, or data.root.",
    )
    split_fractions: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        {},
        description="Draw the splits, in place of the source's own: the share of the images by split. Equal and nearly"
        " equal images stay together.",
    )
    split_seed: int = Field(0, ge=0, description="Seed of that draw.")

    @field_validator("split_fractions")
    @classmethod
    def _one_in_all(cls, value: dict[str, float]) -> dict[str, float]:
        if value and abs(sum(value.values()) - 1) > 1e-6:
            raise ValueError(f"expected fractions that sum to 1, these sum to {sum(value.values()):g}")
        return value


AbsentFiles: TypeAlias = Literal["bad", "skip"]
ABSENT_FILES = "An image that is not there is a bad item, or (skip) is left out and counted."
