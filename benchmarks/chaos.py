"""The kill campaign: SIGKILLs at random moments, full disks, flipped bits; every run must end as if nothing happened.

python benchmarks/chaos.py [--kills 100] [--disk-full 20] [--bit-flips 20] [--sweep-kills 20] [--seed 0]  (make chaos)

A trial is a process forked from this one, which has imported torch and done nothing with it, so that a start costs
milliseconds; it runs the command line from there on, in a process group of its own. Each trial writes to the same
path as the run that it is compared with: all files must be equal bit by bit, apart from times and speeds.
Full disks are tmpfs mounts of a random size, in a mount namespace of their own where this is not root's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process cannot use its parent's threads

import yaml
from chaos_sweep import SHORT, SweepCampaign
from killing import Found, sleep_while_alive, unlike, warm_up

from cs_aligner_cli.cli.main import app
from cs_aligner_cli.common.console import Console, table
from cs_aligner_cli.files.checksums import digest

STAGES = ("prepare", "embed", "train", "embed")
# Kills of one run, after which it is left to end.
MOST_KILLS = 8
_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
    "text_cfg": {"context_length": 24, "width": 16, "heads": 2, "layers": 1},
}
_ENCODERS = {"image": {"kind": "open_clip", "random_init": True, "config": _CLIP}}
_DROPOUT = {"adapter": {"kind": "residual_mlp", "hidden_dim": 32, "dropout": 0.1}}
_EVERY_STEP = {"checkpoint_steps": 2, "log_steps": 1}
RECIPES: dict[str, dict[str, Any]] = {
    "scenes": {
        "data": {"manifest": "few.yaml"},
        "encoders": _ENCODERS,
        "embed": {"shard_rows": 16, "batch_size": 8},
        "train": {
            "epochs": 8,
            "batch_size": 16,
            "val_split": "val",
            "image": _DROPOUT,
            "text": _DROPOUT,
            **_EVERY_STEP,
        },
    },
    "latent": {
        "data": {"manifest": "pairs.yaml"},
        "encoders": {"image": {"kind": "features"}, "text": {"kind": "features"}},
        "embed": {"shard_rows": 100},
        "train": {
            "epochs": 6,
            "batch_size": 64,
            "micro_batch_size": 32,
            "image": _DROPOUT,
            "text": _DROPOUT,
            "start": "cca",
            "objective": {"divergence": {"bandwidth": {"every": 4}, "weight": {"kind": "relative", "every": 4}}},
            **_EVERY_STEP,
        },
    },
    "live": {
        "data": {"manifest": "few.yaml"},
        "encoders": _ENCODERS,
        "embed": {"shard_rows": 16},
        "train": {
            "image": {"tune": "full"},
            "text": {"tune": "full"},
            "epochs": 4,
            "batch_size": 12,
            "val_split": "val",
            **_EVERY_STEP,
        },
    },
}
MANIFESTS: dict[str, dict[str, Any]] = {
    "few.yaml": {"kind": "scenes", "images": {"train": 48, "val": 12, "test": 12}, "size": 32},
    "pairs.yaml": {"kind": "latent", "images": {"train": 400, "val": 60, "test": 60}, "dim": 24, "latent_dim": 6},
}


@dataclass
class Ended:
    """How a trial ended: exit code (negative: the signal), seconds, what it said on stderr, and the stage it was in."""

    code: int
    seconds: float
    said: str
    stage: str


class Campaign:
    """The recipes, their reference runs, and the trials against them, in one folder."""

    def __init__(self, folder: Path, seed: int, names: list[str]) -> None:
        self.folder, self.random, self.found = folder, random.Random(seed), Found()
        self.run = folder / "run"
        self.snapshots: list[tuple[str, Path]] = []  # killed runs as they lay there
        self.seconds: dict[str, float] = {}
        for name, manifest in MANIFESTS.items():
            (folder / name).write_text(yaml.safe_dump({"name": Path(name).stem, **manifest}))
        for name in names:
            recipe = {"name": name, "run_dir": "run", "eval_retrieval": {"split": "test"}, **RECIPES[name]}
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
            ended = self.trial(name)
            if ended.code:
                raise SystemExit(f"the uninterrupted run {name} ended with {ended.code}: {ended.said}")
            self.seconds[name] = ended.seconds
            self.run.rename(self.reference(name))

    def reference(self, name: str) -> Path:
        """The folder of the uninterrupted run of a recipe."""
        return self.folder / f"reference-{name}"

    def trial(self, name: str, kill_after: float | None = None, stages: tuple[str, ...] = STAGES) -> Ended:
        """Run the stages in a forked process, killed after some seconds if it is not done by then."""
        said, place = self.folder / "said.txt", self.folder / "stage.txt"
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(_run_stages(self.folder / f"{name}.yaml", stages, said, place))
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(child, child)
        if kill_after is not None:
            sleep_while_alive(child, kill_after)
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, time.monotonic() - started, said.read_text(errors="replace"), place.read_text())

    def kill(self, wanted: int, advance: Callable[..., None]) -> None:
        """Kill runs at random moments until ``wanted`` kills hit; each run is taken up until it ends."""
        names = list(self.seconds)
        runs = 0
        while self.found.counts["kills"] < wanted:
            name = names[runs % len(names)]
            runs += 1
            kills = 0
            while True:
                limit = self.random.uniform(0, 0.8 * self.seconds[name]) if kills < MOST_KILLS else None
                ended = self.trial(name, limit)
                if ended.code != -signal.SIGKILL:
                    break
                kills += 1
                self.found.counts.update(["kills", f"kills in {ended.stage or 'the start'}"])
                if self.run.exists() and self.random.random() < 0.2 and len(self.snapshots) < 30:
                    snapshot = self.folder / f"snapshot-{len(self.snapshots)}"
                    shutil.copytree(self.run, snapshot)
                    self.snapshots.append((name, snapshot))
            self.found.counts["killed runs"] += 1
            advance(kills)
            self._check(name, ended, f"a run of {name} killed {kills} times")

    def fill_disks(self, wanted: int, advance: Callable[..., None]) -> None:
        """Run on a disk that is too small, then on one that is large enough."""
        for number in range(wanted):
            advance()
            name = list(self.seconds)[number % len(self.seconds)]
            need = sum(path.stat().st_size for path in self.reference(name).rglob("*") if path.is_file())
            # tmpfs counts whole pages and inodes; above 1.3 times the bytes everything fits.
            size = int(self.random.uniform(0.02, 1.2) * need)
            with _small_disk(self.run, size) as enlarge:
                ended = self.trial(name)
                reported = "cannot be written" in ended.said and _bugs(ended) == ""
                what = f"{name} on a disk of {size} bytes"
                if ended.code == 0:
                    self.found.counts["disks that sufficed"] += 1
                elif ended.code == 2 and reported:
                    self.found.counts["full disks reported with exit 2"] += 1
                    for damaged in _damaged_outputs(self.run):
                        self.found.failures.append(f"{what}: {damaged} is damaged")
                else:
                    self.found.failures.append(f"{what}: exit {ended.code}: {ended.said[-400:]}")
                enlarge()
                self._check(name, self.trial(name), what, clear=False)

    def flip_bits(self, wanted: int, advance: Callable[..., None]) -> None:
        """Flip one bit of a run, finished up to some stage or killed; it must be told, or change nothing."""
        for number in range(wanted):
            advance()
            if number % 2 and self.snapshots:
                name, source = self.random.choice(self.snapshots)
                shutil.copytree(source, self.run)
            else:
                name = list(self.seconds)[number % len(self.seconds)]
                shutil.copytree(self.reference(name), self.run)
                for part in self.random.choice(_LATER_PARTS):
                    shutil.rmtree(self.run / part, ignore_errors=True)
            file = self.random.choice(sorted(p for p in self.run.rglob("*") if p.is_file() and p.stat().st_size))
            bit = self.random.randrange(8 * file.stat().st_size)
            where = str(file.relative_to(self.run))
            what = f"{name}, bit {bit} of {where}"
            _flip(file, bit)
            ended = self.trial(name)
            if ended.code == 2 and file.name in ended.said:
                self.found.counts["flips reported with exit 2"] += 1
                self._mend(name, ended.said, file)
                ended = self.trial(name)
            elif "warning" in ended.said and file.name.removesuffix(".json") in ended.said:
                self.found.counts["flips reported, the work done again"] += 1
            else:
                self.found.counts["flips without effect"] += 1
                # Nothing that was left to do reads it; who reads it will be told.
                unread = [odd for odd in unlike(self.run, self.reference(name)) if odd.startswith(f"{where} ")]
                self._check(name, ended, what, but=unread)
                continue
            self._check(name, ended, what)

    def _mend(self, name: str, said: str, file: Path) -> None:
        """Do what the message says."""
        command = re.search(r"csalign (prepare|embed|train) .*--force", said)
        folder = re.search(r"Remove (/\S+) to begin", said)
        if command:
            self.trial(name, stages=(f"{command[1]} --force",))
        elif folder:
            shutil.rmtree(folder[1])
        elif "Remove it" in said:
            file.unlink()

    def _check(self, name: str, ended: Ended, what: str, clear: bool = True, but: Sequence[str] = ()) -> None:
        """A run must have ended well and be equal to the uninterrupted one, ``but`` for differences that may be."""
        if ended.code:
            self.found.failures.append(f"{what}: exit {ended.code}: {ended.said[-600:]}")
        else:
            odds = [odd for odd in unlike(self.run, self.reference(name)) if odd not in but]
            self.found.failures += [f"{what}: {odd}" for odd in odds]
        if clear:
            shutil.rmtree(self.run)


# What is removed before a bit is flipped in the rest, so that something is left to be done.
_LATER_PARTS = (("embeddings/aligned",), ("embeddings/aligned", "train"), ("embeddings", "train"))


def _run_stages(recipe: Path, stages: tuple[str, ...], said: Path, place: Path) -> int:
    """What a forked trial does; returns the exit code of the first command that does not end with 0."""
    os.setpgid(0, 0)
    errors = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    place.write_text("")
    for stage in stages:
        place.write_text(stage)
        try:
            app([*stage.split(), str(recipe), "-q"])
        except SystemExit as ended:
            if ended.code:
                return int(ended.code)
    return 0


def _damaged_outputs(run: Path) -> Iterator[str]:
    """Files of finished outputs that are not as their record says."""
    for record in run.rglob("stage.json"):
        if ".partial" not in str(record):
            for name, (_, written) in json.loads(record.read_text())["files"].items():
                if digest(record.with_name(name) if "/" not in name else record.parent / name) != written:
                    yield f"{record.parent / name}"


def _bugs(ended: Ended) -> str:
    return ended.said if "this is a bug" in ended.said or "Traceback" in ended.said else ""


def _flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    status = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a disk does it


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[Any]:
    """A tmpfs of ``size`` bytes at ``place``; yields what makes it large."""

    def mount(*options: str) -> None:
        subprocess.run(["mount", *options, str(place)], check=True)

    place.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        yield lambda: mount("-o", "remount,size=256m")
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def can_mount() -> bool:
    """Whether a process in a mount namespace of its own may mount a tmpfs here."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def campaign(options: argparse.Namespace, console: Console) -> Found:
    """The whole campaign in a temporary folder."""
    warm_up()
    with tempfile.TemporaryDirectory(prefix="chaos-") as place:
        folder = Path(place).resolve()
        chaos = Campaign(folder, options.seed, options.recipes)
        parts = [
            (chaos.kill, options.kills),
            (chaos.fill_disks, options.disk_full),
            (chaos.flip_bits, options.bit_flips),
        ]
        if options.sweep_kills:
            sweeps = SweepCampaign(folder, options.seed, chaos.found, **SHORT if options.short_sweep else {})
            parts.append((sweeps.kill_sweeps, options.sweep_kills))
        for part, count in parts:
            started = time.monotonic()
            with console.progress(part.__name__, count) as advance:
                part(count, advance)
            chaos.found.counts[f"seconds of {part.__name__}"] = round(time.monotonic() - started)
    return chaos.found


def main() -> None:
    """Run the campaign and print what it found; exit 1 if a run did not end as it must."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--disk-full", type=int, default=20)
    parser.add_argument("--bit-flips", type=int, default=20)
    parser.add_argument("--sweep-kills", type=int, default=20)
    parser.add_argument("--short-sweep", action="store_true", help="A sweep of two runs without a search.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--json", action="store_true", help="Print one JSON object.")
    parser.add_argument("--in-namespace", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.disk_full and not arguments.in_namespace:
        if not can_mount():
            raise SystemExit(
                "no tmpfs can be mounted here (unshare --user --mount): --disk-full 0 leaves that part out"
            )
        again = [sys.executable, __file__, *sys.argv[1:], "--in-namespace"]
        os.execvp("unshare", ["unshare", "--user", "--map-root-user", "--mount", *again])
    console = Console(arguments.json)
    found = campaign(arguments, console)
    result = {"counts": dict(found.counts), "failures": found.failures}
    tables = [table("the campaign", ["what", "count"], sorted(found.counts.items()))]
    if found.failures:
        tables.append(table("runs that did not end as they must", ["what"], [[failure] for failure in found.failures]))
    console.result(result, tables)
    sys.exit(bool(found.failures))


if __name__ == "__main__":
    main()
