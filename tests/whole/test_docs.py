"""The documentation tells what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from cs_aligner_cli.recipe import shelf

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_recipe_page_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("recipe_reference", REPOSITORY / "docs" / "recipe_reference.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run make docs"


def test_shipped_recipes_begin_with_their_command_and_stay_short() -> None:
    for name in shelf.names("recipes"):
        lines = shelf.find("recipes", name).read_text().splitlines()
        assert re.fullmatch(rf"# csalign (run|sweep) recipes/{name}\.yaml( --set data\.root=FOLDER)?", lines[0])
        assert lines[1] == "# yaml-language-server: $schema=recipe.schema.json"
        assert len(lines) <= 40


def test_the_shelf_names_every_shipped_recipe_and_the_readme_only_real_make_targets() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", readme)) <= targets
    shown = (REPOSITORY / "docs" / "shelf.md").read_text()
    assert all(f"recipes/{name}.yaml" in shown for name in shelf.names("recipes"))
