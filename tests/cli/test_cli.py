"""The command line and its voice: help, exit codes, what goes to stdout and what to stderr, signals."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console as RichConsole

from cs_aligner_cli import __version__
from cs_aligner_cli.common.console import Console, guarded, print_json, table
from cs_aligner_cli.common.errors import InputError, TooManyBadItems

Capture = pytest.CaptureFixture[str]
STAGES = ("prepare", "embed", "train", "eval-retrieval", "gap-report")
# Ctrl-C reaches a Python that a test started in the background only with the default handler in place.
CSALIGN = (
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from cs_aligner_cli.cli.main import main; main()",
)


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CSALIGN_RECIPE", raising=False)
    monkeypatch.chdir(tmp_path)


# Help


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        *((command, "--help") for command in ("run", *STAGES, "recipe")),
        *(("recipe", command, "--help") for command in ("list", "show", "copy", "validate", "schema")),
        ("recipe", "list"),
        ("recipe", "schema"),
        ("recipe", "validate", "flickr8k"),
        ("recipe", "validate", "scenes_clip", "--json"),
    ],
    ids=" ".join,
)
def test_help_and_validation_import_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = f"""
import sys
from cs_aligner_cli.cli.main import app
try:
    app({list(arguments)!r})
except SystemExit as exit:
    heavy = {{"torch", "faiss", "pandas", "numpy", "pyarrow", "matplotlib", "sklearn", "PIL", "open_clip"}}
    print("loaded:", sorted(heavy & set(sys.modules)), "code:", exit.code, file=sys.stderr)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr.splitlines()[-1] == "loaded: [] code: 0"
    assert run.stdout


def test_help_names_every_command_whole_and_the_exit_codes(csalign: Callable[..., Any]) -> None:
    text = csalign("--help").stdout
    assert text.count("...") == 1, "a command's help is cut"  # the one of COMMAND [ARGS]...
    for command in ("run", *STAGES, "doctor", "recipe"):
        assert f"  {command} " in text
    for word in ("0 done", "2 something", "3 done", "130", "1 a bug", "csalign recipe list"):
        assert word in " ".join(text.split())
    assert csalign("recipe", "--help").stdout.count("...") == 1
    assert csalign("-h").stdout == text
    assert csalign("--version").stdout == f"{__version__}\n"


def test_every_stage_takes_the_same_options(csalign: Callable[..., Any]) -> None:
    for command in ("run", *STAGES):
        text = csalign(command, "--help").stdout
        for option in ("--set", "--json", "--force", "--quiet", "--debug", "RECIPE", "$CSALIGN_RECIPE"):
            assert option in text, (command, option)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian",), "No such command 'trian'. Did you mean 'train'?"),
        (("train", "--sett", "x=1"), "No such option: --sett"),
        (("recipe", "show"), "Missing argument 'RECIPE'"),
        (("train", "a", "b"), "unexpected extra argument"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: tuple[str, ...], message: str, csalign: Callable[..., Any]) -> None:
    called = csalign(*arguments)
    assert (called.exit_code, called.stdout) == (2, "")
    assert message in called.stderr


# Exit codes and messages


def _raising(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("r.yaml:2: wrong", "Do this."), 2, "csalign: r.yaml:2: wrong\nDo this.\n"),
        (TooManyBadItems("5 of 10 are bad", {}), 3, "csalign: 5 of 10 are bad\n"),
        (
            KeyboardInterrupt(),
            130,
            "csalign: interrupted; the same command takes the work up again where it stopped\n",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "csalign: No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "csalign: /x: Permission denied\n"),
        (
            ZeroDivisionError("by [zero]"),
            1,
            "csalign: this is a bug in csalign: ZeroDivisionError: by [zero]\n"
            "--debug shows the traceback; please report it together with the recipe\n",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "/y"), 1, None),
        (ValueError(), 1, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_errors_become_one_message_and_an_exit_code(
    error: BaseException, code: int, message: str | None, capsys: Capture
) -> None:
    assert guarded(_raising(error)) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err == message if message else "this is a bug in csalign" in captured.err


@pytest.mark.parametrize("error", [InputError("wrong"), ZeroDivisionError("oops")], ids=["input", "bug"])
def test_a_traceback_is_shown_only_on_request(error: Exception, capsys: Capture) -> None:
    assert guarded(_raising(error), debug=True) == (2 if isinstance(error, InputError) else 1)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_debug_reaches_every_command(csalign: Callable[..., Any]) -> None:
    for command in (("train",), ("run",), ("recipe", "validate"), ("recipe", "show")):
        plain, debug = (_code_and_stderr(csalign, *command, "absent.yaml", *more) for more in ((), ("--debug",)))
        assert (plain[0], debug[0]) == (2, 2)
        assert "Traceback" not in plain[1] and "Traceback" in debug[1]


def _code_and_stderr(csalign: Callable[..., Any], *arguments: str) -> tuple[int, str]:
    """Exit code and stderr, tracebacks allowed."""
    from typer.testing import CliRunner

    from cs_aligner_cli.cli.main import app

    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stderr


def test_a_finished_call_gives_0(capsys: Capture) -> None:
    assert guarded(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "text",
    [
        "[red]x.yaml",
        "[/]",
        "[bold]",
        "a[0]",
        "\\[x]",
        "end\\",
        "[link=http://x]y[/link]",
        ":bug: :warning:",
        "[" * 9,
    ],
)
def test_markup_and_emoji_codes_in_messages_are_plain_text(text: str, capsys: Capture) -> None:
    guarded(_raising(InputError(text)))
    console = Console()
    console.say(text)
    console.warn(text)
    assert capsys.readouterr().err == f"csalign: {text}\n{text}\nwarning: {text}\n"
    console.result({}, [table(text, [text], [[text]])])
    assert capsys.readouterr().out.count(text) == 3


def test_a_file_with_markup_in_its_name_is_named_as_it_is(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "[red]x.yaml").write_text("name: [")
    assert refused("recipe", "validate", "[red]x.yaml").startswith("[red]x.yaml:1: is not valid YAML")
    (tmp_path / "[red]x.yaml").write_text("name: x\nseed: '[/red]'")
    assert refused("recipe", "validate", "[red]x.yaml") == (
        '[red]x.yaml:2: seed: got "[/red]"; expected a whole number'
    )


def test_messages_are_not_wrapped(capsys: Capture) -> None:
    text = " ".join(["word"] * 100)
    guarded(_raising(InputError(text)))
    Console().say(text)
    assert capsys.readouterr().err == f"csalign: {text}\n{text}\n"


# stdout and stderr


def test_quiet_says_nothing_but_warnings(capsys: Capture) -> None:
    console = Console(quiet=True)
    console.say("talk")
    with console.progress("work", 3) as advance:
        advance()
        advance(2, note="n")
    assert capsys.readouterr() == ("", "")
    console.warn("beware")
    assert capsys.readouterr().err == "warning: beware\n"


@pytest.mark.parametrize("width", [80, 120])
def test_progress_cuts_no_number_in_a_narrow_window(width: int) -> None:
    console, shown = Console(), io.StringIO()
    console._err = RichConsole(file=shown, width=width, force_terminal=True, color_system=None)  # type: ignore[assignment]
    with console.progress("frozen store of split train: text", 15000) as advance:
        advance(12345, "247/s, encoder busy 86%, and more than there is room for")
    last = re.sub("\x1b\\[[^a-zA-Z]*[a-zA-Z]", "", shown.getvalue()).strip().splitlines()[-1]
    assert (
        "text" in last
        and "12345/15000" in last
        and "247/s, encoder busy" in last
        and "\N{HORIZONTAL ELLIPSIS}" not in last
    )
    assert len(last.rsplit("\r", 1)[-1].rstrip()) <= width


def test_progress_without_a_terminal_is_silent_when_quick(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    with Console().progress("work", 2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")
    clock = iter([0.0, 11.0, 12.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with Console().progress("[work]", 4, done=1) as advance:
        advance(2, note="[half]")
        advance()
    assert capsys.readouterr().err == "[work]: 3/4 (11 s) [half]\n[work]: 4/4 (12 s)\n"


def test_json_has_no_nan(capsys: Capture) -> None:
    print_json({"a": float("nan"), "b": [float("-inf"), 1.5, {"c": (float("inf"),)}], "d": None})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": None, "b": [None, 1.5, {"c": [None]}], "d": None
    }  # fmt: skip


def test_every_command_prints_one_json_object_and_nothing_else(
    features_recipe: Path, csalign: Callable[..., Any]
) -> None:
    for command in ("prepare", "embed", "train", "embed", "eval-retrieval", "gap-report", "run"):
        for status in ("done", "fresh"):
            called = csalign(command, features_recipe, "--json", "--quiet", "--set", "train.epochs=1")
            assert (called.exit_code, called.stderr) == (0, "")
            data = json.loads(called.stdout, parse_constant=pytest.fail)
            assert data["command"] == command.replace("-", "_") and data["name"] == "tiny"
            if command != "run":
                assert data["status"] == status
            assert called.stdout.startswith("{\n") and called.stdout.endswith("\n}\n")
    talk = csalign("embed", features_recipe, "--json", "--set", "train.epochs=1")
    assert "nothing to do, its inputs have not changed" in talk.stderr
    assert talk.json["status"] == "fresh"


def test_validate_prints_the_whole_recipe_as_json(csalign: Callable[..., Any]) -> None:
    called = csalign("recipe", "validate", "scenes_clip", "--json", "--set", "train.lr=1e-4")
    assert called.json["train"]["lr"] == 1e-4
    assert called.json["train"]["image"]["tune"] == "full"
    assert called.json["gap_report"]["split"] is None
    assert called.stderr == ""


# Whole processes


def _ends_with(signal_number: int, tmp_path: Path) -> subprocess.Popen[str]:
    """A running `csalign prepare` that draws for long; returns once it works."""
    folder = tmp_path / str(signal_number)
    folder.mkdir()
    (folder / "many.yaml").write_text("name: many\nkind: scenes\nimages: {train: 200000}\n")
    (folder / "r.yaml").write_text("name: x\ndata: {manifest: many.yaml}\n")
    process = subprocess.Popen(
        [*CSALIGN, "prepare", "r.yaml"], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not list(folder.glob("runs/x/data.partial/*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal_number)
    return process


def test_what_stands_in_the_place_of_a_recipe_is_a_sentence_or_a_file(refused: Callable[..., str]) -> None:
    long = "a dog runs " * 40  # longer than a file's name may be
    assert refused("search", long).startswith(f"{long}: no such recipe\nA sentence stands behind the recipe: ")
    mistyped = "my recipes/flicker8k"
    for given in (mistyped, f"{mistyped}.yaml"):
        assert refused("search", given).startswith(
            f"{given}: no such file, and no shipped recipe of that name; did you"
        )


def test_ctrl_c_and_sigterm_end_a_command_with_130(tmp_path: Path) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        out, err = (process := _ends_with(number, tmp_path)).communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert err == "csalign: interrupted; the same command takes the work up again where it stopped\n"
        assert not (tmp_path / str(int(number)) / "runs" / "x" / "data").exists()


@pytest.mark.parametrize("command", ["schema", "list"])
def test_a_reader_that_goes_away_is_no_bug(command: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    run = _writing_to(writing, command)
    os.close(writing)
    assert (run.returncode, run.stderr) == (141, "")


def _writing_to(stdout: Any, command: str) -> subprocess.CompletedProcess[str]:
    """Run a recipe command with a buffered stdout, as users have it."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    arguments = [*CSALIGN, "recipe", command]
    return subprocess.run(arguments, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
@pytest.mark.parametrize("command", ["schema", "list"])
def test_a_full_disk_is_no_bug(command: str) -> None:
    with Path("/dev/full").open("w") as full:
        run = _writing_to(full, command)
    assert (run.returncode, run.stderr) == (2, "csalign: No space left on device\n")
