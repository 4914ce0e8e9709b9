"""The study of a search: Optuna's, in SQLite, which several processes work on at once.

A process that trains a trial holds a lock, which the system gives back however the process ends.
So a trial that is noted as running without anybody holding its lock was interrupted, and whoever
finds it goes on with it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.experiments.search.plan import LOCK, STUDY, Plan, check_folder, record
from sbrrt_fast.files import acquired, make_folder, remove_file, writing

NAME = "search"  # of the study in its file
STEPS_PER_RUN = 100  # steps of a dev curve, in percent of a run's rounds
_PATIENCE = 120.0  # seconds for which SQLite waits for another process
_LEAST_STEP = 10


@dataclass(frozen=True)
class Claim:
    """A trial that this process alone trains, as long as it holds ``lock``.

    Attributes:
        number: from 1. settings: its values by dotted key. is_resumed: whether it was begun before.
        reported: steps of its dev curve that the study knows already.
    """

    trial: Trial
    settings: dict[str, Any]
    lock: filelock.BaseFileLock
    is_resumed: bool
    reported: frozenset[int] = frozenset()

    @property
    def number(self) -> int:
        return self.trial.number + 1


@dataclass
class SharedStudy:
    """The study in a search's folder; it is made if it is not there."""

    plan: Plan
    study: optuna.Study = field(init=False)
    _lock: filelock.BaseFileLock = field(init=False)

    def __post_init__(self) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        check_folder(self.plan)
        make_folder(self.plan.folder)
        self._lock = filelock.FileLock(self.plan.folder / LOCK)
        with self.alone():
            check_folder(self.plan)  # another process may have been first
            record(self.plan)
            if not self.path.exists():
                self._make()
            self.study = optuna.load_study(
                study_name=NAME, storage=_storage(self.path), pruner=_pruner(self.plan)
            )

    @property
    def path(self) -> Path:
        return self.plan.folder / STUDY

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """A block that one process at a time is in; others wait."""
        with writing(self.plan.folder / LOCK), self._lock:
            yield

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Turns an error of the database into one line with its file."""
        with _explained(self.path):
            yield

    @property
    def trials(self) -> list[FrozenTrial]:
        """Those that were begun, in order."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.state != TrialState.WAITING]

    @property
    def best(self) -> FrozenTrial | None:
        """The finished trial with the best value, the first of equal ones."""
        finished = [t for t in self.trials if t.state == TrialState.COMPLETE]
        sign = 1 if self.plan.objective.is_lower_better else -1
        return min(finished, key=lambda t: (sign * t.value, t.number), default=None)

    def claim(self, num_trials: int) -> Claim | None:
        """An interrupted trial, or the next one; None where ``num_trials`` are begun.

        Its lock is the caller's to release.
        """
        with self.alone():
            begun = self.trials
            for frozen in begun:
                if frozen.state == TrialState.RUNNING and (lock := self._taken(frozen.number)):
                    return self._claim(Trial(self.study, frozen._trial_id), lock, frozen)
            if len(begun) >= num_trials:
                return None
            self.study.sampler = _sampler(self.plan, len(begun))
            trial = self.study.ask()
            lock = self._taken(trial.number)
            assert lock is not None, "a new trial is nobody's"
            return self._claim(trial, lock)

    def _claim(
        self, trial: Trial, lock: filelock.BaseFileLock, before: FrozenTrial | None = None
    ) -> Claim:
        """With all settings, those included that a kill left out."""
        self.study.sampler = _sampler(self.plan, trial.number)
        steps = frozenset(before.intermediate_values if before else ())
        settings = self.plan.space.suggest(trial)
        return Claim(trial, settings, lock, is_resumed=before is not None, reported=steps)

    def tell(self, claim: Claim, value: float | None, state: TrialState) -> None:
        """Ends a trial; with a value where it is complete."""
        values = value if state == TrialState.COMPLETE else None
        self.study.tell(claim.trial, values, state=state, skip_if_finished=True)

    def _taken(self, index: int) -> filelock.BaseFileLock | None:
        folder = self.plan.trial_folder(index + 1)
        make_folder(folder)
        lock = filelock.FileLock(folder / LOCK)
        return lock if acquired(lock) else None

    def _make(self) -> None:
        """Makes the study beside its place, with a grid's trials, and renames it."""
        unfinished = self.path.with_name(f"{STUDY}.new")
        for path in self.plan.folder.glob(f"{unfinished.name}*"):
            remove_file(path)
        storage = _storage(unfinished)
        direction = "minimize" if self.plan.objective.is_lower_better else "maximize"
        study = optuna.create_study(storage=storage, study_name=NAME, direction=direction)
        if self.plan.sampler == "grid":
            grid = self.plan.space.grid()
            for index in np.random.default_rng(self.plan.base.seed).permutation(len(grid)):
                study.enqueue_trial(grid[index])
        storage.remove_session()
        storage.engine.dispose()
        with writing(self.path):
            unfinished.replace(self.path)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise SbrrtError(
            f"{path}: cannot be used ({reason}); see that the disk has room and that the file is "
            "whole, then give the same command"
        ) from error


def _storage(path: Path) -> optuna.storages.RDBStorage:
    url = URL.create("sqlite", database=str(path.resolve())).render_as_string()
    options = {"connect_args": {"timeout": _PATIENCE}}
    try:
        with _explained(path):
            return optuna.storages.RDBStorage(url, engine_kwargs=options)
    except RuntimeError as error:  # made by another release
        raise SbrrtError(f"{path}: cannot be used ({error})") from error


def _sampler(plan: Plan, index: int) -> optuna.samplers.BaseSampler:
    """Of one trial: its draws are a function of the seed and its number, whoever makes them."""
    words = np.random.SeedSequence([plan.base.seed, index]).generate_state(1)
    seed = int(words[0])
    if plan.sampler == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    return optuna.samplers.RandomSampler(seed=seed)  # a grid's values are fixed


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    last = STEPS_PER_RUN * plan.seeds
    if plan.pruner == "median":
        return optuna.pruners.MedianPruner()
    if plan.pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=_LEAST_STEP)
    if plan.pruner == "hyperband":
        return optuna.pruners.HyperbandPruner(min_resource=_LEAST_STEP, max_resource=last)
    return optuna.pruners.NopPruner()


def states(trials: Sequence[FrozenTrial]) -> Mapping[TrialState, int]:
    """How many trials there are in each state."""
    return {state: sum(t.state == state for t in trials) for state in TrialState}
