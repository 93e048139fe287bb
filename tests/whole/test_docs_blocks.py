"""Every command and every block of code in the documentation: parsed, validated or run; what is not says why."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
import typer.main
import yaml

from cs_aligner_cli.cli.main import app
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.data.manifest import MANIFESTS
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.recipe.encoders import OpenClipEncoder
from cs_aligner_cli.recipe.messages import key_paths, validate
from cs_aligner_cli.recipe.recipe import Recipe, load_recipe
from cs_aligner_cli.recipe.strict_yaml import YamlFile

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_FENCE = re.compile(
    r"^(?P<mark><!-- not run: .+ -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
# Commands of other programs, and why no test runs them.
OTHERS = {
    "make": "its targets are asked for below",
    "python": "benchmarks take minutes to hours",
    "bash": "wants a GPU",
    "torchrun": "starts processes on several machines",
    "hf": "downloads",
    "pip": "installs",
    "sed": "edits the reader's own file",
}


class Block(NamedTuple):
    page: str
    language: str
    text: str
    marked: bool


def blocks() -> Iterator[Block]:
    for page in PAGES:
        for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
            yield Block(page.name, found["language"], found["text"], found["mark"] is not None)


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every line in an indented block that begins with the name of a program."""
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8")).replace("\\\n", " ")
        for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE):
            if line.split()[0] in ("csalign", *OTHERS):
                yield page.name, line.split("  #")[0].split(" | ")[0].strip()


def test_there_are_pages_with_commands_and_blocks() -> None:
    assert len({page for page, _ in commands()}) > 8 and len([*blocks()]) > 20


@pytest.mark.parametrize(("page", "command"), [pytest.param(*found, id=": ".join(found)) for found in commands()])
def test_a_command_is_one_that_csalign_takes(page: str, command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in targets
        return
    if program == "python" and arguments[0].endswith(".py"):
        assert (REPOSITORY / arguments[0]).is_file()
    if program != "csalign":
        return
    given = [a.removeprefix("[").removesuffix("]") for a in arguments if a not in ("&&", ">", "<")]
    assert "..." not in given, "an ellipsis cannot be pasted"
    group: Any = typer.main.get_command(app)
    context, name = None, "csalign"
    if given[0].startswith("-"):
        assert given[0] in {option for parameter in group.params for option in parameter.opts}
        return
    while hasattr(group, "commands"):
        context = group.make_context(name, [], parent=context, resilient_parsing=True)
        name, *given = given
        group = group.commands[name]
    parsed = group.make_context(name, given, parent=context)  # refuses unknown options and words too many
    known = set(key_paths(Recipe))
    for setting in parsed.params.get("overrides") or ():
        key = setting.split("=")[0]
        assert key in known or ".further." in key or key.startswith("sweep."), key


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language == "yaml"], ids=lambda b: f"{b.page}: {b.text[:40]!r}"
)
def test_a_yaml_block_is_a_recipe_or_a_manifest_or_a_part_of_one(block: Block) -> None:
    for text in block.text.split("\n---\n"):
        content = yaml.safe_load(text)
        assert isinstance(content, dict)
        kind = content.get("kind")
        if kind in MANIFESTS:
            validate(MANIFESTS[kind], YamlFile(REPOSITORY / "docs" / block.page, {"name": "mine", **content}))
            continue
        sections = {"name", "version"} & content.keys() or set(content) <= set(Recipe.model_fields)
        if sections:
            manifest = {"data": {"manifest": "flickr8k"}} if "data" not in content else {}
            try:
                loaded = load_recipe({"name": "mine", **manifest, **content})
            except InputError as error:
                raise AssertionError(f"{block.page}: {error}") from None
            assert not other_activation(loaded), block.page
            continue
        known = {path.rsplit(".", 1)[-1] for model in (Recipe, *MANIFESTS.values()) for path in key_paths(model)}
        assert set(content) <= known or block.marked, f"{block.page}: neither recipe nor manifest, nor a part of either"


def other_activation(recipe: Recipe) -> bool:
    """Whether a recipe names published weights beside a model that has another activation, which csalign refuses."""
    tower = recipe.encoders.image
    if not isinstance(tower, OpenClipEncoder) or tower.model is None or tower.pretrained is None:
        return False
    import open_clip

    published = open_clip.get_pretrained_cfg(tower.model, tower.pretrained)
    assert published, f"open_clip knows no weights {tower.pretrained} of {tower.model}"
    return bool(published.get("quick_gelu") and not open_clip.get_model_config(tower.model).get("quick_gelu"))


def test_published_weights_on_the_shelf_have_the_activation_of_their_model() -> None:
    for name in shelf.names("recipes"):
        content = yaml.safe_load(shelf.find("recipes", name).read_text(encoding="utf-8"))
        tower = content.get("encoders", {}).get("image", {})
        if tower.get("pretrained") and tower.get("kind") == "open_clip":
            assert not other_activation(load_recipe(name)), name


def reader_has(page: str) -> dict[str, Any]:
    """The arrays that the blocks of a page leave to the reader: pairs of unit rows, or tokens with their masks."""
    rng = np.random.default_rng(0)

    def unit(*shape: int) -> npt.NDArray[np.float64]:
        rows = rng.normal(size=shape)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    tokens = {"x": torch.from_numpy(unit(4, 3, 8)), "y": torch.from_numpy(unit(4, 5, 8))}
    tokens |= {"x_mask": torch.ones(4, 3, dtype=torch.bool), "y_mask": torch.ones(4, 5, dtype=torch.bool)}
    if page == "tokens.md":
        return tokens
    image, text = unit(40, 16), unit(40, 16)
    names = {"features": image, "ids": np.arange(40), "image_of_text": np.arange(40) // 2, "groups": np.arange(40)}
    return {"image": image, "text": text, **names}


@pytest.mark.parametrize(
    "block", [b for b in blocks() if b.language == "python"], ids=lambda b: f"{b.page}: {b.text[:40]!r}"
)
def test_a_python_block_runs_or_says_why_not(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = compile(block.text, block.page, "exec")
    if not block.marked:
        monkeypatch.chdir(tmp_path)  # one saves an adapter
        exec(code, reader_has(block.page))


def test_blocks_of_other_languages_are_commands() -> None:
    assert {block.language for block in blocks()} <= {"yaml", "python", "", "json"}


NOTEBOOKS = sorted((REPOSITORY / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_and_carry_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert len(cells) < 15
    for cell in cells:
        assert not cell.get("outputs") and len(cell["source"]) < 25


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), path.name, "exec"), names)
    assert "R@1" in capsys.readouterr().out


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="the site wants the extra site: make site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    quiet = {**os.environ, "DISABLE_MKDOCS_2_WARNING": "true", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=quiet)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    pages = [*(tmp_path / "site").rglob("*.html")]
    assert len(pages) > 20
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text(encoding="utf-8"))
        assert not loaded, f"{page.name}: {loaded}"
