"""The shelf of recipes and manifests, and the commands that show it."""

# ruff: noqa: E501 (a message is easier to read on one line)
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cs_aligner_cli.common.errors import InputError, did_you_mean
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.recipe.recipe import load_recipe
from cs_aligner_cli.recipe.strict_yaml import read_yaml

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CSALIGN_RECIPE", raising=False)
    monkeypatch.chdir(tmp_path)


def test_every_yaml_file_of_the_repository_is_on_the_shelf() -> None:
    assert shelf.names("recipes") == sorted(p.stem for p in (REPOSITORY / "recipes").glob("*.yaml"))
    assert shelf.names("data_manifests") == sorted(p.stem for p in (REPOSITORY / "data_manifests").glob("*.yaml"))
    assert {"flickr8k", "flickr8k_gap", "flickr8k_images", "scenes", "scenes_clip"} <= set(shelf.names("recipes"))
    for kind in ("recipes", "data_manifests"):
        for name in shelf.names(kind):
            assert read_yaml(shelf.find(kind, name)).data["name"] == name


@pytest.mark.parametrize("name", shelf.names("recipes"))
def test_every_shipped_recipe_is_valid_by_name_and_by_path(name: str, csalign: Callable[..., Any]) -> None:
    assert load_recipe(name).data.manifest in shelf.names("data_manifests")
    for given in (name, shelf.find("recipes", name)):
        called = csalign("recipe", "validate", given)
        assert (called.exit_code, called.stdout) == (0, f"{name}: valid\n")
        hint = "still to be named: the folder of the data, --set data.root=FOLDER\n"
        assert called.stderr == (hint if name.startswith(("flickr8k", "paper", "photos")) else "")


def test_a_shelf_name_means_the_same_everywhere_and_a_path_means_the_file(tmp_path: Path) -> None:
    (tmp_path / "scenes").write_text("name: mine")
    (tmp_path / "mine.yaml").write_text("name: mine")
    assert shelf.find("recipes", "scenes") == REPOSITORY / "recipes" / "scenes.yaml"
    assert shelf.find("recipes", "./scenes") == Path("scenes")
    assert shelf.find("recipes", "mine.yaml") == Path("mine.yaml")
    assert shelf.find("recipes", str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flickr8", "flickr8: no such file, and no shipped recipe of that name; did you mean flickr8k?"),
        ("sub/scenes.yaml", "sub/scenes.yaml: no such file, and no shipped recipe of that name; did you mean scenes?"),
        ("folder", "folder: is a folder, not a recipe file"),
        ("~no_such_user/r.yaml", "~no_such_user/r.yaml: no such file, and no shipped recipe of that name; those are: conflict_toy, "),
        ("x" * 400, "x" * 400 + ": no such file, and no shipped recipe of that name; those are: conflict_toy, "),
        ("", ": is a folder, not a recipe file"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_with_the_nearest_name(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError) as caught:
        shelf.find("recipes", name)
    assert str(caught.value).startswith(message)


def test_a_runs_folder_and_a_misspelt_file_lead_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine")
    for file in ("run/recipe.yaml", "sweep/sweep.yaml"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("name: mine")
        with pytest.raises(InputError, match=rf"is a folder, not a recipe file\nIts recipe is .*{file}.$"):
            shelf.find("recipes", str((tmp_path / file).parent))
    with pytest.raises(InputError, match=r"no shipped manifest of that name; did you mean .*/mine.yaml\?$"):
        shelf.find("data_manifests", str(tmp_path / "mien.yaml"))


def test_long_lists_of_names_are_cut() -> None:
    assert did_you_mean("zzz", ["a", "b"]) == "; expected one of: a, b"
    assert did_you_mean("zzz", [f"n{i:03d}" for i in range(400)]).endswith("n018, n019, ... (400 in all)")
    assert did_you_mean("zzz", []) == ""


# csalign recipe list | show | copy


def test_list_tells_what_each_recipe_does_and_how_to_run_it(csalign: Callable[..., Any]) -> None:
    listed = csalign("recipe", "list", "--json").json
    assert list(listed) == shelf.names("recipes")
    text = csalign("recipe", "list").stdout
    for name, entry in listed.items():
        does = "sweep" if load_recipe(name).sweep else "run"
        assert entry["command"].removesuffix(" --set data.root=FOLDER") == f"csalign {does} {name}"
        assert len(entry["about"]) > 40 and "yaml-language-server" not in entry["about"]
        assert entry["command"] in text and entry["about"] in text


def test_show_prints_the_file(csalign: Callable[..., Any], refused: Callable[..., str]) -> None:
    assert csalign("recipe", "show", "scenes").stdout == (REPOSITORY / "recipes" / "scenes.yaml").read_text()
    assert refused("recipe", "show", "scene") == (
        "scene: no such file, and no shipped recipe of that name; did you mean scenes?"
    )
    Path("binary.yaml").write_bytes(b"\xff\xfe")
    assert "binary.yaml: is not UTF-8 text" in refused("recipe", "show", "binary.yaml")


def test_a_copy_is_at_home_where_it_lies(csalign: Callable[..., Any], tmp_path: Path) -> None:
    called = csalign("recipe", "copy", "flickr8k", "mine.yaml")
    assert (called.exit_code, called.stdout, called.stderr) == (0, "", "")
    first, second, *rest = (tmp_path / "mine.yaml").read_text().splitlines()
    assert first == "# csalign run mine.yaml --set data.root=FOLDER"
    schema = Path(second.removeprefix("# yaml-language-server: $schema="))
    assert schema.is_absolute() and schema.samefile(shelf.folder("recipes") / shelf.RECIPE_SCHEMA)
    assert rest == shelf.find("recipes", "flickr8k").read_text().splitlines()[2:]
    assert load_recipe("mine.yaml") == load_recipe("flickr8k")
    csalign("recipe", "copy", "mine.yaml", "again.yaml")
    assert Path("again.yaml").read_text() == Path("mine.yaml").read_text()


def test_a_copy_never_overwrites(csalign: Callable[..., Any], refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: precious")
    assert refused("recipe", "copy", "scenes", "mine.yaml") == "mine.yaml: exists already, and is left as it is"
    assert (tmp_path / "mine.yaml").read_text() == "name: precious"
    (tmp_path / "link.yaml").symlink_to(tmp_path / "target.yaml")
    assert "exists already" in refused("recipe", "copy", "scenes", "link.yaml")
    assert not (tmp_path / "target.yaml").exists()
    assert refused("recipe", "copy", "scenes", "no/such/folder.yaml") == (
        "no/such/folder.yaml: cannot be written: No such file or directory"
    )
    assert refused("recipe", "copy", "scenes", ".") == ".: exists already, and is left as it is"
