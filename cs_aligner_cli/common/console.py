"""All that csalign says: data on stdout, talk and progress on stderr, failures as exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from cs_aligner_cli.common.errors import AlreadyReportedError, CsalignError, InputError
from cs_aligner_cli.common.results import finite
from cs_aligner_cli.common.tables import Table
from cs_aligner_cli.common.torchrun_env import local_rank, rank

BUG = 1
INTERRUPTED = 130
# The reader of our output went away (`csalign ... | head`): 128 + SIGPIPE, as the shell's own tools have it.
NOBODY_READS = 141
# Nothing is wrong with csalign when the disk is full or a file is out of bounds.
_NOT_OUR_FAULT = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# Without a terminal a progress bar is noise in a log file; a line every so often is news.
_PLAIN_INTERVAL = 10.0
_PIPE_WIDTH = 140
# The width from which a progress display has a bar; what marks, times and gaps take with a bar of five, and without.
_ROOMY, _WITH_BAR, _WITHOUT_BAR = 100, 27, 12
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class _Rich(RichConsole):
    def on_broken_pipe(self) -> None:
        """Rich would exit with 1 here; let guarded give the exit code."""
        raise BrokenPipeError


class Console:
    """The voice of one command; stages get it to report progress and never print themselves.

    Of several processes started by torchrun the first one talks, and the others are silent.
    """

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self._first = rank() == 0
        self.quiet = quiet or not self._first
        # In a file or a pipe there is no window whose width a table could be cut to, but for one that COLUMNS states.
        has_width = sys.stdout.isatty() or os.environ.get("COLUMNS")
        self._out = _Rich(width=None if has_width else _PIPE_WIDTH, emoji=False)
        self._answered = False
        self._err = _Rich(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False, emoji=False)

    def say(self, message: str) -> None:
        """Talk on stderr; --quiet silences it."""
        if not self.quiet:
            self._err.print(Text(printable(message)))

    def warn(self, message: str) -> None:
        """A warning on stderr, never silenced."""
        if self._first:
            self._err.print(Text.assemble(("warning:", "yellow"), " ", printable(message)))

    def result(self, data: dict[str, Any], tables: Sequence[Table] = ()) -> None:
        """The command's result on stdout: one JSON object with --json, else tables for people."""
        if not self._first:
            return
        if self.as_json:
            self._answered = True
            print_json(data)
            return
        for table in tables:
            for title, part in table.within(self._out.width):
                # Printed apart: Rich would wrap a title to the width of its table.
                self._out.print(Text(title, style="bold"))
                self._out.print(part)

    def failure(self, message: str, exit_code: int) -> None:
        """Why the command ends, on stderr; with --json also on stdout, where no result stands there yet."""
        tell(message)
        self.answer_error(message, exit_code)

    def answer_error(self, message: str, exit_code: int) -> None:
        """With --json, an object with an error on stdout, where no result stands there yet."""
        if self.as_json and not self._answered:
            self._answered = True
            print_json({"error": {"exit_code": exit_code, "message": message}})

    @contextmanager
    def progress(self, label: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
        """A progress display on stderr; yields ``advance(count=1, note="")``."""
        label = printable(label)
        if self.quiet:
            yield lambda count=1, note="": None
        elif self._err.is_terminal:
            yield from self._bar(label, total, done)
        else:
            yield from self._lines(label, total, done)

    def _bar(self, label: str, total: int, done: int) -> Iterator[Callable[..., None]]:
        # In a narrow window the bar, the time and the end of the note go: Rich would cut numbers in the middle.
        roomy = self._err.width >= _ROOMY
        whole = Column(no_wrap=True)
        columns = (
            TextColumn("{task.description}", markup=False),
            *([BarColumn()] if roomy else []),
            MofNCompleteColumn(table_column=whole),
            *([TimeElapsedColumn(table_column=whole)] if roomy else []),
            TimeRemainingColumn(table_column=whole),
            TextColumn("{task.fields[note]}", markup=False),
        )
        taken = len(label) + 2 * len(str(total)) + (_WITH_BAR if roomy else _WITHOUT_BAR)
        room = max(self._err.width - taken, 0)
        with Progress(*columns, console=self._err) as bar:
            task = bar.add_task(label, total=total, completed=done, note="")

            def advance(count: int = 1, note: str = "") -> None:
                bar.update(task, advance=count)
                if note:
                    bar.update(task, note=note[:room])

            yield advance

    def _lines(self, label: str, total: int, done: int) -> Iterator[Callable[..., None]]:
        started = last = time.monotonic()

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done, last
            if count:  # threads that only tell what they are at write nothing
                done += count
            now = time.monotonic()
            if now - last >= _PLAIN_INTERVAL or (done >= total and now - started >= 2):
                last = now
                self._err.print(Text(f"{label}: {done}/{total} ({now - started:.0f} s) {note}".rstrip()))

        yield advance


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], names: int = 1) -> Table:
    """A table whose first columns, ``names`` of them, say what a row is, and whose others hold numbers or text."""
    cells = tuple(tuple(printable(str(cell)) for cell in row) for row in rows)
    return Table(printable(title), tuple(map(printable, columns)), cells, names)


def printable(text: str) -> str:
    """Text with control characters as escapes: names and captions must not steer the terminal.

    Newlines and tabs stay; escape sequences, carriage returns, marks that turn the direction of writing and halves of
    surrogate pairs do not.
    """
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def print_json(value: Any) -> None:
    """One JSON value on stdout. JSON has no NaN and no infinity: they become null."""
    sys.stdout.write(json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def guarded(call: Callable[[], None], debug: bool = False, console: Console | None = None) -> int:
    """Run a command and return its exit code, turning errors into one message on stderr.

    A ``console`` that speaks JSON gives an object with the error on stdout, too.
    """
    try:
        call()
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        _give_up_unwritten_output()
        return NOBODY_READS
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 (the last line of defence: what escapes is a bug)
        if debug and isinstance(error, Exception):
            traceback.print_exc()
        code, message = _explained(error)
        if _is_to_tell(error):
            try:
                (console or Console()).failure(message, code)
            except OSError:  # the disk that the message is about may be the one that stdout goes to
                _give_up_unwritten_output()
        return code


def _explained(error: BaseException) -> tuple[int, str]:
    """The exit code of an error, and the message for the user."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted; the same command takes the work up again where it stopped"
    if isinstance(error, CsalignError):
        return error.exit_code, "\n".join([str(error), *getattr(error, "__notes__", ())])
    if isinstance(error, OSError) and error.errno in _NOT_OUR_FAULT:
        _give_up_unwritten_output()
        return InputError.exit_code, f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
    hint = "--debug shows the traceback; please report it together with the recipe"
    return BUG, f"this is a bug in csalign: {type(error).__name__}: {error}\n{hint}"


def _is_to_tell(error: BaseException) -> bool:
    """Whether this process speaks, of several: one of every machine, or the one that ``together`` chose by a note."""
    if isinstance(error, CsalignError | KeyboardInterrupt):
        return not isinstance(error, AlreadyReportedError) and (local_rank() == 0 or hasattr(error, "__notes__"))
    return True


def _give_up_unwritten_output() -> None:
    """Python would try once more at exit to write what stdout does not take, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(message: str) -> None:
    """The last words of a command, on stderr."""
    console = _Rich(stderr=True, soft_wrap=True, highlight=False, emoji=False)
    console.print(Text.assemble(("csalign:", "red"), " ", printable(message)))
