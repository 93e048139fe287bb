"""The part of the kill campaign (chaos.py) about sweeps: killed at random moments, no run done twice, none lost.

The sweep has two configurations times seeds, and a search. It is started in a forked process, killed, and started again
until it ends; then it begins anew, until enough kills hit. Every output that was finished at some kill must lie there
untouched at all later ones, and in the end all of them must be those of the uninterrupted sweep, bit by bit, apart from
times. That nothing shared is made twice is counted, too.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process cannot use its parent's threads

import yaml
from killing import Found, sleep_while_alive, unlike, without_times

from cs_aligner_cli.cli.main import app

MANIFEST = {
    "name": "pairs",
    "kind": "latent",
    "images": {"train": 96, "val": 24, "test": 24},
    "dim": 12,
    "latent_dim": 4,
}
WEIGHT = "train.objective.divergence.weight"
ADAPTER = {"adapter": {"kind": "residual_mlp", "hidden_dim": 16}}
# Where a sweep keeps what no result depends on: times, random names of processes, locks.
_NOT_RESULTS = ("claims", "logs", "search.journal", "comparison.html", "sweep.yaml")


SHORT = {"seeds": 1, "trials": 0}


class SweepCampaign:
    """The sweep, its uninterrupted reference, and the kills, in one folder."""

    def __init__(self, folder: Path, seed: int, found: Found, seeds: int = 2, trials: int = 3) -> None:
        self.folder, self.random, self.found = folder, random.Random(seed), found
        self.run, self.reference = folder / "sweep", folder / "reference-sweep"
        self.finished: dict[Path, int] = {}
        (folder / "few-pairs.yaml").write_text(yaml.safe_dump(MANIFEST))
        search = {"trials": trials, "startup_trials": 1, "keys": {WEIGHT: {"low": 0.1, "high": 10.0, "log": True}}}
        recipe = {
            "name": "sweep",
            "run_dir": "sweep",
            "data": {"manifest": "few-pairs.yaml"},
            "encoders": {"image": {"kind": "features"}, "text": {"kind": "features"}},
            "train": {"epochs": 3, "batch_size": 32, "checkpoint_steps": 2, "image": ADAPTER, "text": ADAPTER},
            "eval_retrieval": {"split": "test", "bootstrap": 0},
            "sweep": {
                "settings": {"InfoNCE": {WEIGHT: 0}, "CS": {}},
                "seeds": seeds,
                "control": "InfoNCE",
                **({"search": search} if trials else {}),
            },
        }
        (folder / "sweep.yaml").write_text(yaml.safe_dump(recipe))
        started = time.monotonic()
        if (code := self.trial()) != 0:
            raise SystemExit(f"the uninterrupted sweep ended with {code}: {self.said()}")
        self.seconds = time.monotonic() - started
        self.runs = 2 * seeds + trials * seeds
        self._look("the uninterrupted sweep")
        self._check("the uninterrupted sweep")
        self.run.rename(self.reference)

    def trial(self, kill_after: float | None = None) -> int:
        """Run the sweep in a forked process, killed after some seconds if it is not done by then; its exit code."""
        child = os.fork()
        if child == 0:
            os._exit(_sweep(self.folder))
        if kill_after is not None:
            sleep_while_alive(child, kill_after)
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    def said(self) -> str:
        """What the last trial said on stderr."""
        return (self.folder / "said.txt").read_text(errors="replace")[-600:]

    def kill_sweeps(self, wanted: int, advance: Callable[..., None]) -> None:
        """Kill sweeps at random moments until ``wanted`` kills hit, and let each come to its end."""
        counts = self.found.counts
        while counts["kills of sweeps"] < wanted:
            self.finished = {}
            kills = 0
            while True:
                left = counts["kills of sweeps"] < wanted
                code = self.trial(self.random.uniform(0, 0.8 * self.seconds) if left else None)
                self._look(f"kill {counts['kills of sweeps']}")
                if code != -signal.SIGKILL:
                    break
                kills += 1
                advance()
                counts["kills of sweeps"] += 1
            counts["killed sweeps"] += 1
            what = f"a sweep killed {kills} times"
            if code:
                self.found.failures.append(f"{what}: exit {code}: {self.said()}")
            self._check(what)
            self.found.failures += [f"{what}: {odd}" for odd in self._odds()]
            shutil.rmtree(self.run)

    def _look(self, when: str) -> None:
        """Whatever was finished before must lie there as it did: nothing is done twice, and nothing is lost."""
        kept = [*self.run.rglob("stage.json"), *self.run.glob("states/*.json")]
        now = {path: path.stat().st_mtime_ns for path in kept if ".partial" not in str(path)}
        for path, stamp in self.finished.items():
            if now.get(path) != stamp:
                self.found.failures.append(f"{when}: {path.relative_to(self.run)} was made again, or is lost")
        self.finished = now

    def _check(self, what: str) -> None:
        """Every run of the sweep is there once, and all of them have one prepared data set and one frozen store."""
        states = [json.loads(path.read_text())["status"] for path in self.run.glob("states/*.json")]
        if states != ["done"] * self.runs:
            self.found.failures.append(f"{what}: states {states}, expected {self.runs} times done")
        for shared in ("data", "frozen"):
            if (made := sum(path.is_dir() for path in self.run.glob(f"{shared}/*"))) != 1:
                self.found.failures.append(f"{what}: {made} folders in {shared}, expected 1")

    def _odds(self) -> list[str]:
        """How the results differ from the reference's."""
        odds = [odd for odd in unlike(self.run, self.reference) if not odd.startswith(_NOT_RESULTS)]
        states = {f"states/{path.name} differs" for path in self.run.glob("states/*.json") if self._same_state(path)}
        return [odd for odd in odds if odd not in states]

    def _same_state(self, path: Path) -> bool:
        one, other = (
            json.loads((folder / path.name).read_text()) for folder in (path.parent, self.reference / "states")
        )
        return bool(without_times(one) == without_times(other))


def _sweep(folder: Path) -> int:
    """What a forked process does."""
    os.dup2(os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        app(["sweep", str(folder / "sweep.yaml"), "-q"])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
