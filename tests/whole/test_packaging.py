"""What a wheel holds, and that what it holds is found."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from this tree."""
    pytest.importorskip("hatchling", reason="building a wheel needs hatchling: pip install -e '.[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--disable-pip-version-check",
        "--wheel-dir",
        str(folder),
    ]
    command = [sys.executable, "-m", "pip", "wheel", *options, str(REPOSITORY)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("cs_aligner_cli-*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_every_module_and_every_packaged_file(wheel: zipfile.ZipFile) -> None:
    held = set(wheel.namelist())
    modules = [p for p in (REPOSITORY / "cs_aligner_cli").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    expected = {p.relative_to(REPOSITORY).as_posix() for p in modules}
    shelf = [*(REPOSITORY / "recipes").iterdir(), *(REPOSITORY / "data_manifests").iterdir()]
    expected |= {f"cs_aligner_cli/_shelf/{p.relative_to(REPOSITORY).as_posix()}" for p in shelf}
    assert expected <= held
    assert {"cs_aligner_cli/py.typed", "cs_aligner_cli/report/page.html.j2", "cs_aligner_cli/report/page.js"} <= held
    assert "cs_aligner_cli/_shelf/recipes/recipe.schema.json" in held
    assert not {name for name in held - expected if ".dist-info/" not in name}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in held)


def test_the_wheel_offers_the_csalign_command(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/entry_points.txt"))
    assert "csalign = cs_aligner_cli.cli.main:main" in wheel.read(name).decode()


def test_an_unpacked_wheel_finds_its_shelf(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path / "site")
    code = """
import json, sys
from cs_aligner_cli.recipe import shelf
from cs_aligner_cli.recipe.recipe import load_recipe
kinds = ("recipes", "data_manifests")
print(json.dumps({
    "folders": {kind: str(shelf.folder(kind)) for kind in kinds},
    "names": {kind: shelf.names(kind) for kind in kinds},
    "loaded": [load_recipe(name).name for name in shelf.names("recipes")],
}))
"""
    arguments = [sys.executable, "-c", code]
    environment = {"PATH": "", "PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    inside = tmp_path / "site" / "cs_aligner_cli"
    for kind in ("recipes", "data_manifests"):
        assert found["folders"][kind] == str(inside / "_shelf" / kind)
        assert found["names"][kind] == sorted(p.stem for p in (REPOSITORY / kind).glob("*.yaml"))
    assert found["loaded"] == found["names"]["recipes"]


def test_the_constraints_name_every_direct_dependency() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(needed for name in ("encoders", "lora", "report", "webdataset", "test") for needed in extras[name]),
    ]
    pinned = {line.split("==")[0].lower() for line in (REPOSITORY / "constraints.txt").read_text().splitlines()}
    for requirement in wanted:
        if requirement.startswith(f"{project['name']}["):
            continue  # our own extras
        assert requirement.split(">=")[0].split("[")[0].lower() in pinned
