"""What commands print and write is what the published schemas say; what is fresh is known without reading."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from cs_aligner_cli.cli.main import app
from cs_aligner_cli.cli.options import RESULTS
from cs_aligner_cli.cli.schemas import result_schema
from cs_aligner_cli.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[2]
# A process that has nothing to do, what it imported, and every file that it opened.
WATCHED = """
import os, sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
sys.argv = ["csalign", *sys.argv[1:]]
from cs_aligner_cli.cli.main import main
try:
    main()
finally:
    print("heavy:", sorted({"torch", "numpy", "pandas", "faiss", "PIL"} & set(sys.modules)), file=sys.stderr)
    inside = {path for path in opened if "/runs/" in path and os.path.isfile(path)}
    print("read:", sum(os.path.getsize(path) for path in inside), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of drawn features in a folder of its own, and what `csalign run --json` printed."""
    here = tmp_path_factory.mktemp("finished")
    (here / "latent.yaml").write_text(
        "name: latent\nkind: latent\nimages: {train: 60, val: 8, test: 12}\ndim: 8\nlatent_dim: 3\n"
    )
    (here / "classes.txt").write_text("one\ntwo\n")
    (here / "recipe.yaml").write_text(
        "name: toy\ndata: {manifest: latent.yaml}\n"
        "encoders: {image: {kind: features}, text: {kind: features}}\n"
        "train: {epochs: 1, batch_size: 32, log_steps: 1, image: {adapter: {kind: linear}}}\n"
        "eval_retrieval: {bootstrap: 20}\ngap_report: {baselines: {frozen: [centred]}, examples: 0}\n"
    )
    return here, json.loads(csalign(here, "run", "--json").stdout)


def csalign(here: Path, *arguments: str, code: int = 0) -> Result:
    with contextlib.chdir(here):
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.stderr
    return done


def check(name: str, value: Any) -> None:
    jsonschema.validate(value, result_schema(name), jsonschema.Draft202012Validator)


def test_a_run_and_its_files_are_as_their_schemas_say(finished: tuple[Path, dict[str, Any]]) -> None:
    here, printed = finished
    check("run", printed)
    folder = here / "runs" / "toy"
    check("run.json", json.loads((folder / "run.json").read_text()))
    records = [*folder.rglob("stage.json")]
    assert len(records) >= 7
    for record in records:
        check("stage.json", json.loads(record.read_text()))
    lines = (folder / "train" / "aligned" / "metrics.jsonl").read_text().splitlines()
    for line in lines:
        check("metrics.jsonl", json.loads(line))
    assert any("val_R@1" in json.loads(line) for line in lines)


@pytest.mark.parametrize("command", [s.command for s in STAGES.values() if s.name not in ("zero_shot", "generate")])
def test_every_stage_prints_what_its_schema_says(finished: tuple[Path, dict[str, Any]], command: str) -> None:
    printed = json.loads(csalign(finished[0], command, "--json").stdout)
    check(command, printed)
    assert printed["status"] == "fresh" and printed["command"] == STAGES[command.replace("-", "_")].name


def test_other_commands_print_what_their_schemas_say(finished: tuple[Path, dict[str, Any]]) -> None:
    here, printed = finished
    check("search", json.loads(csalign(here, "search", "--id", "test-000000", "-k", "3", "--json").stdout))
    check("doctor", json.loads(csalign(here, "doctor", "--json").stdout))
    check("error", json.loads(csalign(here, "zero-shot", "--json", code=2).stdout))
    wrong = {**printed, "status": {"train": "perhaps"}}
    with pytest.raises(jsonschema.ValidationError, match="perhaps"):
        check("run", wrong)


def test_the_schemas_in_docs_are_those_of_the_code() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        from result_schemas import file_of, text_of  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)
    for name in RESULTS:
        jsonschema.Draft202012Validator.check_schema(result_schema(name))
        assert file_of(name).read_text(encoding="utf-8") == text_of(name), "make docs"


@pytest.mark.parametrize("command", ["run", "prepare", "embed", "train", "eval-retrieval", "gap-report"])
def test_nothing_to_do_imports_nothing_heavy_and_reads_only_records(
    finished: tuple[Path, dict[str, Any]], command: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, command, "-q"], cwd=finished[0], capture_output=True, text=True, check=True
    )
    heavy, read = done.stderr.splitlines()[-2:]
    assert heavy == "heavy: []"
    assert int(read.split()[1]) < 400_000  # records of stages, far below the stores


def test_run_json_is_the_stamp_by_which_make_settles(finished: tuple[Path, dict[str, Any]]) -> None:
    here, _ = finished
    stamp, recipe = here / "runs" / "toy" / "run.json", here / "recipe.yaml"
    former = stamp.read_bytes()
    for command in ("run", "gap-report"):
        os.utime(stamp, ns=(0, 0))  # two times of now may be one tick of the clock
        os.utime(recipe)
        assert stamp.stat().st_mtime_ns < recipe.stat().st_mtime_ns
        csalign(here, command, "-q")
        assert stamp.stat().st_mtime_ns > recipe.stat().st_mtime_ns
    assert stamp.read_bytes() == former


def test_a_record_whose_writing_was_cut_is_written_again(finished: tuple[Path, dict[str, Any]]) -> None:
    here, _ = finished
    stamp = here / "runs" / "toy" / "run.json"
    aside, former = stamp.with_name(".run.json.tmp"), stamp.read_bytes()
    aside.write_bytes(former[:100])
    csalign(here, "gap-report", "-q")
    assert not aside.exists()
    noted, before = (json.loads(content)["stages"]["gap_report"] for content in (stamp.read_bytes(), former))
    assert {**noted, "status": ""} == {**before, "status": ""}
    stamp.write_bytes(former)
