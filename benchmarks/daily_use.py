"""A user's days: stages run, killed and run again, recipes and data edited, folders moved and copied, in any order.

python benchmarks/daily_use.py [--days 10] [--steps 20] [--seed 0]

A hypothesis state machine over the command line on tiny features. After every step

- each training that was ever finished is there, whole and with the bytes it had, unless --force replaced it;
- no command ended with a bug, and each that was refused said what to do;
- where all stages went through, the retrieval numbers are those of the same recipe in a new folder.

Each command runs in a process forked from this one, which has imported torch and done nothing with it. A kill is a
SIGKILL at the n-th change of the file system, so a day is a function of its seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process cannot use its parent's threads

import numpy as np
import pandas as pd
import yaml
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cs_aligner_cli.cli.main import app
from cs_aligner_cli.files.artifact import Artifact
from cs_aligner_cli.files.checksums import digest

STAGES = ("prepare", "embed", "train", "embed", "eval-retrieval")
COUNTS: Counter[str] = Counter()
_MANIFEST = {
    "name": "tiny",
    "kind": "embeddings",
    "root": "data",
    "images": {"table": "items.csv", "features": "image.npy"},
    "captions": {"table": "items.csv", "features": "text.npy"},
}
_ADAPTER = {"adapter": {"kind": "linear"}}
# At which change of the file system a command is killed; most commands make fewer than thirty.
_KILLS = st.none() | st.integers(1, 6) | st.integers(1, 30)
_REFUSALS = ("would be replaced", "Make it first", "Make it again", "See whether it is", "is damaged")


class Days(RuleBasedStateMachine):
    """One project, and what is known of it."""

    def __init__(self) -> None:
        super().__init__()
        self.scratch = Path(tempfile.mkdtemp(prefix="days-"))
        self.project, self.moves = self.scratch / "project-0", 0
        self.options = {"lr": 1e-3, "epochs": 1}
        self.version = 0
        self.finished: set[str] = set()
        self.references: dict[str, Any] = {}

    @initialize()
    def begin(self) -> None:
        """A project of data, manifest and recipe."""
        self.project.mkdir()
        self._write(self.project)

    @rule(lr=st.sampled_from([1e-3, 1e-2]), epochs=st.sampled_from([1, 2]))
    def edit_the_recipe(self, lr: float, epochs: int) -> None:
        """Other settings of training."""
        self.options = {"lr": lr, "epochs": epochs}
        _write_recipe(self.project, self.options)

    @rule(version=st.sampled_from([0, 1]))
    def edit_the_data(self, version: int) -> None:
        """Other features under the same names."""
        self.version = version
        _write_data(self.project / "data", version)

    @rule(copied=st.booleans())
    def move_the_project(self, copied: bool) -> None:
        """All of it in another folder; the old one is gone, or stays and is forgotten."""
        self.moves += 1
        place = self.scratch / f"project-{self.moves}"
        if copied:
            shutil.copytree(self.project, place)
        else:
            self.project.rename(place)
        self.project = place
        COUNTS["copies" if copied else "moves"] += 1

    @rule(
        stage=st.sampled_from(["prepare", "embed", "train", "train", "eval-retrieval"]),
        option=st.sampled_from(["", "", "--archive", "--force"]),
        kill=_KILLS,
    )
    def call_a_stage(self, stage: str, option: str, kill: int | None) -> None:
        """One command, perhaps killed."""
        option = option if option == "--force" or stage in ("embed", "train") else ""
        self._call(stage, option, kill)

    @rule(option=st.sampled_from(["--archive", "--archive", "--force"]), kill=_KILLS)
    def call_all_stages(self, option: str, kill: int | None) -> None:
        """All stages in order; where none is killed, the numbers must be those of the recipe."""
        for stage in STAGES:
            code = self._call(stage, option if stage == "train" else "", kill)
            if code:
                assert kill is not None, f"{stage} ended with {code}"
                return
        found = _numbers(self.project)
        assert found == self._reference(), "the numbers are not those of the recipe and the data"
        COUNTS["numbers compared"] += 1

    @precondition(lambda self: self.finished)
    @rule()
    def all_is_fresh_or_refused(self) -> None:
        """Without an option no command replaces a finished training."""
        before = {*_trainings(self.project).values()}
        self._call("train", "", None)
        assert before <= {*_trainings(self.project).values()}

    @invariant()
    def no_finished_training_is_lost(self) -> None:
        """Those that were finished are there, in place or beside it."""
        lost = self.finished - {*_trainings(self.project).values()}
        assert not lost, f"{len(lost)} finished trainings are lost"

    def teardown(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _call(self, stage: str, option: str, kill: int | None) -> int:
        said = self.scratch / "said.txt"
        replaced = _trainings(self.project).get("aligned") if stage == "train" and option == "--force" else None
        code = _forked([stage, str(self.project / "recipe.yaml"), "-q", *([option] if option else [])], said, kill)
        text = said.read_text(errors="replace")
        COUNTS[{0: "done", 2: "refused", -signal.SIGKILL: "killed"}.get(code, f"exit {code}")] += 1
        assert code in (0, 2, -signal.SIGKILL), text
        assert "Traceback" not in text and "this is a bug" not in text, text
        assert code != 2 or any(word in text for word in _REFUSALS), text
        there = _trainings(self.project)
        self.finished = {*self.finished - ({replaced} if replaced not in {*there.values()} else set()), *there.values()}
        return code

    def _write(self, folder: Path) -> None:
        _write_data(folder / "data", self.version)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(_MANIFEST))
        _write_recipe(folder, self.options)

    def _reference(self) -> Any:
        """The numbers of this recipe and these data in a folder of their own."""
        key = f"{self.options} {self.version}"
        if key not in self.references:
            folder = self.scratch / f"reference-{len(self.references)}"
            folder.mkdir()
            self._write(folder)
            for stage in STAGES:
                said = self.scratch / "said.txt"
                assert _forked([stage, str(folder / "recipe.yaml"), "-q"], said, None) == 0, said.read_text()
            self.references[key] = _numbers(folder)
        return self.references[key]


def _write_data(folder: Path, version: int) -> None:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(version)
    factors = rng.normal(size=(48, 6))
    for name in ("image", "text"):
        np.save(folder / f"{name}.npy", (factors @ rng.normal(size=(6, 8))).astype(np.float32))
    splits = ["train"] * 32 + ["test"] * 16
    names = [f"{i}" for i in range(48)]
    table = {"image": names, "caption": [f"picture {name}" for name in names], "split": splits}
    pd.DataFrame(table).to_csv(folder / "items.csv", index=False)


def _write_recipe(folder: Path, options: dict[str, Any]) -> None:
    train = {"batch_size": 8, "checkpoint_steps": 2, "image": _ADAPTER, "text": _ADAPTER, **options}
    recipe = {
        "name": "days",
        "run_dir": "run",
        "data": {"manifest": "tiny.yaml"},
        "encoders": {"image": {"kind": "features"}},
        "train": train,
        "eval_retrieval": {"ks": [1], "mixed": None, "bootstrap": 0},
        "gap_report": {"baselines": {"frozen": []}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def _trainings(project: Path) -> dict[str, str]:
    """The finished trainings of a project, in place and beside it, by folder: the checksum of each one's weights."""
    found = {}
    folder = project / "run" / "train"
    in_place = Artifact("training", folder / "aligned", "csalign train", {})
    in_place.record()  # a build that was cut when it was put in place is put there by whoever looks
    for path in (in_place.path, *folder.glob("aligned.[0-9]*")):
        if Artifact("training", path, "csalign train", {}).record() is not None:
            found[path.name] = digest(path / "best.safetensors")
    return found


def _numbers(project: Path) -> Any:
    return json.loads((project / "run" / "eval_retrieval" / "results.json").read_text())["eval_retrieval"]


def _forked(arguments: list[str], said: Path, kill: int | None) -> int:
    """The exit code of a command in a forked process, -9 where it was killed at its ``kill``-th change of files."""
    child = os.fork()
    if child == 0:
        errors = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if kill is not None:
            _kill_at(kill)
        try:
            app(arguments)
        except SystemExit as ended:
            os._exit(int(ended.code or 0))
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _kill_at(number: int) -> None:
    """Let this process die at its ``number``-th rename, removal or replacement of a file or folder."""
    changes = iter(range(1, number + 1))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(changes, number) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "replace"), (Path, "mkdir"), (shutil, "rmtree")):
        setattr(owner, name, counted(getattr(owner, name)))


def _warm_up() -> None:
    """Import whatever a stage needs, so that forked commands need not."""
    import cs_aligner_cli.stages.embed.job
    import cs_aligner_cli.stages.eval_retrieval.job
    import cs_aligner_cli.stages.prepare.job
    import cs_aligner_cli.training.loop  # noqa: F401


def main() -> None:
    """Live the days; exit 1 at the first step after which something is lost, stale or a bug."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="Steps of a day.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    _warm_up()
    days = settings(
        max_examples=arguments.days,
        stateful_step_count=arguments.steps,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    run_state_machine_as_test(seed(arguments.seed)(Days), settings=days)
    print(json.dumps(COUNTS))


if __name__ == "__main__":
    sys.exit(main())
