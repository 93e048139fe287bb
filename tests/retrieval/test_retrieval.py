"""Retrieval against brute force on full matrices, with ties, several captions and unpaired items."""

from __future__ import annotations

import math

import faiss
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.retrieval import (
    build_index,
    evaluate_retrieval,
    read_index,
    score_tiles,
    search,
    true_ranks,
    write_index,
)
from cs_aligner_cli.retrieval import scan as scan_module
from cs_aligner_cli.retrieval import scores as scores_module

Matrix = npt.NDArray[np.float32]


def random_rows(seed: int, rows: int, width: int) -> Matrix:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def tied_rows(seed: int, rows: int, width: int) -> Matrix:
    """Rows of -1, 0 and 1 with many duplicates: inner products are exact and tie often."""
    return np.random.default_rng(seed).integers(-1, 2, size=(rows, width)).astype(np.float32)


def full_scores(queries: Matrix, gallery: Matrix) -> npt.NDArray[np.float32]:
    """Row by row with fsum: exactly rounded, so no order of summation plays a part."""
    products = queries[:, None].astype(np.float64) * gallery[None]
    return np.array([[math.fsum(cell) for cell in row] for row in products], dtype=np.float32)


def brute_search(queries: Matrix, gallery: Matrix, k: int):
    scores = full_scores(queries, gallery)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, axis=1), ids


def unit(rows: Matrix) -> Matrix:
    return torch.nn.functional.normalize(torch.from_numpy(rows), dim=1).numpy()


def brute_direction(queries: Matrix, gallery: Matrix, answers: list[set[int]], ks) -> dict[str, float]:
    """The definitions, query by query, on full orders."""
    _, order = brute_search(unit(queries), unit(gallery), len(gallery))
    ranks = [
        sorted(place for place, item in enumerate(row, 1) if item in truth)
        for row, truth in zip(order.tolist(), answers, strict=True)
    ]
    best = [found[0] for found in ranks]
    counts = np.zeros(len(gallery))
    for row in order:
        counts[row[: min(10, len(gallery))]] += 1
    spread = counts.std()
    return {
        **{f"R@{k}": sum(rank <= k for rank in best) / len(best) for k in ks},
        "mAP": np.mean([np.mean([n / rank for n, rank in enumerate(found, 1)]) for found in ranks]),
        "MRR": np.mean([1 / rank for rank in best]),
        "median_rank": float(np.median(best)),
        "mean_rank": sum(best) / len(best),
        "hubness": np.mean(((counts - counts.mean()) / spread) ** 3) if spread else 0.0,
        "queries": len(best),
    }


def brute_evaluation(image: Matrix, text: Matrix, owners: npt.NDArray[np.int64], ks):
    images = sorted({int(owner) for owner in owners if owner >= 0})
    texts = [row for row, owner in enumerate(owners) if owner >= 0]
    found = {
        "i2t": brute_direction(image[images], text, [set(np.flatnonzero(owners == i)) for i in images], ks),
        "t2i": brute_direction(text[texts], image, [{int(owners[row])} for row in texts], ks),
    }
    return {**found, "both": {"RSum": 100 * sum(found[d][f"R@{k}"] for d in found for k in ks)}}


def scattered_owners(seed: int, texts: int, images: int) -> npt.NDArray[np.int64]:
    """Owners in no order: several texts per image, texts without image, most often images without text."""
    owners = np.random.default_rng(seed).integers(-1, images, size=texts)
    owners[0] = images // 2
    return owners


@pytest.mark.parametrize("k", [1, 2, 3, 7, 11, 12, 19, 20, 40])
@pytest.mark.parametrize("make", [random_rows, tied_rows])
def test_search_is_brute_force_in_order_and_ties(make, k):
    gallery, queries = make(0, 40, 4), make(1, 25, 4)
    scores, ids = search(build_index(gallery), queries, k)
    expected_scores, expected_ids = brute_search(queries, gallery, k)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("width", [3, 17, 64, 300])
def test_equal_rows_tie_wherever_they_stand(width):
    """More copies than any fixed margin: only the smallest ids may be returned, though FAISS picks others."""
    row, other = random_rows(0, 2, width)
    gallery = np.tile(row, (1001, 1))
    gallery[[5, 500, 1000]] = other
    queries = np.concatenate([gallery[:1], random_rows(1, 30, width)])
    queries = queries[queries @ row > queries @ other]
    scores, ids = search(build_index(gallery), queries, 10)
    np.testing.assert_array_equal(ids, np.tile([0, 1, 2, 3, 4, 6, 7, 8, 9, 10], (len(queries), 1)))
    assert (scores == scores[:, :1]).all()


def test_a_row_that_float32_ranks_wrongly_is_found():
    """float32 sums lose the 1 between two large terms; exact scores must decide who is in the list."""
    gallery = np.zeros((64, 3), dtype=np.float32)
    gallery[:] = [2.0**25, 0.0, -(2.0**25)]
    gallery[50, 1] = 1.0
    query = np.ones((1, 3), dtype=np.float32)
    assert search(build_index(gallery), query, 1)[1].tolist() == [[50]]
    assert search(build_index(gallery), query, 3)[1].tolist() == [[50, 0, 1]]


def test_search_takes_torch_and_half_precision_and_leaves_its_inputs():
    gallery, queries = random_rows(0, 30, 8), random_rows(1, 6, 8)
    index = build_index(torch.from_numpy(gallery).requires_grad_())
    assert isinstance(index, faiss.IndexFlat) and index.metric_type == faiss.METRIC_INNER_PRODUCT
    assert index.ntotal == 30
    _, expected = search(index, queries, 4)
    np.testing.assert_array_equal(search(index, torch.from_numpy(queries).double(), 4)[1], expected)
    halves = queries.astype(np.float16)
    np.testing.assert_array_equal(search(index, halves, 4)[1], search(index, halves.astype(np.float32), 4)[1])
    np.testing.assert_array_equal(build_index(gallery[:, ::2]).reconstruct_n(0, 30), gallery[:, ::2])
    np.testing.assert_array_equal(gallery, random_rows(0, 30, 8))


def test_search_and_index_error_texts():
    gallery, queries = random_rows(0, 5, 4), random_rows(1, 3, 4)
    index = build_index(gallery)
    for k in (0, 6):
        with pytest.raises(InputError, match=f"k = {k} but the index holds 5 rows"):
            search(index, queries, k)
    with pytest.raises(InputError, match="queries have dimension 3, the rows of the index 4"):
        search(index, queries[:, :3], 1)
    queries[1, 2] = np.nan
    with pytest.raises(InputError, match="queries: row 1 holds NaN or infinity"):
        search(index, queries, 1)
    gallery[4, 0] = np.inf
    with pytest.raises(InputError, match="vectors: row 4 holds NaN or infinity"):
        build_index(gallery)
    with pytest.raises(InputError, match="vectors: row 0 holds NaN or infinity"):
        build_index(np.full((2, 2), 1e300))  # finite until it is float32
    with pytest.raises(InputError, match=r"vectors: expected floating-point values, got torch\.int64"):
        build_index(np.arange(6).reshape(2, 3))
    with pytest.raises(InputError, match=r"vectors: expected a non-empty .* got shape \(4,\)"):
        build_index(gallery[0])
    with pytest.raises(InputError, match="inner products would overflow float32"):
        search(build_index(np.full((2, 2), 1e25, np.float32)), np.full((1, 2), 1e25, np.float32), 1)


def test_index_file_round_trip_and_plain_faiss(tmp_path):
    gallery, queries = tied_rows(0, 20, 4), tied_rows(1, 5, 4)
    path = tmp_path / "texts.faiss"
    path.write_bytes(b"an earlier file")
    (tmp_path / "earlier").hardlink_to(path)
    write_index(build_index(gallery), path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["earlier", "texts.faiss"]
    assert (tmp_path / "earlier").read_bytes() == b"an earlier file"  # replaced, not written into
    for ours, expected in zip(
        search(read_index(str(path)), queries, 7), brute_search(queries, gallery, 7), strict=True
    ):
        np.testing.assert_array_equal(ours, expected)
    plain = faiss.read_index(str(path))
    np.testing.assert_array_equal(plain.reconstruct_n(0, 20), gallery)
    np.testing.assert_array_equal(plain.search(queries, 20)[0], brute_search(queries, gallery, 20)[0])


def test_index_file_error_texts(tmp_path):
    path = tmp_path / "x.faiss"
    with pytest.raises(InputError, match=r"x\.faiss: no such file"):
        read_index(path)
    write_index(build_index(random_rows(0, 9, 4)), path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"x\.faiss: not a FAISS index, or damaged"):
        read_index(path)
    path.write_bytes(b"something else entirely")
    with pytest.raises(InputError, match=r"x\.faiss: not a FAISS index, or damaged"):
        read_index(path)
    write_index(faiss.IndexFlatL2(4), path)
    with pytest.raises(InputError, match=r"x\.faiss: holds a FAISS IndexFlatL2, expected one of inner products"):
        read_index(path)
    with pytest.raises(InputError, match="there is no directory"):
        write_index(build_index(random_rows(0, 9, 4)), tmp_path / "missing" / "x.faiss")


@pytest.mark.parametrize("make", [random_rows, tied_rows])
@pytest.mark.parametrize(("images", "texts"), [(30, 80), (50, 20), (11, 11)])
@pytest.mark.parametrize("width", [2, 5])
def test_evaluation_is_brute_force(make, images, texts, width):
    image, text = make(0, images, width), make(1, texts, width)
    owners = scattered_owners(2, texts, images)
    result = evaluate_retrieval(image, text, owners, ks=(1, 3, 10))
    expected = brute_evaluation(image, text, owners, (1, 3, 10))
    for direction in ("i2t", "t2i"):
        assert list(result[direction]) == list(expected[direction])
        assert all(type(value) in (int, float) for value in result[direction].values())
    for part, values in expected.items():
        assert result[part] == pytest.approx(values, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("entries", "rows", "columns", "strip", "block"), [
    (1, 5, 1024, 1, 3), (77, 7, 1024, 3, 32), (160, 23, 2048, 32, 7), (1000, 1, 1024, 2, 1),
])  # fmt: skip
@pytest.mark.parametrize(("sparse", "dense"), [(0, 0), (0, 1), (1, 1), (1 / 16, 1 / 256)])
def test_block_and_tile_sizes_do_not_show(monkeypatch, entries, rows, columns, strip, block, sparse, dense):
    """Tiles of one row, tiles that divide neither queries nor gallery, every way to count: the brute-force ranks."""
    monkeypatch.setattr(scores_module, "_BLOCK_ENTRIES", entries)
    for name, value in {"TILE_ROWS": rows, "TILE_COLUMNS": columns, "_STRIP": strip, "BLOCK": block}.items():
        monkeypatch.setattr(score_tiles, name, value)
    for name, value in {"BLOCK": block, "_SPARSE_SHARE": sparse, "_DENSE_SHARE": dense}.items():
        monkeypatch.setattr(scan_module, name, value)
    image, text = tied_rows(0, 23, 5), tied_rows(1, 61, 5)
    owners = scattered_owners(2, 61, 23)
    result, expected = (evaluate(image, text, owners, ks=(1, 5)) for evaluate in (evaluate_retrieval, brute_evaluation))
    for direction in ("i2t", "t2i"):
        assert result[direction] == pytest.approx(expected[direction], rel=1e-12)
    for found, wanted in zip(search(build_index(text), image, 9), brute_search(image, text, 9), strict=True):
        np.testing.assert_array_equal(found, wanted)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(3, 25), st.integers(3, 40), st.booleans())
def test_properties_of_ranks(seed, images, texts, tied):
    make = tied_rows if tied else random_rows
    image, text = make(seed, images, 3), make(seed + 1, texts, 3)
    owners = scattered_owners(seed, texts, images)
    ks = tuple(range(1, min(images, texts) + 1))
    result = evaluate_retrieval(image, text, owners, ks)
    ranks = true_ranks(image, text, owners)
    for direction, gallery in (("i2t", texts), ("t2i", images)):
        recalls = [result[direction][f"R@{k}"] for k in ks]
        assert recalls == sorted(recalls)
        assert recalls == [float(np.mean(ranks[direction].ranks <= k)) for k in ks]
        assert result[direction]["mean_rank"] == float(np.mean(ranks[direction].ranks))
        assert ranks[direction].ranks.min() >= 1
        assert ranks[direction].ranks.max() <= gallery
    assert ranks["i2t"].queries.tolist() == sorted(set(owners[owners >= 0].tolist()))
    assert ranks["t2i"].queries.tolist() == np.flatnonzero(owners >= 0).tolist()


def test_perfect_embeddings_reach_one():
    image = random_rows(0, 40, 16)
    owners = np.repeat(np.arange(40), 5)[::-1].copy()
    result = evaluate_retrieval(image, 3 * image[owners], owners)
    for direction, queries in (("i2t", 40), ("t2i", 200)):
        recalls = {"R@1": 1.0, "R@5": 1.0, "R@10": 1.0, "mAP": 1.0, "MRR": 1.0, "median_rank": 1.0, "mean_rank": 1.0}
        assert {**recalls, "queries": queries}.items() <= result[direction].items()
    assert result["both"] == {"RSum": 600.0}


@pytest.mark.parametrize("row", [np.zeros(24, np.float32), random_rows(0, 1, 24)[0]])
def test_collapsed_embeddings_rank_by_row_id_alone(row):
    """Where all scores are equal the smaller id wins: image i's first caption stands at rank 5 i + 1."""
    image, text = np.tile(row, (60, 1)), np.tile(row, (300, 1))
    ranks = true_ranks(image, text, np.repeat(np.arange(60), 5))
    np.testing.assert_array_equal(ranks["i2t"].ranks, 5 * np.arange(60) + 1)
    np.testing.assert_array_equal(ranks["t2i"].ranks, np.repeat(np.arange(60), 5) + 1)


def test_collapsed_embeddings_are_at_chance():
    row = random_rows(0, 1, 8)
    owners = np.random.default_rng(1).permutation(400)
    result = evaluate_retrieval(np.tile(row, (400, 1)), np.tile(row, (400, 1)), owners, ks=(1, 10, 100))
    for direction in ("i2t", "t2i"):
        assert [result[direction][f"R@{k}"] for k in (1, 10, 100)] == [1 / 400, 10 / 400, 100 / 400]
        assert result[direction]["mean_rank"] == 200.5


def test_unpaired_items_fill_the_gallery_but_ask_nothing():
    axes = np.eye(4, dtype=np.float32)
    image = axes[[0, 0, 1]]  # image 0 has no text and hides image 1 behind its smaller id
    text = axes[[1, 0, 1]]  # text 0 has no image and hides text 2
    result = evaluate_retrieval(image, text, np.array([-1, 1, 2]), ks=(1, 2))
    expected = {"R@1": 0.5, "R@2": 1.0, "mAP": 0.75, "MRR": 0.75, "median_rank": 1.5, "mean_rank": 1.5, "queries": 2}
    for direction in ("i2t", "t2i"):
        assert expected.items() <= result[direction].items()


def test_any_true_caption_is_a_hit_and_the_best_one_ranks():
    image = np.array([[1.0, 0.0]], dtype=np.float32)
    text = np.array([[1, 0.5], [1, 0.1], [1, 2], [1, 0.2]], dtype=np.float32)
    result = evaluate_retrieval(image, text, np.array([0, -1, 0, 0]), ks=(1,))
    # Its captions stand at 2, 3 and 4: average precision (1/2 + 2/3 + 3/4) / 3.
    expected = {"R@1": 0.0, "mAP": (1 / 2 + 2 / 3 + 3 / 4) / 3, "MRR": 0.5, "mean_rank": 2.0, "queries": 1}
    assert expected.items() <= result["i2t"].items()
    assert result["t2i"]["R@1"] == 1.0


def test_numpy_torch_and_precisions_agree():
    image, text = random_rows(0, 20, 6), random_rows(1, 50, 6)
    owners = scattered_owners(2, 50, 20)
    expected = evaluate_retrieval(image, text, owners)
    as_torch = torch.from_numpy(image).requires_grad_(), torch.from_numpy(text), torch.from_numpy(owners)
    assert evaluate_retrieval(*as_torch) == expected
    assert evaluate_retrieval(7 * image.astype(np.float64), text, owners.astype(np.int16)) == expected
    assert evaluate_retrieval(image[::-1][::-1], text.astype(">f4"), owners) == expected
    backwards = image[:, ::-1], np.asfortranarray(text[:, ::-1])
    assert evaluate_retrieval(*backwards, owners)["i2t"]["R@5"] == expected["i2t"]["R@5"]
    # Squares of these leave float32, or their norms lie below any usual guard against zero.
    for scale in (np.float32(1e20), np.float32(1e-20), 1e30, 1e-30):
        assert evaluate_retrieval(image * scale, text * scale, owners)["both"] == expected["both"]
    halves = image.astype(np.float16), text.astype(np.float16)
    widened = (half.astype(np.float32) for half in halves)
    assert evaluate_retrieval(*halves, owners) == evaluate_retrieval(*widened, owners)


def test_evaluation_error_texts():
    image, text, owners = random_rows(0, 5, 4), random_rows(1, 12, 4), np.arange(12) % 5
    with pytest.raises(InputError, match="k = 10 but the gallery holds 5 images"):
        evaluate_retrieval(image, text, owners)
    with pytest.raises(InputError, match="k = 5 but the gallery holds 3 texts"):
        evaluate_retrieval(image, text[:3], owners[:3], ks=(1, 5))
    for ks in ((), (0, 1), (1.5,), 1):
        with pytest.raises(InputError, match="ks: expected integers of at least 1"):
            evaluate_retrieval(image, text, owners, ks=ks)
    with pytest.raises(InputError, match="differ in dimension: 4 against 3"):
        evaluate_retrieval(image, text[:, :3], owners, ks=(1,))
    for bad in (owners[:4], owners.astype(np.float64), owners[:, None]):
        with pytest.raises(InputError, match="image_of_text: expected 12 integers, one per text; got shape"):
            evaluate_retrieval(image, text, bad, ks=(1,))
    for bad in (owners / 8, owners.astype(str), owners[:4]):
        with pytest.raises(InputError, match="text_groups: expected 12 integers, one per text; got shape"):
            evaluate_retrieval(image, text, owners, ks=(1,), text_groups=bad)
    others = (
        (image.tolist(), "got a list"),
        (image.astype(object), "got object"),
        (pd.DataFrame(image), "got a DataFrame\nPass its to_numpy"),
        (torch.as_tensor(image).to_sparse(), "got one of torch.sparse_coo"),
    )
    for bad, found in others:
        with pytest.raises(InputError, match=f"image: expected .* {found}"):
            evaluate_retrieval(bad, text, owners, ks=(1,))
    for device in ("nope", None):
        with pytest.raises(InputError, match=f"device: {device!r} is not available"):
            evaluate_retrieval(image, text, owners, ks=(1,), device=device)
    for value in (5, -2):
        wrong = owners.copy()
        wrong[7] = value
        with pytest.raises(InputError, match=rf"image_of_text\[7\] = {value}, expected 0 to 4, or -1"):
            evaluate_retrieval(image, text, wrong, ks=(1,))
    with pytest.raises(InputError, match="no text has an image"):
        evaluate_retrieval(image, text, np.full(12, -1), ks=(1,))
    text[3, 1] = np.nan
    with pytest.raises(InputError, match="text: row 3 holds NaN or infinity"):
        evaluate_retrieval(image, text, owners, ks=(1,))
    image[2, 0] = np.inf
    with pytest.raises(InputError, match="image: row 2 holds NaN or infinity"):
        evaluate_retrieval(image, text, owners, ks=(1,))


def test_without_image_of_text_rows_are_pairs() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, 12, 4))
    assert evaluate_retrieval(image, text) == evaluate_retrieval(image, text, np.arange(12))
    with pytest.raises(InputError, match="there are 12 images and 11 texts"):
        evaluate_retrieval(image, text[:11])
