"""All that csalign says: data on stdout, talk and progress on stderr, failures as exit codes."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cs_aligner_cli.errors import CsalignError

INTERRUPTED = 130
# Without a terminal a progress bar is noise in a log file; a line every so often is news.
_PLAIN_INTERVAL = 10.0


class Console:
    """The voice of one command; stages get it to report progress and never print themselves."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._out = RichConsole(soft_wrap=not sys.stdout.isatty())
        self._err = RichConsole(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)

    def say(self, message: str) -> None:
        """Talk on stderr; --quiet silences it."""
        if not self.quiet:
            self._err.print(escape(message))

    def warn(self, message: str) -> None:
        """A warning on stderr, never silenced."""
        self._err.print(f"[yellow]warning:[/] {escape(message)}")

    def result(self, data: dict[str, Any], tables: Sequence[Table] = ()) -> None:
        """The command's result on stdout: one JSON object with --json, else tables for people."""
        if self.as_json:
            sys.stdout.write(json.dumps(data, indent=2) + "\n")
            return
        for table in tables:
            self._out.print(table)

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        """A progress display on stderr; yields ``advance(count=1, note="")``."""
        if self.quiet:
            yield lambda count=1, note="": None
        elif self._err.is_terminal:
            yield from self._bar(label, total, done)
        else:
            yield from self._lines(label, total, done)

    def _bar(self, label: str, total: int, done: int) -> Iterator[Callable[..., None]]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._err) as bar:
            task = bar.add_task(escape(label), total=total, completed=done, note="")

            def advance(count: int = 1, note: str = "") -> None:
                bar.update(task, advance=count, **({"note": escape(note)} if note else {}))

            yield advance

    def _lines(self, label: str, total: int, done: int) -> Iterator[Callable[..., None]]:
        started = last = time.monotonic()

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done, last
            done += count
            now = time.monotonic()
            if now - last >= _PLAIN_INTERVAL or (done >= total and now - started >= 2):
                last = now
                self._err.print(escape(f"{label}: {done}/{total} ({now - started:.0f} s) {note}".rstrip()))

        yield advance


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table whose first column holds names and whose other columns hold numbers or text."""
    result = Table(title=escape(title), title_justify="left", title_style="bold", header_style="bold")
    for i, column in enumerate(columns):
        result.add_column(escape(column), justify="left" if i == 0 else "right")
    for row in rows:
        result.add_row(*(escape(str(cell)) for cell in row))
    return result


def guarded(call: Callable[[], None], debug: bool = False) -> int:
    """Run a command and return its exit code, turning errors into one message on stderr."""
    console = RichConsole(stderr=True, soft_wrap=True, highlight=False)
    try:
        call()
        return 0
    except CsalignError as error:
        if debug:
            traceback.print_exc()
        console.print(f"[red]csalign:[/] {escape(str(error))}")
        return error.exit_code
    except KeyboardInterrupt:
        console.print("csalign: interrupted; the same command takes the work up again where it stopped")
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 (the last line of defence: whatever escapes is a bug of ours)
        if debug:
            traceback.print_exc()
        kind = type(error).__name__
        console.print(f"[red]csalign:[/] this is a bug in csalign: {kind}: {escape(str(error))}")
        console.print("--debug shows the traceback; please report it together with the recipe")
        return 1
