"""Every fault of data found in the field: the examples of field_examples.py and these, prepared and checked.

python tests/bad_inputs.py writes the table of docs/bad-inputs.md from these.
"""

from __future__ import annotations

import json

from field_examples import COCO, FOLDER, IDENTITY_AND_PAIRS, SHARDS, TABLE, TWO, Fault, coco, csv, images_inside, shard
from trials import Outcome, Trial, picture

from cs_aligner_cli.common.counted import counted

FAULTS = [
    *IDENTITY_AND_PAIRS,
    Fault(
        "text",
        "CSV: a cell that holds a JSON list",
        TABLE,
        csv('image,caption\n0.png,"[""a"", ""b""]"\n1.png,c\n'),
        0,
        (2, 3),
    ),
    Fault(
        "text",
        "CSV: a cell that holds numpy's list",
        TABLE,
        csv("image,caption\n0.png,['a' 'b']\n1.png,c\n"),
        0,
        (2, 3),
    ),
    Fault(
        "text",
        "TSV: a quote that does not end",
        {**TABLE, "table": "t.tsv"},
        {**TWO, "t.tsv": 'image\tcaption\n0.png\t"Go slowly\n1.png\tnamed Tom"\n'},
        0,
        (2, 2),
    ),
    Fault(
        "text",
        "CSV: a quote that swallows the next row",
        TABLE,
        csv('image,caption\n0.png,"Go slowly\n1.png,named Tom"\n'),
        2,
        None,
        "has a cell that holds further rows",
    ),
    Fault(
        "text",
        "U+2028, U+0085, form feed in a text file",
        {"kind": "folder"},
        {**FOLDER, "0.txt": "a\u2028b\x85c\x0cd"},
        0,
        (1, 1),
    ),
    Fault(
        "text",
        "shards: five captions in the lines of a text",
        SHARDS,
        {"a.tar": shard("0.png", "0.txt", **{"0_txt": "a\nb\nc\nd\ne"})},
        0,
        (1, 5),
    ),
    Fault(
        "text",
        "a description of several paragraphs, captions: whole",
        {"kind": "folder", "captions": "whole"},
        {**FOLDER, "0.txt": "A dog.\n\nA house,\nred.\n"},
        0,
        (1, 1),
    ),
    Fault(
        "text",
        "captions nan, None, null",
        TABLE,
        csv("image,caption\n0.png,nan\n1.png,fine\n"),
        3,
        (2, 1),
        "'nan' stands for a missing caption",
    ),
    Fault(
        "text",
        "a column that is there twice",
        TABLE,
        csv("image,caption,caption\n0.png,1,a\n"),
        2,
        None,
        "the column 'caption' is there 2 times",
    ),
    Fault(
        "text",
        "a null caption in COCO",
        COCO,
        {**TWO, "c.json": coco([(0, "0.png"), (1, "1.png")], [(0, None), (1, "x")])},
        3,
        (2, 1),
        "a caption is null",
    ),
    Fault(
        "refusal",
        "a byte order mark in JSON",
        COCO,
        {**TWO, "c.json": "\ufeff" + json.dumps(coco([(0, "0.png")], [(0, "x")]))},
        0,
        (1, 1),
    ),
    Fault(
        "refusal",
        "NaN in JSON",
        COCO,
        {**TWO, "c.json": '{"images": [{"id": NaN}]}'},
        2,
        None,
        "line 1 holds NaN, for which JSON has no value",
    ),
    Fault(
        "refusal",
        "COCO: ids written as 1.0",
        COCO,
        {**TWO, "c.json": coco([(0.0, "0.png"), (1.0, "1.png")], [(0, "a"), (1, "b")])},
        0,
        (2, 2),
    ),
    Fault(
        "refusal",
        "COCO: ids that are text in one place",
        COCO,
        {**TWO, "c.json": coco([(0, "0.png"), (1, "1.png")], [("0", "a"), (1, "b")])},
        3,
        (2, 1),
        "but 0 (a number) is: write both in the same way",
    ),
    Fault(
        "refusal",
        "a .csv with tabs",
        TABLE,
        csv("image\tcaption\n0.png\ta, b\n1.png\tc\n"),
        0,
        (2, 2),
        "read with tabs between the cells",
    ),
    Fault(
        "refusal",
        "Kaggle's results.csv, pipes, one row cut",
        TABLE,
        csv("image| n| caption\n0.png| 0| a .\n1.png| 4   b .\n"),
        3,
        (1, 1),
        "line 3 has 2 cells, the header 3",
    ),
    Fault(
        "refusal",
        "a table without a split column",
        {"kind": "table", "table": "t.csv"},
        csv("image,caption\n0.png,a\n"),
        2,
        None,
        "split_column: null",
    ),
    Fault(
        "refusal",
        "paths with backslashes",
        TABLE,
        csv("image,caption\nsub\\0.png,a\n1.png,b\n", **{"sub/0.png": picture(3)}),
        3,
        (1, 1),
        "did you mean sub/0.png?",
    ),
    Fault(
        "refusal", "names without suffix", TABLE, csv("image,caption\n0,a\n1.png,b\n"), 3, (1, 1), "did you mean 0.png?"
    ),
    Fault(
        "refusal",
        "addresses in place of files",
        TABLE,
        csv("image,caption\nhttps://a.org/0.png,a\n1.png,b\n"),
        3,
        (1, 1),
        "it is an address on the net",
    ),
    Fault(
        "refusal",
        "image and caption swapped",
        TABLE,
        csv("image,caption\na dog,0.png\na cat,1.png\n"),
        2,
        None,
        "are the two swapped?",
    ),
    Fault(
        "refusal",
        "a table in cp1252",
        TABLE,
        csv("x", **{"t.csv": "image,caption\n0.png,café\n".encode("cp1252")}),
        2,
        None,
        "manifest's key encoding",
    ),
    Fault(
        "path",
        "a JSON list of records",
        {**TABLE, "table": "t.json"},
        {**TWO, "t.json": [{"image": f"{i}.png", "caption": "x"} for i in range(2)]},
        0,
        (2, 2),
    ),
    Fault(
        "path",
        "JSON {image: [captions]}",
        {**TABLE, "table": "t.json"},
        {**TWO, "t.json": {"0.png": ["a", "b"], "1.png": ["c"]}},
        0,
        (2, 3),
    ),
    Fault(
        "path",
        "several caption columns",
        {**TABLE, "caption_column": ["a", "b"]},
        csv("image,a,b\n0.png,x,y\n1.png,z,w\n"),
        0,
        (2, 4),
    ),
    Fault(
        "path", "ids in place of paths", {**TABLE, "image_path": "{id}.png"}, csv("id,caption\n0,a\n1,b\n"), 0, (2, 2)
    ),
    Fault("path", "Parquet with the images inside", {**TABLE, "table": "t.parquet"}, {}, 0, (2, 4), make=images_inside),
]


def outcome(fault: Fault, trial: Trial) -> Outcome:
    """Make the example and prepare it."""
    for name, content in fault.files.items():
        trial.put(name, content)
    if fault.make is not None:
        fault.make(trial)
    return trial(**fault.manifest)


def check(fault: Fault, found: Outcome) -> None:
    """Raise AssertionError unless prepare ended as it must."""
    kept = None if found.code == 2 else tuple(map(sum, zip(*found.splits.values(), strict=True)))
    assert (found.code, kept) == (fault.code, fault.kept), (fault.example, found.code, kept, found.said)
    assert fault.said in found.said, (fault.example, found.said)


def table() -> str:
    """The part of the page: kind, example, outcome."""
    lines = [
        "## Faults found in the field\n",
        "Shapes of data from public bug reports, each made anew and prepared by tests/data/test_field_faults.py.\n",
        "| kind | example | outcome |",
        "|---|---|---|",
    ]
    for fault in FAULTS:
        said = f"`{fault.said}`" if fault.said else ""
        kept = f"{counted(fault.kept[0], 'images')}, {counted(fault.kept[1], 'captions')}" if fault.kept else "refused"
        lines.append(f"| {fault.kind} | {fault.example} | exit {fault.code}: {', '.join(filter(None, [kept, said]))} |")
    return "\n".join(lines) + "\n"
