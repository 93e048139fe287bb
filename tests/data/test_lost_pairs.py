"""Nothing is lost without a word: suffixes, system files, captions without images and images without captions."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from trials import Trial, picture, tar

from cs_aligner_cli.common.extras import installed


def photo(form: str) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(np.random.default_rng(len(form)).integers(0, 256, (32, 32, 3), np.uint8)).save(file, form)
        return file.getvalue()


def test_every_suffix_that_is_decoded(trial: Trial) -> None:
    forms = {"a.JPG": "JPEG", "b.avif": "AVIF", "c.jfif": "JPEG", "d.jp2": "JPEG2000", "f.jpe": "JPEG", "g.PnG": "PNG"}
    for name, form in forms.items():
        trial.put(name, photo(form))
        trial.put(name.split(".")[0] + (".TXT" if name == "g.PnG" else ".txt"), f"of {name}")
    trial.put("e.heic", b"\0\0\0\x18ftypheic" + bytes(64))
    trial.put("e.txt", "of e")
    found = trial(kind="folder")
    assert found.code == 3
    assert found.captions == [(name, f"of {name}") for name in forms]
    with_plugin = "not an image"  # these bytes are none
    without = "HEIC, which needs pillow-heif: pip install 'cs-aligner-cli[heic]', or save it as JPEG"
    assert found.bad == [("e.heic", with_plugin if installed("pillow_heif") else without)]


def test_names_with_unusual_spaces_and_joined_signs(trial: Trial) -> None:
    """As macOS names a picture of the screen, and Japanese systems a copy; control characters are no part of a name."""
    fine = ["Screen Shot at 1.23\u202fPM.png", "nbsp\u00a0x.png", "写真\u30001.png", "\U0001f469\u200d\U0001f680.png"]
    for i, name in enumerate([*fine, "bell\x07.png", "line\n.png", "half\udcff.png"]):
        path = trial.root / name
        path.write_bytes(picture(i))
        path.with_suffix(".txt").write_text(f"of {i}")
    found = trial(kind="folder")
    assert found.code == 3
    assert sorted(found.captions) == sorted((name, f"of {i}") for i, name in enumerate(fine))
    reason = "a file name that is no printable text"
    assert found.bad == [("bell\\x07.png", reason), ("half\\udcff.png", reason), ("line\\n.png", reason)]


def test_what_systems_leave_behind_is_no_image(trial: Trial) -> None:
    trial.put("a.png", picture(0))
    trial.put("a.txt", "a dog")
    for name in ("._a.png", ".DS_Store", "Thumbs.db", "__MACOSX/b.png", ".cache/c.png"):
        trial.put(name, b"\0\5\x16\7")
    found = trial(kind="folder")
    assert (found.code, found.captions) == (0, [("a.png", "a dog")])
    assert found.summary["skipped"] == {"hidden files": 1}

    trial.put("x/0.tar", tar(("0.png", picture(0)), ("0.txt", "x"), ("._0.png", b"\0"), ("__MACOSX/0.txt", b"\0")))
    trial.put("x/._0.tar", b"\0")
    found = trial(kind="webdataset", shards={"train": "x/*.tar"})
    assert (found.code, found.captions) == (0, [("x/0/0", "x")])


def test_texts_and_images_that_have_no_partner_in_a_folder(trial: Trial) -> None:
    trial.pictures("a.png", "b.png")
    for name in ("a.txt", "c.txt", "d.txt"):
        trial.put(name, name)
    found = trial(kind="folder")
    assert (found.code, found.captions) == (3, [("a.png", "a.txt")])
    assert found.summary["skipped"] == {"text files without an image (.txt)": 2}
    assert found.summary["without_partner"] == {"all": {"images": 1, "captions": 0}}
    assert "split all: 1 of 2 images has no captions" in found.said


def test_a_sidecar_named_after_the_whole_file(trial: Trial) -> None:
    trial.pictures("a.b.png", "c.png")
    trial.put("a.b.png.txt", "x")
    trial.put("c.caption", "y")
    assert trial(kind="folder").captions == [("a.b.png", "x"), ("c.png", "y")]


@pytest.mark.parametrize(
    ("about", "captions", "bad"),
    [
        ({"text": "a"}, ["a"], 0),
        ({"TEXT": "a", "URL": "x"}, ["a"], 0),
        ({"caption": ["a", "b"]}, ["a", "b"], 0),
        ({"captions": ["a", None]}, ["a"], 1),
        ({"captions": []}, [], 0),
        ({"caption": None}, [], 1),
        ({"url": "x"}, [], 1),
    ],
)
def test_captions_in_the_json_of_a_sample(
    trial: Trial, about: dict[str, object], captions: list[str], bad: int
) -> None:
    trial.put("a.tar", tar(("0.png", picture(0)), ("0.json", json.dumps(about)), ("1.png", picture(1)), ("1.txt", "t")))
    found = trial(kind="webdataset")
    assert [text for owner, text in found.captions if owner == "a/0"] == captions
    assert (found.code, len(found.bad)) == (3 if bad else 0, bad)


def test_what_stands_behind_the_end_mark_of_a_shard_is_told(trial: Trial) -> None:
    one, other = (tar((f"{i}.png", picture(i)), (f"{i}.txt", f"of {i}")) for i in range(2))
    trial.put("0.tar", one + bytes(3 << 20))
    found = trial(kind="webdataset")
    assert (found.code, found.captions) == (0, [("0/0", "of 0")])
    trial.put("0.tar", one + bytes(3 << 20) + other)  # cat one.tar other.tar
    found = trial(kind="webdataset")
    assert (found.code, found.captions) == (3, [("0/0", "of 0")])
    reason = f"goes on at byte {len(one) + (3 << 20)}, behind its end mark, and that is lost"
    assert found.bad == [("0.tar", f"{reason}: join tars by tar --concatenate")]


def test_a_json_without_a_caption_is_named_with_its_keys(trial: Trial) -> None:
    trial.put("a.tar", tar(("0.png", picture(0)), ("0.json", '{"url": "x", "alt": "a dog"}')))
    found = trial(kind="webdataset")
    assert found.code == 3 or "no usable" in found.said
    assert "no caption in its text or JSON (its JSON has the keys url, alt)" in found.said
    found = trial(kind="webdataset", caption_key="alt")
    assert (found.code, found.captions) == (0, [("a/0", "a dog")])


def test_samples_of_unknown_members_are_named_by_their_suffixes(trial: Trial) -> None:
    trial.put("a.tar", tar(("0.pyd", b"x"), ("0.cls", b"1"), ("1.png", picture(0)), ("1.txt", "x")))
    found = trial(kind="webdataset")
    assert found.summary["skipped"] == {"samples with neither an image nor a caption (members .pyd, .cls)": 1}


# ---- lines


ODD_LINES = "on\u2028the\x85grass\x0cpage\x1cthree"


@pytest.mark.parametrize(
    ("text", "rule", "captions"),
    [
        (ODD_LINES, "lines", [ODD_LINES]),
        ("a\nb\r\n\r\nc\n", "lines", ["a", "b", "c"]),
        ("a\rb", "lines", ["a", "b"]),
        ("a\rstays\nb", "lines", ["a\rstays", "b"]),
        ("A dog.\n\nA house,\nred.\n", "whole", ["A dog.\n\nA house,\nred."]),
        ("A dog.\r\n \r\nA house,\r\nred.\n", "paragraphs", ["A dog.", "A house, red."]),
    ],
)
def test_captions_in_a_text(trial: Trial, text: str, rule: str, captions: list[str]) -> None:
    trial.put("x/a.png", picture(0))
    trial.put("x/a.txt", text)
    assert [text for _, text in trial(kind="folder", captions=rule).captions] == captions
    trial.put("a.tar", tar(("0.png", picture(0)), ("0.txt", text)))
    assert [text for _, text in trial(kind="webdataset", captions=rule).captions] == captions


def test_texts_of_another_encoding(trial: Trial) -> None:
    trial.put("a.png", picture(0))
    trial.put("a.txt", "café".encode("cp1252"))
    assert "name its own with the manifest's key encoding" in trial(kind="folder").said
    assert trial(kind="folder", encoding="cp1252").captions == [("a.png", "café")]


@pytest.mark.parametrize("text", ["nan", "None", "null", ""])
def test_placeholders_of_missing_captions_are_bad(trial: Trial, text: str) -> None:
    trial.pictures("0.png", "1.png")
    trial.put("t.csv", f"image,caption,split\n0.png,{text},a\n1.png,fine,a\n")
    found = trial(kind="table", table="t.csv")
    assert (found.code, found.captions) == (3, [("1.png", "fine")])
    assert found.bad[0][1] == (f"'{text}' stands for a missing caption" if text else "empty caption")


@pytest.mark.parametrize("text", ["\u200b", "\ufeff", "\u00a0\u200b \u200d", "\u3000", "\u00ad"])
def test_a_caption_that_shows_nothing_is_empty(trial: Trial, text: str) -> None:
    trial.pictures("0.png", "1.png")
    trial.put(
        "t.jsonl", "\n".join(json.dumps({"image": f"{i}.png", "caption": t}) for i, t in enumerate((text, "fine")))
    )
    found = trial(kind="table", table="t.jsonl", split_column=None)
    assert (found.code, found.captions) == (3, [("1.png", "fine")])
    assert found.bad == [("caption 0 (counted from 0) of image 0.png", "empty caption")]


# ---- files that are not there


@pytest.mark.parametrize(
    ("there", "named", "hint"),
    [
        ("sub/0.png", "sub\\0.png", "did you mean sub/0.png?"),
        ("0.PNG", "0.png", "did you mean 0.PNG?"),
        ("0.png", "0.jpg", "did you mean 0.png?"),
        ("0.png", "0", "did you mean 0.png?"),
        ("0.png", "0.png ", "did you mean 0.png?"),
        ("0.png", "images/0.png", "did you mean 0.png?"),
        ("caf\u00e9.png", "cafe\u0301.png", "did you mean caf\u00e9.png?"),
        ("cafe\u0301.png", "caf\u00e9.png", "did you mean cafe\u0301.png?"),
        ("0.png", "https://example.org/0.png", "it is an address on the net"),
        ("0.png", "gone/1.png", "there is no folder "),
    ],
)
def test_a_file_that_is_not_there_has_a_likely_cause(trial: Trial, there: str, named: str, hint: str) -> None:
    trial.pictures(there, "fine.png")
    trial.put("t.jsonl", "\n".join(json.dumps({"image": n, "caption": "x", "split": "a"}) for n in (named, "fine.png")))
    found = trial(kind="table", table="t.jsonl")
    assert found.code == 3
    assert hint in found.bad[0][1]


def test_a_link_to_what_is_gone_is_named_with_its_target(trial: Trial) -> None:
    trial.pictures("a.png")
    (trial.root / "b.png").symlink_to("/scratch/gone/b.png")
    trial.put("a.txt", "a dog")
    trial.put("b.txt", "a cat")
    found = trial(kind="folder")
    assert found.bad == [("b.png", "no such file; it is a link to /scratch/gone/b.png, which is not there")]


def test_json_with_a_mark_or_with_nan(trial: Trial) -> None:
    trial.pictures("0.png")
    content = {"images": [{"id": 0, "file_name": "0.png"}], "annotations": [{"image_id": 0, "caption": "x"}]}
    splits = {"train": {"captions": "c.json", "image_dir": "."}}
    trial.put("c.json", "\ufeff" + json.dumps(content))
    assert trial(kind="coco", splits=splits).captions == [("0.png", "x")]
    content["images"][0]["height"] = float("nan")  # type: ignore[assignment]
    trial.put("c.json", json.dumps(content, indent=1))
    found = trial(kind="coco", splits=splits)
    assert found.code == 2 and "line 6 holds NaN, for which JSON has no value: write null" in found.said
