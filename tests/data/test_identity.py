"""Every caption on its own image: names that are used twice, and parts that belong together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from trials import Trial, picture, tar


def sample(key: str, number: int, text: str) -> tuple[tuple[str, bytes | str], ...]:
    return (f"{key}.png", picture(number)), (f"{key}.txt", text)


def stated(key: str, number: int, image_id: Any) -> tuple[tuple[str, bytes | str], ...]:
    return *sample(key, number, f"text {key}"), (f"{key}.json", f'{{"image_id": {image_id}}}')


# ---- shards


@pytest.mark.parametrize("patterns", [{"train": "train/*.tar", "test": "test/*.tar"}, {"all": "*/*.tar"}])
def test_shards_and_keys_of_one_name_in_two_folders(trial: Trial, patterns: dict[str, str]) -> None:
    for i, folder in enumerate(("train", "test")):
        trial.put(
            f"{folder}/00000.tar", tar(*sample("0", 2 * i, f"{folder} 0"), *sample("1", 2 * i + 1, f"{folder} 1"))
        )
    found = trial(kind="webdataset", shards=patterns)
    assert found.code == 0
    assert sorted(found.captions) == sorted((f"{f}/00000/{i}", f"{f} {i}") for f in ("train", "test") for i in "01")


def test_a_shard_in_two_splits_is_refused(trial: Trial) -> None:
    trial.put("a.tar", tar(*sample("0", 0, "x")))
    found = trial(kind="webdataset", shards={"train": "*.tar", "test": "a*.tar"})
    assert found.code == 2 and "a.tar: is found by the patterns shards.train and shards.test" in found.said


def test_one_sample_per_caption_is_one_image(trial: Trial) -> None:
    trial.put("a.tar", tar(*stated("0", 1, '"im1"'), *stated("1", 1, '"im1"'), *stated("2", 2, '"im2"')))
    found = trial(kind="webdataset")
    assert found.code == 0
    assert found.captions == [("im1", "text 0"), ("im1", "text 1"), ("im2", "text 2")]
    assert found.splits == {"all": (2, 3)}


def test_captions_of_a_dropped_namesake_are_dropped_with_it(trial: Trial) -> None:
    trial.put("a.tar", tar(*stated("0", 1, 7), *stated("1", 2, 7), *stated("2", 3, 8)))
    found = trial("--set", "data.max_bad_fraction=0.5", kind="webdataset")
    assert found.captions == [("7", "text 0"), ("8", "text 2")]
    assert found.summary["skipped"] == {"captions of dropped or skipped images": 1}
    ((item, reason),) = found.bad
    assert item.startswith("7 (a.tar::1.png@") and "its name was used before by another image, a.tar::0.png@" in reason


@pytest.mark.parametrize(
    "names",
    [
        ["0.png", "1.png", "0.txt", "1.txt"],  # not adjacent
        ["./0.png", "./0.txt", "./1.png", "./1.txt"],  # as tar writes them of "."
        ["0.v2.png", "0.v2.txt", "1.v2.png", "1.v2.txt"],  # dots in keys
        ["x.0.png", "x.0.txt", "x.1.png", "x.1.txt"],
        ["0.input.png", "0.outputs.txt", "1.input.png", "1.outputs.txt"],
        ["0.PNG", "0.TXT", "1.Png", "1.Txt"],
        ["0.img", "0.cap", "1.img", "1.caption"],
        ["a/0.png", "a/0.txt", "b/0.png", "b/0.txt"],  # a key in two folders
        ["0.png", "0.txt", "0.depth.png", "1.txt", "1.png", "1.depth.png"],
    ],
)
def test_members_of_one_sample_are_found_by_their_names(trial: Trial, names: list[str]) -> None:
    pairs: dict[str, list[str]] = {}
    members: list[tuple[str, bytes | str]] = []
    for name in names:
        key = name.removeprefix("./").partition(".png")[0]
        owner = 1 if "1" in key or key.startswith("b/") else 0
        if name.lower().endswith(("png", "img")):
            members.append((name, picture(owner + 10 * ("depth" in name))))
        else:
            members.append((name, f"caption {owner}"))
            pairs.setdefault(f"caption {owner}", []).append(name)
    trial.put("a.tar", tar(*members))
    found = trial(kind="webdataset")
    assert found.code == 0, found.said
    assert found.splits == {"all": (2, 2)}
    by_id = found.data.images.set_index("image_id")["locator"]
    from cs_aligner_cli.data.images import read_bytes

    for image_id, text in found.captions:
        assert image_id is not None
        assert read_bytes(found.data.root / str(by_id[image_id])) == picture(int(text[-1]))


def test_members_whose_belonging_nobody_knows_are_bad(trial: Trial) -> None:
    shard = tar(("0.png", picture(0)), ("0.png", picture(1)), ("0.txt", "whose?"), *sample("1", 2, "fine"))
    trial.put("a.tar", shard)
    found = trial(kind="webdataset")
    assert found.code == 3
    assert found.captions == [("a/1", "fine")]
    assert found.bad == [("a.tar::0", "is there 2 times, each time with other members: which belong together?")]


@pytest.mark.parametrize(
    ("parts", "named"),
    [(("png", "a.txt", "b.txt"), "caption_suffix"), (("a.png", "b.png", "txt"), "image_suffix")],
)
def test_samples_of_several_captions_or_images_are_said_to_be_unpaired(
    trial: Trial, parts: tuple[str, ...], named: str
) -> None:
    members = [
        (f"{i}.{p}", picture(3 * i + n) if "png" in p else f"{i} {p}") for i in (0, 1) for n, p in enumerate(parts)
    ]
    trial.put("s.tar", tar(*members))
    found = trial(kind="webdataset")
    (note,) = found.summary["notes"]
    assert note.startswith("2 names stand for several images or several captions, as ") and note in found.said
    assert f"s.tar::0 ({', '.join(f'.{part}' for part in parts)}): nothing says which belong together" in note
    assert found.summary["without_partner"]["all"]["images"] == found.splits["all"][0], "as the note says"
    chosen = trial(kind="webdataset", **{named: parts[1]})
    assert not chosen.summary["notes"] and chosen.splits == {"all": (2, 2)}


def test_names_with_dots_of_which_one_lost_its_partner_are_not_joined_with_another(trial: Trial) -> None:
    """v1.2.png and v1.3.txt are of two samples, as v1.1 shows."""
    trial.put("s.tar", tar(*sample("v1.1", 1, "of 1"), ("v1.2.png", picture(2)), ("v1.3.txt", "of 3")))
    found = trial(kind="webdataset")
    assert found.captions == [("s/v1.1", "of 1"), (None, "of 3")]
    assert list(found.data.images["image_id"]) == ["s/v1.1", "s/v1.2"]


def test_suffixes_that_the_manifest_names(trial: Trial) -> None:
    members = [(f"{i}.{part}", x) for i in range(2) for part, x in (("a.png", picture(i)), ("b.png", picture(9)))]
    trial.put("a.tar", tar(*members, *((f"{i}.long.txt", f"long {i}") for i in range(2)), ("0.txt", "short")))
    found = trial(kind="webdataset", image_suffix="a.png", caption_suffix="long.txt")
    assert (found.code, found.captions) == (0, [("a/0", "long 0"), ("a/1", "long 1")])


# ---- COCO, Karpathy, tables, folders


def coco(images: list[tuple[Any, str]], annotations: list[tuple[Any, Any]]) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": name} for i, name in images],
        "annotations": [{"id": n, "image_id": i, "caption": text} for n, (i, text) in enumerate(annotations)],
    }


COCO = {"kind": "coco", "splits": {"train": {"captions": "c.json", "image_dir": "."}}}


def test_coco_ids_that_two_images_share_are_refused(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    trial.put("c.json", coco([(1, "0.png"), (2, "x.png"), (1, "1.png")], [(1, "of 0"), (1, "of 1")]))
    found = trial(**COCO)
    assert found.code == 2 and "images[2]: id 1 was already used by 0.png (images[0])" in found.said


def test_a_coco_image_that_is_listed_twice_is_one(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    images = [(1, "0.png"), (1, "0.png"), (2, "0.png"), (3, "1.png")]
    trial.put("c.json", coco(images, [(1, "a"), (2, "b"), (3, "c")]))
    found = trial(**COCO)
    assert (found.code, found.captions) == (0, [("0.png", "a"), ("0.png", "b"), ("1.png", "c")])


def test_coco_ids_written_as_numbers_with_a_point(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    trial.put("c.json", coco([(0.0, "0.png"), (1.0, "1.png")], [(0, "a"), (1.0, "b")]))
    found = trial(**COCO)
    assert (found.code, found.captions) == (0, [("0.png", "a"), ("1.png", "b")])


def test_coco_ids_that_are_text_in_one_place_and_numbers_in_another(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    trial.put("c.json", coco([(1, "0.png"), (2, "1.png")], [("1", "a"), (2, "b")]))
    found = trial("--set", "data.max_bad_fraction=1", **COCO)
    assert "names the image '1' (text), which is not listed, but 1 (a number) is" in found.bad[0][1]


def test_null_captions_are_bad_one_by_one(trial: Trial) -> None:
    trial.pictures("0.png", "1.png")
    trial.put("c.json", coco([(0, "0.png"), (1, "1.png")], [(0, None), (1, "x")]))
    found = trial(**COCO)
    assert (found.code, found.captions) == (3, [("1.png", "x")])
    assert found.bad == [("c.json: annotations[0]", "a caption is null")]


def test_a_basename_in_two_folders(trial: Trial) -> None:
    """Karpathy's filepath, COCO's folders of splits: unlike files of one name are told apart by their paths."""
    trial.pictures("a/x.png", "b/x.png", "a/y.png")
    images = [
        {"filename": name, "filepath": folder, "split": "train", "sentences": [{"raw": f"{folder}/{name}"}]}
        for folder, name in (("a", "x.png"), ("b", "x.png"), ("a", "y.png"))
    ]
    trial.put("k.json", {"images": images})
    found = trial(kind="karpathy", annotations="k.json")
    assert (found.code, found.captions) == (0, [("a/x.png", "a/x.png"), ("b/x.png", "b/x.png"), ("y.png", "a/y.png")])

    for split in "ab":
        trial.put(f"{split}.json", coco([(1, "x.png")], [(1, split)]))
    splits = {split: {"captions": f"{split}.json", "image_dir": split} for split in "ab"}
    found = trial(kind="coco", splits=splits)
    assert (found.code, found.captions) == (0, [("a/x.png", "a"), ("b/x.png", "b")])
    assert found.splits == {"a": (1, 1), "b": (1, 1)}


def test_an_image_in_two_splits_is_bad_in_the_second(trial: Trial) -> None:
    trial.pictures("x.png", "y.png")
    image = {"filename": "x.png", "sentences": [{"raw": "x"}]}
    trial.put("k.json", {"images": [{**image, "split": "train"}, {**image, "split": "test"}]})
    found = trial(kind="karpathy", annotations="k.json")
    assert (found.code, found.captions) == (3, [("x.png", "x")])
    assert found.bad == [("x.png (x.png)", "was listed before, in split train")]


def test_stored_features_of_an_image_in_two_splits_or_with_two_labels(trial: Trial) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    rows[2] = rows[0]
    np.save(trial.root / "i.npy", rows)
    np.save(trial.root / "c.npy", rows[[0, 1, 3]])
    trial.put("i.csv", "image,split,label\na,train,u\nb,train,u\na,test,u\nc,test,v\n")
    trial.put("c.csv", "image,caption,split\na,of a,train\nb,of b,train\nc,of c,test\n")
    images = {"table": "i.csv", "features": "i.npy", "label_column": "label"}
    parts = {"kind": "embeddings", "captions": {"table": "c.csv", "features": "c.npy"}}
    found = trial(images=images, **parts)
    assert (found.code, found.splits) == (3, {"train": (2, 2), "test": (1, 1)})
    assert found.bad == [(f"a ({trial.root / 'i.csv'})".rpartition("/data/")[2], "was listed before, in split train")]

    trial.put("i.csv", "image,split,label\na, Train,u\nb,train,u\na,train,w\nc,test,v\n")
    found = trial(images=images, **parts)
    assert found.code == 2 and "i.csv: image 'a' has two labels: 'u' and 'w'" in found.said
    found = trial(images={**images, "label_column": None}, **parts)
    assert (found.code, found.splits) == (0, {"Train": (2, 2), "test": (1, 1)})


def test_an_image_repeated_once_per_caption(trial: Trial) -> None:
    trial.pictures("x.png", "y.png")
    image = {"filename": "x.png", "split": "train"}
    trial.put("k.json", {"images": [{**image, "sentences": [{"raw": text}]} for text in "abc"]})
    found = trial(kind="karpathy", annotations="k.json")
    assert (found.code, found.captions) == (0, [("x.png", text) for text in "abc"])


def test_clip_retrieval_parts_belong_together_by_number(trial: Trial) -> None:
    for name in (
        "img_emb/img_emb_0.npy",
        "img_emb/img_emb_2.npy",
        "text_emb/text_emb_0.npy",
        "text_emb/text_emb_1.npy",
    ):
        trial.put(name, b"")
    for name in ("metadata/metadata_0.parquet", "metadata/metadata_1.parquet"):
        trial.put(name, b"")
    found = trial(kind="clip_retrieval")
    assert found.code == 2
    assert "img_emb/*.npy has part 2, which text_emb/*.npy lacks" in found.said


def test_splits_that_differ_in_case_or_spaces_are_one(trial: Trial) -> None:
    trial.pictures("0.png", "1.png", "2.png")
    trial.put("t.csv", "image,caption,split\n0.png,a,Train\n1.png,b,train \n2.png,c,test\n")
    found = trial(kind="table", table="t.csv")
    assert found.splits == {"Train": (2, 2), "test": (1, 1)}
    assert "splits that differ in case or spaces alone are one: 'train ' as 'Train'" in found.said
