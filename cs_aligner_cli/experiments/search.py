"""The search of a sweep: Optuna chooses configurations by what the earlier ones measured.

The journal of the study (``search.journal`` in the sweep's folder) is the whole state. A trial is written there in one
line before it runs, claimed by a lock that dies with its process, and told when its last seed is done; whoever finds a
trial that runs and is not claimed goes on with it. Its configuration is a function of the draw seed, its number, and
the trials that have ended before, so that one process killed at any moment makes the search of one that was not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from cs_aligner_cli.common.counted import counted
from cs_aligner_cli.common.errors import InputError
from cs_aligner_cli.common.extras import require_package
from cs_aligner_cli.experiments.columns import better_of
from cs_aligner_cli.experiments.plan import Configuration, experiment_id, named_by, rounded
from cs_aligner_cli.experiments.worker import TrialPruned
from cs_aligner_cli.files.artifact import fingerprint
from cs_aligner_cli.recipe.recipe import Recipe
from cs_aligner_cli.recipe.sweep import Direction, Search, Space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.storages import JournalStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

JOURNAL = "search.journal"
# How often a configuration that is known already is replaced by one at random before the space counts as exhausted.
_ATTEMPTS = 100
# Names of user attributes of a trial.
_RETRY_OF, _ERROR = "retry_of", "error"


class Best(BaseModel):
    """The trial with the best objective."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    configuration: str
    settings: dict[str, Any]
    value: float


class SearchOutcome(BaseModel):
    """How far a search is: its trials by what became of them, why some failed, and the best.

    ``exhausted``: the space holds no configuration that was not tried.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    wanted: int
    done: int
    pruned: int
    failed: list[str]
    best: Best | None
    exhausted: bool = False


@dataclass(frozen=True)
class Trial:
    """One trial that this process has claimed: its number in the study, its configuration, and the claim."""

    number: int
    configuration: Configuration
    claim: FileLock


class Searcher:
    """The search of one sweep, in its folder."""

    def __init__(self, base: Recipe) -> None:
        """Open the journal, or begin it; raise InputError if it is damaged or Optuna is absent."""
        assert base.sweep is not None and base.sweep.search is not None
        require_optuna()
        self.sweep, self.spec = base.sweep, base.sweep.search
        objective = self.sweep.objective
        lower = better_of(objective.metric, objective.direction) == "lower"
        self._direction: Direction = "minimize" if lower else "maximize"
        self.exhausted = False
        self._claims, self._journal = base.folder / "claims", base.folder / JOURNAL
        try:
            self._claims.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self._claims}: cannot be written: {error.strerror}", "Name another run_dir.") from None
        self._guard = FileLock(self._claims / "search.lock")
        self._distributions = {key: _distribution(space) for key, space in self.spec.keys.items()}
        judged_by = [{"metric": objective.metric, "direction": self._direction}, list(self.sweep.seeds)]
        space = self.spec.model_dump(exclude={"trials"})
        self._name = fingerprint([experiment_id(base.model_dump(mode="json"), seeded=False), space, judged_by])
        self._storage: JournalStorage
        self._study = self._opened()

    def outcome(self) -> SearchOutcome:
        """How far the search is."""
        trials = self._last_attempts()
        done = [trial for trial in trials if trial.state.name == "COMPLETE"]
        sign = 1 if self._direction == "maximize" else -1
        best = max(done, key=lambda trial: (sign * (trial.value or 0.0), -trial.number), default=None)
        return SearchOutcome(
            wanted=self.spec.trials,
            done=len(done),
            pruned=sum(trial.state.name == "PRUNED" for trial in trials),
            failed=[
                f"{self._configuration(trial).name}: {trial.user_attrs.get(_ERROR, 'a run of it failed')}"
                for trial in trials
                if trial.state.name == "FAIL"
            ],
            best=Best(
                configuration=self._configuration(best).name,
                settings=self._configuration(best).settings,
                value=best.value or 0.0,
            )
            if best
            else None,
            exhausted=self.exhausted,
        )

    @property
    def ended(self) -> int:
        """How many trials have ended, in whatever way."""
        return sum(trial.state.is_finished() for trial in self._last_attempts())

    @property
    def failures(self) -> int:
        """How many trials have failed in the last of their attempts."""
        return sum(trial.state.name == "FAIL" for trial in self._last_attempts())

    @property
    def over(self) -> bool:
        """Whether nothing is left to do for anybody."""
        trials = self._last_attempts()
        wanted = len(trials) if self.exhausted else self.spec.trials
        return sum(trial.state.is_finished() for trial in trials) >= wanted

    def take(self) -> Trial | None:
        """Claim a trial: one that an ended process left, else a new one; None where there is none for this process."""
        with self._writing():
            trials = self._trials()
            for trial in trials:
                if trial.state.name == "RUNNING" and (claim := self._claim(trial.number)):
                    return Trial(trial.number, self._configuration(trial), claim)
            number = sum(_RETRY_OF not in trial.user_attrs for trial in trials)
            chosen = self._chosen(number, trials) if number < self.spec.trials else None
            if chosen is None:
                self.exhausted = number < self.spec.trials
                return None
            self._add(chosen)
            added = self._trials()[-1]
            claim = self._claim(added.number)
            assert claim is not None, "nobody else can have claimed a trial that was not there"
            return Trial(added.number, self._configuration(added), claim)

    def retry_failed(self) -> None:
        """Let every trial that failed be tried again, as a trial of its own with the same configuration."""
        from optuna.trial import TrialState

        with self._writing():
            for trial in self._last_attempts():
                if trial.state == TrialState.FAIL:
                    self._add(dict(trial.params), {_RETRY_OF: trial.user_attrs.get(_RETRY_OF, trial.number)})

    def report(self, trial: Trial, epoch: int, recall: float) -> None:
        """Note the validation R@1 after an epoch; raise TrialPruned if the trial is to end there."""
        if self.spec.prune_after is None:
            return
        with self._writing():
            known = self._trials()[trial.number]
            if epoch not in known.intermediate_values:
                self._storage.set_trial_intermediate_value(known._trial_id, epoch, recall)
        if self._study.pruner.prune(self._study, self._trials()[trial.number]):
            raise TrialPruned(f"validation R@1 {100 * recall:.1f}% after {counted(epoch, 'epochs')}")

    def tell(self, trial: Trial, value: float | None, error: str = "") -> None:
        """End a trial: with the objective's value, as failed with an ``error``, or with neither as pruned."""
        from optuna.trial import TrialState

        state = TrialState.FAIL if error else TrialState.PRUNED if value is None else TrialState.COMPLETE
        with self._writing():
            known = self._trials()[trial.number]
            if error:
                self._storage.set_trial_user_attr(known._trial_id, _ERROR, error.splitlines()[0])
            self._study.tell(trial.number, value if state == TrialState.COMPLETE else None, state=state)

    def _opened(self) -> Study:
        optuna = require_optuna()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = optuna.storages.journal
        with self._writing():
            _refuse_damaged(self._journal)
            try:
                lock = journal.JournalFileOpenLock(str(self._journal))
                self._storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(self._journal), lock))
                study: Study = optuna.create_study(
                    storage=self._storage,
                    study_name=self._name,
                    direction=self._direction,
                    sampler=optuna.samplers.RandomSampler(self.spec.draw_seed),
                    pruner=optuna.pruners.MedianPruner(
                        n_startup_trials=self.spec.startup_trials, n_warmup_steps=self.spec.prune_after or 0
                    ),
                    load_if_exists=True,
                )
                return study
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise InputError(f"{self._journal}: is damaged: {type(error).__name__} {error}", _HINT) from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the journal; what a process that was killed left half written is removed first."""
        with self._guard:
            _mend(self._journal)
            yield

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _last_attempts(self) -> list[FrozenTrial]:
        """Every trial of the search in the last of its attempts."""
        found: dict[int, FrozenTrial] = {}
        for trial in self._trials():
            found[trial.user_attrs.get(_RETRY_OF, trial.number)] = trial
        return [found[number] for number in sorted(found)]

    def _chosen(self, number: int, trials: Sequence[FrozenTrial]) -> dict[str, Any] | None:
        """What the next trial sets, no trial before it having set the same; None if nothing new is found."""
        import optuna

        seed = self.spec.draw_seed + number
        drawing = optuna.samplers.RandomSampler(seed)
        modelled = self.spec.sampler == "tpe" and number >= self.spec.startup_trials
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1) if modelled else drawing
        memory = optuna.create_study(direction=self._direction, sampler=sampler)
        memory.add_trials([trial for trial in trials if trial.state.name != "FAIL"])
        known = {json.dumps(trial.params, sort_keys=True) for trial in trials}
        for _ in range(_ATTEMPTS):
            asked = memory.ask(self._distributions).params
            found = {key: _rounded(self.spec.keys[key], asked[key]) for key in self.spec.keys}
            if json.dumps(found, sort_keys=True) not in known:
                return found
            memory.sampler = drawing
        return None

    def _add(self, params: dict[str, Any], attributes: dict[str, Any] | None = None) -> None:
        from optuna.trial import TrialState, create_trial

        self._study.add_trial(
            create_trial(
                state=TrialState.RUNNING, params=params, distributions=self._distributions, user_attrs=attributes
            )
        )

    def _claim(self, number: int) -> FileLock | None:
        claim = FileLock(self._claims / f"trial-{self._name[:8]}-{number}.lock")
        try:
            claim.acquire(timeout=0)
        except Timeout:
            return None
        return claim

    def _configuration(self, trial: FrozenTrial) -> Configuration:
        chosen = {key: _value(space, trial.params[key]) for key, space in self.spec.keys.items()}
        return Configuration(named_by(chosen), chosen, trial=trial.number)


_HINT = "Remove it to begin the search anew: runs that are done are not done twice."


def require_optuna() -> Any:
    """The package; raise InputError where it is not installed."""
    require_package("optuna", "sweep.search")
    import optuna

    return optuna


def extremes(spec: Search) -> Iterator[tuple[str, Any]]:
    """Every key with each end of its range, or each of its choices: what must be valid for the search to be."""
    for key, space in spec.keys.items():
        if space.choices is not None:
            yield from ((key, choice) for choice in space.choices)
        elif space.low is None:
            raise InputError(f"sweep.search.keys.{key}: expected low and high, or choices")
        else:
            low, high = space.range
            ends = (math.ceil(low), math.floor(high)) if space.whole else (low, high)
            yield from ((key, end) for end in dict.fromkeys(ends))


def _distribution(space: Space) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choices is not None:
        return CategoricalDistribution([json.dumps(choice) for choice in space.choices])
    low, high = space.range
    if space.whole:
        return IntDistribution(math.ceil(low), math.floor(high), log=space.log)
    return FloatDistribution(low, high, log=space.log)


def _rounded(space: Space, value: Any) -> Any:
    return value if space.choices is not None or space.whole else rounded(space, value)


def _value(space: Space, param: Any) -> Any:
    """What a parameter of the study is in a recipe; choices are text there, since Optuna knows no lists."""
    return json.loads(param) if space.choices is not None else param


def _mend(journal: Path) -> None:
    """Undo what a killed process left: its lock, and a line that it had not written to the end."""
    journal.with_name(f"{journal.name}.lock").unlink(missing_ok=True)
    if not journal.is_file():
        return
    content = journal.read_bytes()
    if content and not content.endswith(b"\n"):
        with journal.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _refuse_damaged(journal: Path) -> None:
    if not journal.is_file():
        return
    for number, line in enumerate(journal.read_bytes().splitlines(), 1):
        try:
            json.loads(line)
        except ValueError:
            raise InputError(f"{journal}: is damaged: line {number} is no JSON", _HINT) from None
