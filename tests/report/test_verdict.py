"""The verdict: each kind of change to a store of pairs gets its sentence, decided by tests alone."""

from __future__ import annotations

import numpy as np
import pytest

from cs_aligner_cli.gap.differences import differences
from cs_aligner_cli.gap.metrics import measure_headline
from cs_aligner_cli.gap.recall import recall_spreads
from cs_aligner_cli.gap.results import Measurement
from cs_aligner_cli.report import headline
from cs_aligner_cli.report.captions import in_words
from cs_aligner_cli.report.tiles import tiles
from cs_aligner_cli.report.verdict import answers, outcome, verdict
from cs_aligner_cli.retrieval import true_ranks

N, D = 400, 24


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pairs(noise=0.9, gap=0.0, mean=0.0, seed=0):
    """Pairs that share a signal; ``gap`` parts the clouds, ``mean`` moves both the same way."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((N, D)) / D**0.5
    image, text = (shared + noise * rng.standard_normal((N, D)) / D**0.5 for _ in range(2))
    image[:, 0], text[:, 0] = image[:, 0] + gap, text[:, 0] - gap
    image[:, 1], text[:, 1] = image[:, 1] + mean, text[:, 1] + mean
    return unit(image), unit(text)


def rotation(seed=1):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((D, D)))[0]


def report(**stores):
    """A report on stores of the same pairs; the last is the subject."""
    found = {
        "stores": {},
        "null": {},
        "tests": {},
        "retrieval": {},
        "kinds": {n: "baseline" if "+" in n else "store" for n in stores},
    }
    measured = {}
    for name, (image, text) in stores.items():
        gap = measure_headline(image, text)
        recalls = recall_spreads(true_ranks(image, text, np.arange(N)), np.arange(N), N, (1, 10), seed=0)
        means = {k: value for k, (value, _) in recalls["mean"].items()}
        spreads = {k: spread for k, (_, spread) in recalls["mean"].items()}
        measured[name] = Measurement({**gap.values, **means}, {**gap.spreads, **spreads})
        for part in ("null", "tests"):
            found[part][name] = getattr(gap, part)
        found["stores"][name] = gap.values
        found["retrieval"][name] = {d: {k: v for k, (v, _) in recalls[d].items()} for d in ("i2t", "t2i")}
    own = [name for name, kind in found["kinds"].items() if kind == "store"]
    found["subject"] = own[-1]
    found["differences"] = differences(measured, own[-1], headline.tested_metrics(found))
    return found


def judged(before, after):
    found = report(before=before, after=after)
    (paragraph,) = verdict(found)
    return outcome(found, "before", "after"), paragraph.replace("\N{NO-BREAK SPACE}", " ")


def test_a_shift_alone_is_called_a_shift() -> None:
    """mean_shift: paired cosine rises by much, and yet nothing is known better than before."""
    image, text = pairs(gap=0.5)
    half = (image.mean(0) - text.mean(0)) / 2
    kind, words = judged((image, text), (image - half, text + half))
    assert kind == "shift"
    assert "closed" in words
    assert "more than before: no shift" not in words
    assert "cosine" not in words


def test_centring_closes_the_gap_and_wins_nothing() -> None:
    image, text = pairs(gap=0.3)
    kind, words = judged((image, text), (image - image.mean(0), text - text.mean(0)))
    assert kind == "shift"
    assert "a shift of one cloud can do that much" in words
    assert "No gap can be told" in words


def test_a_common_mean_only_shrinks_both_clouds() -> None:
    image, text = pairs(gap=0.3)
    common = 1.5 * np.eye(D)[1]
    kind, words = judged((image, text), (unit(image + common), unit(text + common)))
    assert kind == "scale"
    assert "Both clouds shrank, and the gap with them" in words


def test_a_rotation_of_both_changes_nothing_and_of_one_tears_pairs_apart() -> None:
    image, text = pairs(gap=0.3)
    turn = rotation()
    assert judged((image, text), (image @ turn, text @ turn))[0] == "same"
    kind, words = judged(pairs(), (pairs()[0], pairs()[1] @ turn))
    assert kind == "apart"
    assert "pairs stand out from strangers less than before and are found first less often" in words
    assert "It cost" in words


def test_a_collapse_is_called_one() -> None:
    rng = np.random.default_rng(2)
    image, text = pairs(gap=0.3)
    point = np.eye(D)[2] * 10
    collapsed = tuple(unit(z + 5 * rng.standard_normal(z.shape) / D**0.5 + 5 * point) for z in (image, text))
    kind, words = judged((image, text), collapsed)
    assert kind == "collapse"
    assert "The rows collapsed" in words
    assert "R@1" in words


def test_a_true_alignment_is_called_one() -> None:
    kind, words = judged(pairs(gap=0.3, noise=1.2), pairs(noise=0.6))
    assert kind == "alignment"
    assert words.startswith("Did it close the gap? Yes, as far as these pairs can tell. after closed ")
    assert "Nothing: it won" in words
    assert "pairs stand out from strangers more than before: no shift does that" in words
    assert "This was not measured: no closed form is in the report" in words
    assert words.endswith("This covers the choice of test pairs, not the seed of training: one run was measured.")


def test_other_samples_of_one_store_show_no_difference() -> None:
    image, text = pairs(seed=3)
    noise = 0.02 * np.random.default_rng(4).standard_normal((2, N, D)) / D**0.5
    assert judged((image, text), (unit(image + noise[0]), unit(text + noise[1])))[0] == "same"


def test_the_control_comes_first_and_the_best_free_alternative_is_named() -> None:
    frozen, control, aligned = pairs(gap=0.5, noise=1.2), pairs(gap=0.3, noise=0.7), pairs(noise=0.7)
    centred = tuple(z - z.mean(0) for z in control)
    free = {"frozen+centred": tuple(z - z.mean(0) for z in frozen)}
    stores = {"frozen": frozen, **free, "pairwise_only": control, "pairwise_only+centred": centred, "aligned": aligned}
    found = report(**stores)
    first, second = verdict(found)
    assert "its control pairwise_only" in first
    assert "Could one have had it for free? Yes, as far as these pairs can tell. pairwise_only+centred (each" in first
    assert "taken away, of the trained control): R@1" in first
    assert "no difference to aligned in gap or R@1 is shown" in first
    assert first.index("pairwise_only+centred") < first.index(
        "frozen+centred (each modality's mean taken away, a closed form"
    )
    assert "a lower R@1 than aligned" in first
    assert second.startswith("Against frozen: aligned closed ")
    gap, recall, mixed, free = tiles(found)
    assert (gap.tone, gap.words.partition(",")[0]) == ("good", "no gap can be told")
    assert (recall.title, recall.words) == ("R@1, against pairwise_only", "higher, more than chance")
    assert mixed.words.startswith("not measured")
    assert (free.value, free.tone) == ("pairwise_only+centred", "bad")
    assert free.words.startswith("as good, as far as these pairs tell")


@pytest.mark.parametrize(
    ("gap", "lead", "tone", "tile_words"),
    [
        (
            0.1,
            "No. ",
            "good",
            "not as good: a larger gap and a lower R@1 than aligned, sampling noise of the gap taken off",
        ),
        (
            0.0,
            "Not the same. ",
            "open",
            "another trade: a smaller gap and a lower R@1 than aligned, sampling noise of the gap taken off",
        ),
    ],
)
def test_a_closed_form_that_is_clearly_worse_is_no_free_alternative(
    gap: float, lead: str, tone: str, tile_words: str
) -> None:
    frozen = pairs(gap=0.5, noise=1.2)
    free = {"frozen+cca": pairs(gap=gap, noise=1.2), "frozen+mean_shift": frozen}
    found = report(frozen=frozen, **free, aligned=pairs(gap=0.05, noise=0.6))
    (first,) = verdict(found)
    assert f"Could one have had it for free? {lead}frozen+cca (canonical axes of both modalities, a closed" in first
    assert "of the frozen rows, the strongest of 2 here): R@1" in first
    assert "mean_shift" not in first  # wider, and no better: not the strongest
    (_, _, _, tile) = tiles(found)
    assert tile.tone == tone
    assert tile.words.startswith(tile_words)


def test_where_only_r1_fell_nothing_is_said_of_strangers() -> None:
    """Every sentence follows from what was tested: here only R@1 changed."""
    image, text = pairs(gap=0.3)
    found = report(before=(image, text), after=(image - image.mean(0), text - text.mean(0)))
    for row in found["differences"]:
        if row["metric"] == "R@1":
            row |= {"clear": True, "difference": -0.02, "p_holm": 0.01}
    assert outcome(found, "before", "after") == "cost"
    (words,) = verdict(found)
    assert "The clouds came together, and pairs are found first less often." in words
    assert "It cost 2.0 points of R@1" in words.replace("\N{NO-BREAK SPACE}", " ")


def test_a_gap_is_closed_in_part_where_the_test_still_finds_one() -> None:
    _, words = judged(pairs(gap=0.6, noise=1.2), pairs(gap=0.15, noise=0.6))
    assert words.startswith("Did it close the gap? In part. after closed ")
    assert "A gap is left (" in words
    _, words = judged(pairs(gap=0.1, noise=0.6), pairs(gap=0.5, noise=0.6))
    assert words.startswith("Did it close the gap? No, it widened it. ")


def test_mixed_retrieval_speaks_where_it_was_tested() -> None:
    found = report(before=pairs(gap=0.3), after=pairs(noise=0.6))
    found["mixed"] = {"before": {"R@10": 0.1}, "after": {"R@10": 0.5}}
    row = {
        "store": "before",
        "metric": "mixed_R@10",
        "difference": 0.4,
        "interval": [0.3, 0.5],
        "p": 0.0,
        "p_holm": 0.0,
    }
    for clear, expected in ((True, "R@10 rose (10.0%"), (False, "no difference in R@10 is shown (10.0%")):
        found["differences"] = [*found["differences"], {**row, "clear": clear, "headline": True}]
        (words,) = verdict(found)
        assert f"Where images and texts are searched together, {expected}" in words
        assert ("more than chance by itself, not among all comparisons" in words) == (not clear)
        assert tiles(found)[2].value == "50.0%"
        found["differences"].pop()


@pytest.mark.parametrize(("p", "words"), [(0.2, "No gap can be told"), (0.01, "A gap is left")])
def test_only_the_test_says_that_no_gap_can_be_told(p: float, words: str) -> None:
    """Below the level without a gap or above it: the sentence follows the p value."""
    for gap in (0.01, 0.03):
        data = {
            "stores": {"a": {"centroid_gap": gap}},
            "null": {"a": {"centroid_gap": 0.02}},
            "tests": {"a": {"centroid_gap": p}},
        }
        (paragraph,) = verdict(data)
        assert f"{words} ({gap:.3f} where 0.020 is read without any, p = {p:.3f})." in paragraph


def test_over_seeds_the_seeds_decide() -> None:
    found = report(before=pairs(gap=0.3, noise=1.2), after=pairs(noise=0.6))
    rows = [
        {**row, "clear": False, "p_holm": 0.4, "interval": [-1.0, 1.0]}
        for row in found["differences"]
        if row["headline"]
    ]
    values = {name: [{**found["stores"][name], "R@1": 0.5}] * 3 for name in found["stores"]}
    found["seeds"] = {"runs": ["a", "b", "c"], "stores": values, "differences": rows}
    (paragraph,) = verdict(found)
    assert paragraph.startswith("Did it close the gap? Not shown. Between after and before no difference")
    closed, cost, free = (answer.text for answer in answers(found))
    covered = "over 3 runs, and the choice of test pairs. So few runs can show only what differs by far."
    assert f"{covered} No gap can be told in this run (" in closed
    assert cost.endswith(covered)
    assert free.endswith("This was tested on this run alone, over test pairs.")
    rows[:] = [{**row, "clear": True} for row in rows]
    assert answers(found)[0].text.startswith("Yes, as far as this run's pairs can tell.")
    # The figures are of the report's own run, and so is what they say in words.
    own = 50 * sum(found["retrieval"]["after"][way]["R@1"] for way in ("i2t", "t2i"))
    assert own != 50
    assert f"R@1 {own:.1f} percent" in in_words("gap_against_recall", found)


def test_one_store_alone_and_none() -> None:
    (words,) = verdict(report(a=pairs(gap=0.5)))
    assert words.startswith("How wide is the gap? a has a centroid gap of 0.")
    assert words.endswith("There is no other store to compare it with.")
    (words,) = verdict({"stores": {"frozen": {}}})
    assert "no gap between them can be measured yet" in words


@pytest.mark.parametrize(
    ("p", "shown"), [(0.0004, "p < 0.001"), (0.0494, "p = 0.049"), (0.0496, "p < 0.05"), (0.05, "p = 0.050")]
)
def test_a_p_below_the_level_is_not_rounded_to_it(p: float, shown: str) -> None:
    assert headline.p_in_words(p) == shown


def made_up(gap=0, margin=0, recall=0, mixed=0, gaps=(0.4, 0.1), little=0.0):
    """A report on two stores whose tests say which way each metric clearly moved; ``little``: of the margin, clear."""
    moved = {"squared_gap_debiased": 0.1 * gap, "margin_standardised": 0.5 * margin or little}
    moved |= {"R@1": 0.05 * recall, "mixed_R@10": 0.1 * mixed}
    values = {n: {"centroid_gap": g, "margin_standardised": 2.0} for n, g in zip(("a", "b"), gaps, strict=True)}
    values["a"]["squared_gap_debiased"], values["b"]["squared_gap_debiased"] = 0.2, 0.2 + 0.1 * gap
    rows = [
        {"store": "a", "metric": m, "difference": d, "interval": [d, d], "p": 0.01, "p_holm": 0.01, "clear": bool(d)}
        for m, d in moved.items()
    ]
    return {
        "stores": values,
        "retrieval": {n: {"i2t": {"R@1": 0.3}, "t2i": {"R@1": 0.3}} for n in values},
        "mixed": {n: {"R@10": 0.5} for n in values},
        "differences": rows,
    }


@pytest.mark.parametrize(
    ("moved", "said", "unsaid"),
    [
        ({"recall": -1}, "The clouds are not shown to have come together, and pairs are found", "did not"),
        ({"margin": 1}, "The clouds are not shown to have come together, but pairs stand out", "did not"),
        ({"gap": 1, "recall": 1}, "The clouds moved apart, but pairs are found first more often.", "not shown"),
        ({"gap": -1, "recall": 1}, "What did it cost? Nothing: it won 5.0 points of R@1", "It won"),
        ({"gap": -1, "recall": 1, "margin": -1}, "What did it cost? It won 5.0 points of R@1", "Nothing"),
        ({"gap": -1, "recall": 1, "mixed": -1}, "What did it cost? It won 5.0 points of R@1", "Nothing"),
        ({"gap": -1, "little": 0.08}, "pairs stand out as before, to within 5%: a shift of one", "not shown to stand"),
        ({"little": 0.08}, "Between the clouds no difference is shown; pairs stand out as before, to", "nor between"),
        ({"gap": -1}, "b closed 75% of the centroid gap of a (0.400 → 0.100, p = 0.010)", "noise"),
        (
            {"gap": -1, "gaps": (0.1, 0.103)},
            "b narrowed the centroid gap of a (squared and free of sampling noise 0.2000 → 0.1000, p = 0.010; as",
            "closed",
        ),
        ({"gap": 1, "gaps": (0.038, 0.035)}, "0.2000 → 0.3000, p = 0.010; as measured 0.038 → 0.035)", "(0.038"),
    ],
)
def test_no_sentence_says_more_than_its_test(moved, said: str, unsaid: str) -> None:
    words = " ".join(verdict(made_up(**moved))).replace("\N{NO-BREAK SPACE}", " ")
    assert said in words
    assert unsaid not in words.partition("for free?")[0]


def test_a_collapse_of_one_seed_is_none_of_the_mean() -> None:
    found = made_up(gap=-1, recall=-1)
    wide, narrow = ({"conformity_image": c, "conformity_text": c} for c in (0.5, 0.99))
    found["stores"] = {"a": {**found["stores"]["a"], **wide}, "b": {**found["stores"]["b"], **narrow}}
    assert outcome(found, "a", "b") == "collapse"
    of_b = [found["stores"]["b"], *[{**found["stores"]["b"], **wide}] * 3]
    values = {"a": [found["stores"]["a"]] * 4, "b": of_b}
    found["seeds"] = {"runs": [*"wxyz"], "stores": values, "differences": found["differences"]}
    assert outcome(found, "a", "b") == "cost"


def test_a_recall_of_nothing_was_measured_and_another_run_alone_is_not_the_best() -> None:
    found = {"stores": {"a": {"centroid_gap": 0.3}}, "retrieval": {"a": {"i2t": {"R@1": 0.0}, "t2i": {"R@1": 0.0}}}}
    assert tiles(found)[1].value == "0.0%"
    assert tiles(found)[1].words == "no other store to compare with"
    assert tiles(found)[2].words == "not measured: it takes two captions of an image"
    assert tiles({**found, "mixed": {"a": {"R@1": 0.4}}})[2].words == "not measured: it takes 10 images"
    found["stores"]["other:aligned"] = {"centroid_gap": 0.2}
    found["kinds"] = {"a": "store", "other:aligned": "run"}
    found["retrieval"]["other:aligned"] = found["retrieval"]["a"]
    assert verdict(found)[-1] == "Of another run, other:aligned: R@1 0.0%, gap 0.200."
    found["stores"]["third:aligned"], found["kinds"]["third:aligned"] = {"centroid_gap": 0.1}, "run"
    found["retrieval"]["third:aligned"] = found["retrieval"]["a"]
    best, found["retrieval"]["other:aligned"] = (
        "other:aligned has the highest R@1, 50.0% (gap 0.200)",
        {way: {"R@1": 0.5} for way in ("i2t", "t2i")},
    )
    assert f"Of the other runs' stores, {best}, and third:aligned the smallest gap, 0.100 (R@1 0.0%)." in verdict(found)
