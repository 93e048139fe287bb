"""The pages in a real browser: sorting, map, keyboard, colour schemes, contrast, no network. `make test-browser`.

Playwright drives the Chromium that is installed; where one of the two is absent the tests are skipped.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import features_recipe_content, make_features
from PIL import Image
from typer.testing import CliRunner

from cs_aligner_cli.generation.contact_sheet import sheet_html
from cs_aligner_cli.report import canvas
from cs_aligner_cli.search.page import render_search_page

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[browser]'")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH; CHROMIUM names another"),
]
DESKTOP, PHONE = (1400, 1000), (390, 844)
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A gap report with control, closed forms, photos and findings; a comparison of two stores; found pictures."""
    import yaml

    from cs_aligner_cli.cli.main import app

    folder = tmp_path_factory.mktemp("pages")
    root = make_features(folder / "features")
    image = np.load(root / "image_mobilenet_v2.npy")
    np.save(root / "image_mobilenet_v2.npy", image[:, :16])
    (folder / "photos").mkdir()
    for i in range(0, 200, 2):
        Image.new("RGB", (300, 200), (i, 100, 50)).save(folder / "photos" / f"{i:04d}.jpg")
    content = features_recipe_content(root, folder / "run")
    content["train"] |= {"pairwise_only": True, "epochs": 3}
    baselines = {"frozen": ["centred", "mean_shift", "whitened", "procrustes", "cca"]}
    content["gap_report"] = {"baselines": baselines, "photos": str(folder / "photos")}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")

    def call(*arguments: object) -> None:
        called = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert called.exit_code == 0, called.output

    call("run", recipe, "-q")
    comparison = folder / "comparison.html"
    call("compare", f"{folder / 'run'}:pairwise_only", f"{folder / 'run'}:aligned", "-q", "--out", comparison)
    result = {"rank": 1, "score": 0.5, "matching_logit": 1.5, "image_id": "0000.jpg", "caption": "a <b>dog</b>"}
    photos = [{**result, "image_path": str(folder / "photos" / "0000.jpg")}, {**result, "image_path": None}]
    queries = [{"query": "a dog", "image_path": None, "reranked": n, "results": photos} for n in (0, 2)]
    search = folder / "search.html"
    search.write_text(render_search_page("tiny", {"store": "aligned", "split": "dev", "queries": queries}))
    rows = {
        name: [Image.new("RGB", (64, 64), (200, 60, 40))] * 12
        for name in ("the real picture", "aligned", "frozen+ridge")
    }
    sheet = folder / "sheet.html"
    sheet.write_text(
        sheet_html(rows, [f"<{i}> a red circle on a blue ground" for i in range(12)], "tiny: what each store draws")
    )
    report = folder / "run" / "gap_report" / "report.html"
    return {"report": report, "comparison": comparison, "search": search, "sheet": sheet}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Open]:
    """``opened("report", scheme="dark")``: a page; what it asks of any network, and what it complains of, fails."""
    contexts, wrong = [], []

    def call(name: str, *, scheme: str = "light", size: tuple[int, int] = DESKTOP, script: bool = True) -> Any:
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": size[0], "height": size[1]}, java_script_enabled=script
        )
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith(("file:", "data:")) else None)
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(pages[name].as_uri())
        return page

    yield call
    for context in contexts:
        context.close()
    assert wrong == []


def ratio(first: str, second: str) -> float:
    """The contrast of two colours, each ``rgb(r, g, b)`` or ``#rrggbb`` (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        if colour.startswith("#"):
            channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        else:
            channels = [int(part) for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_a_click_sorts_best_first_and_a_second_one_turns_it_round(opened: Open, name: str) -> None:
    page = opened(name)
    table = page.locator("table.sortable").first
    heads = table.locator("thead th")
    for column in range(1, heads.count()):
        head, best = heads.nth(column), heads.nth(column).get_attribute("data-first")
        for order in (best, "descending" if best == "ascending" else "ascending"):
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == order
            values = table.locator(f"tbody tr > :nth-child({column + 1})").evaluate_all(
                "cells => cells.map((cell) => Number(cell.dataset.sort ?? NaN))"
            )
            numbers = [value for value in values if not np.isnan(value)]
            assert numbers == sorted(numbers, reverse=order == "descending")
            assert np.isnan(values[len(numbers) :]).all()  # what has no number comes last
    heads.first.locator("button").press("Enter")
    names = table.locator("tbody th").all_inner_texts()
    assert len(names) == len(set(names)) and heads.first.get_attribute("aria-sort") == "ascending"


def test_metrics_are_not_sorted_across_and_aligned_is_seen_at_once(opened: Open) -> None:
    """A column of unlike metrics has no order; and the store that the report is about stands first, in sight."""
    page = opened("report")
    table = page.locator("details.metrics table").first
    assert table.locator("button").count() == 0
    assert table.locator("thead th").nth(1).inner_text() == "aligned"
    box = table.locator("thead th").nth(1).bounding_box()
    assert box["x"] + box["width"] < DESKTOP[0]


def test_the_map_shows_the_pair_under_the_mouse_and_follows_the_arrow_keys(opened: Open) -> None:
    page = opened("report")
    points, said = page.locator(".map g"), page.locator("#pointed")
    assert points.count() == 40
    assert page.locator(".map g[tabindex='0']").count() == 1
    points.nth(3).locator("circle").hover(force=True)
    page.locator(".map g[tabindex='0']").focus()
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home"):
        page.keyboard.press(key)
        focused = page.evaluate("document.activeElement.querySelector('title').textContent")
        assert said.inner_text().endswith(focused)
        seen.append(float(page.evaluate("document.activeElement.querySelector('circle').getAttribute('cx')")))
        assert page.locator(".map g[tabindex='0']").count() == 1
    assert seen[0] <= seen[1] and seen[2] == seen[0]
    assert seen[3] == max(seen) and seen[4] == min(seen)
    assert said.locator("img, .photo.none").count() == 1


def test_the_keyboard_goes_through_the_page_in_few_stops_and_each_is_seen(opened: Open) -> None:
    page = opened("report")
    stops = 0
    for _ in range(120):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
                const at = document.activeElement;
                if (at === document.body) return null;
                const ringed = at.closest(".map svg") ?? at;
                const style = getComputedStyle(ringed);
                return [at.outerHTML.slice(0, 80), style.outlineStyle, parseFloat(style.outlineWidth)];
            }"""
        )
        if found is None:
            break
        stops += 1
        assert found[1] == "solid" and found[2] >= 2, found
    assert 20 < stops < 80


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "comparison", "search", "sheet"])
def test_axe_finds_nothing_serious(opened: Open, name: str, scheme: str) -> None:
    """axe-core's rules, contrast of text (4.5:1) among them, in both colour schemes, every part of the page open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = opened(name, scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    found = axe.Axe().run(page).response
    assert "color-contrast" in {rule["id"] for rule in found["passes"]}
    serious = [
        (rule["id"], [node["html"][:120] for node in rule["nodes"][:3]])
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
    ]
    assert not serious


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_stand_out_and_no_slab_is_white_in_the_dark(opened: Open, scheme: str) -> None:
    page = opened("report", scheme=scheme)
    card = page.locator("figure .paper").first.evaluate("frame => getComputedStyle(frame).backgroundColor")
    for colour in {canvas.IMAGE, canvas.TEXT, canvas.PAIRED, canvas.UNPAIRED, *canvas.SERIES}:
        assert ratio(colour, card) >= 3, colour
    for part in (".map circle", ".map path"):
        assert ratio(page.locator(part).first.evaluate("mark => getComputedStyle(mark).fill"), card) >= 3
    texts = page.locator("figure svg text").evaluate_all("all => all.map((text) => getComputedStyle(text).fill)")
    assert len(texts) > 100
    assert min(ratio(text, card) for text in set(texts)) >= 4.5
    grounds = page.locator("body *").evaluate_all(
        "all => [...new Set(all.map((part) => getComputedStyle(part).backgroundColor))]"
    )
    solid = [ground for ground in grounds if not re.fullmatch(r"rgba\(.*, 0\)", ground)]
    if scheme == "dark":
        assert max(ratio(ground, "#000000") for ground in solid) < 4


@pytest.mark.parametrize(("size", "script"), [(DESKTOP, True), (PHONE, True), (PHONE, False)])
def test_nothing_is_cut_at_any_width_nor_lost_without_a_script(
    opened: Open, pages: dict[str, Path], size: tuple[int, int], script: bool
) -> None:
    page = opened("report", size=size, script=script)
    if script:
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert page.locator(".tile").count() == 4
    parts = ("h1", ".verdict", ".tile", ".first figure svg") if size == DESKTOP else ("h1", ".verdict")
    assert all(page.locator(part).first.bounding_box()["y"] < size[1] for part in parts)
    questions = page.locator(".verdict strong").all_inner_texts()
    assert questions == ["Did it close the gap?", "What did it cost?", "Could one have had it for free?"]
    for link in page.locator("nav a").all():
        assert page.locator(link.get_attribute("href")).count() == 1
    assert page.locator("figure svg[role=img]").count() == 7
    assert page.locator(".map g title").count() == 40
    assert pages["report"].stat().st_size < 2_000_000


@pytest.mark.parametrize("name", ["search", "sheet"])
def test_pages_of_pictures_fit_a_phone(opened: Open, name: str) -> None:
    """The sheet's many columns scroll inside their frame, beside the names of its rows."""
    page = opened(name, size=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    if name == "sheet":
        page.locator(".wide").evaluate("frame => frame.scrollTo(600, 0)")
        assert page.locator("tbody th").first.bounding_box()["x"] >= 0


def test_photos_are_shown_whole(opened: Open) -> None:
    fits = (
        opened("report").locator(".item img").evaluate_all("all => all.map((img) => getComputedStyle(img).objectFit)")
    )
    assert fits and set(fits) == {"contain"}
