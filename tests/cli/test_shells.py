"""csalign in odd shells: closed streams, recipes from pipes, poor locales, completion, errors as JSON."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cs_aligner_cli.cli.options import complete_key, complete_recipe

CSALIGN = f"{sys.executable} -m cs_aligner_cli"
MANIFEST = "name: latent\nkind: latent\nimages: {train: 80, val: 8, test: 20}\ndim: 8\nlatent_dim: 3\n"
RECIPE = """name: toy
data: {manifest: latent.yaml}
encoders: {image: {kind: features}, text: {kind: features}}
train: null
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "latent.yaml").write_text(MANIFEST)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command.replace("csalign", CSALIGN)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")
@pytest.mark.parametrize(
    "command",
    [
        "csalign recipe validate - < recipe.yaml",
        "cat recipe.yaml | csalign recipe validate /dev/stdin",
        "csalign recipe validate /dev/stdin < recipe.yaml",
        "csalign recipe validate <(cat recipe.yaml)",
        "CSALIGN_RECIPE=- csalign recipe validate < recipe.yaml",
    ],
)
def test_a_recipe_is_read_from_standard_input_and_from_pipes(here: Path, command: str) -> None:
    done = shell(command)
    assert (done.returncode, done.stdout) == (0, "toy: valid\n"), done.stderr


def test_a_recipe_from_standard_input_is_named_in_messages(here: Path) -> None:
    done = shell("echo 'name: x\nsede: 1' | csalign recipe validate -")
    assert done.returncode == 2
    assert done.stderr.startswith("csalign: -:2: sede: unknown key; did you mean seed?")
    assert "-: no such file" not in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="a shell of Unix")
def test_closed_streams_lose_nothing_but_what_they_would_have_carried(here: Path) -> None:
    assert shell("csalign prepare >&-").returncode == 0
    assert (here / "runs" / "toy" / "data" / "stage.json").is_file()
    done = shell("csalign prepare --json 2>&- <&-")
    assert done.returncode == 0 and json.loads(done.stdout)["status"] == "fresh"
    assert shell("csalign prepare --set seed=x >&- 2>&-").returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has Unicode names")
def test_a_path_that_the_locale_cannot_encode_works(here: Path) -> None:
    poor = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # as with a locale of Latin letters only
    done = shell("csalign prepare --set run_dir=Größe/été", **poor)
    assert done.returncode == 0, done.stderr
    assert (here / "Größe" / "été" / "data" / "stage.json").is_file()


def test_an_encoding_that_lacks_a_character_shows_an_escape(here: Path) -> None:
    done = shell("csalign recipe validate --set data.manifest=é.yaml", PYTHONIOENCODING="ascii")
    assert done.returncode == 2 and "\\xe9.yaml" in done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("csalign train absent.yaml --json", "absent.yaml: no such file"),
        ("csalign recipe validate --json --set sede=1", "sede: unknown key"),
        ("csalign train --json --no-such-option", "No such option"),
    ],
)
def test_with_json_an_error_is_an_object_on_stdout_too(here: Path, command: str, message: str) -> None:
    done = shell(command)
    assert done.returncode == 2 and message in done.stderr
    answer = json.loads(done.stdout)
    assert answer["error"]["exit_code"] == 2 and message in answer["error"]["message"]


@pytest.mark.skipif(sys.platform != "linux", reason="script gives a terminal in its own way on each system")
def test_tables_on_a_terminal_of_80_columns_are_whole(here: Path) -> None:
    done = shell("script -qec 'stty cols 80; csalign doctor' /dev/null", TERM="dumb")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)


def test_completion_knows_recipes_files_keys_and_their_values(here: Path) -> None:
    assert "scenes_clip" in complete_recipe("sc")
    assert complete_recipe("rec") == ["recipe.yaml"]
    (here / "MINE.YML").touch()
    assert complete_recipe("MI") == ["MINE.YML"]
    assert "train.image.adapter.kind=" in complete_key("train.image.ad")
    assert "train.image=" not in complete_key("train.image")  # a section has no value of its own
    assert {"train.image.adapter.kind=linear", "train.image.adapter.kind=residual_mlp"} <= {
        *complete_key("train.image.adapter.kind=")
    }
    assert complete_key("train.pairwise_only=t") == ["train.pairwise_only=true"]
    assert complete_key("seed=") == []


def test_the_shell_is_given_completions_without_torch(here: Path) -> None:
    words = {"COMP_WORDS": "csalign run --set train.obj", "COMP_CWORD": "3", "_CSALIGN_COMPLETE": "complete_bash"}
    code = "import sys; sys.argv = ['csalign']; from cs_aligner_cli.cli.main import main\ntry:\n    main()\n"
    code += "finally:\n    assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **words}
    )
    assert "train.objective.divergence.weight=" in done.stdout.split(), done.stderr
