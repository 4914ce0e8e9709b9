"""One trial of a search: its runs are trained, resumed or kept, and pruned by their dev curve."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import torch
from optuna.trial import Trial, TrialState

from sbrrt_fast.config import RunConfig
from sbrrt_fast.errors import BackendError, ConfigError, DivergedError
from sbrrt_fast.experiments.search.objective import Objective
from sbrrt_fast.experiments.search.plan import Plan
from sbrrt_fast.experiments.search.study import STEPS_PER_RUN, Claim
from sbrrt_fast.experiments.tables import complete_run, read_run
from sbrrt_fast.files import writing
from sbrrt_fast.training.callbacks import Callback, RunInfo

TRAIN_LOG = "train.log"


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        value: mean of ``scores``; None unless it is complete.
        scores: the objective of each run that came to its end, by its seed.
        reason: why it was pruned or failed.
        seconds: of training, of the runs that came to their end.
    """

    state: TrialState
    value: float | None = None
    scores: Mapping[int, float] | None = None
    reason: str | None = None
    seconds: float = 0.0


def train_trial(plan: Plan, claim: Claim, title: str, is_first: bool) -> Outcome:
    """Trains what is missing of a trial's runs.

    Args:
        title: of the progress bar.
        is_first: whether no trial has come to its end yet. Settings that cannot be trained with
            are then taken for a mistake in the recipe, and end the search.

    Raises:
        SbrrtError: what would end every other trial as well, such as data that cannot be read.
        Interrupted: a signal came; the run's state was saved.
    """
    runs = _Runs(plan, claim, title)
    try:
        return runs.complete()
    except optuna.TrialPruned as pruned:
        return runs.outcome(TrialState.PRUNED, str(pruned))
    except DivergedError as error:
        return runs.outcome(TrialState.FAIL, str(error))
    except (ConfigError, BackendError) as error:
        if is_first:
            raise
        return runs.outcome(TrialState.FAIL, str(error))
    except (MemoryError, torch.OutOfMemoryError) as error:
        text = str(error).partition("\n")[0]
        return runs.outcome(TrialState.FAIL, f"out of memory ({text or 'MemoryError'})")


class _Runs:
    """A trial's runs, one after the other, and what has come of them."""

    def __init__(self, plan: Plan, claim: Claim, title: str):
        self.plan, self.claim, self.title = plan, claim, title
        self.scores: dict[int, float] = {}
        self.seconds = 0.0

    def complete(self) -> Outcome:
        runs = self.plan.runs(self.claim.number, self.claim.settings)
        for index, config in enumerate(runs):
            follower = DevCurve(self, index, len(runs))
            of_seeds = f", seed {config.seed}" if len(runs) > 1 else ""
            complete_run(config, self._log, [follower], self.title + of_seeds)
            if (reason := self._take(config)) is not None:
                return self.outcome(TrialState.FAIL, reason)
        return self.outcome(TrialState.COMPLETE, None)

    def outcome(self, state: TrialState, reason: str | None) -> Outcome:
        is_complete = state == TrialState.COMPLETE
        value = statistics.fmean(self.scores.values()) if is_complete else None
        return Outcome(state, value, dict(self.scores), reason, self.seconds)

    def _take(self, config: RunConfig) -> str | None:
        """Takes a finished run's score; why it has none."""
        metrics = read_run(config.output).metrics
        score = self.plan.objective.of(metrics["dev"])
        self.seconds += metrics["train_seconds"]
        if score is None:
            return f"{self.plan.objective.name} of seed {config.seed} is undefined"
        self.scores[config.seed] = score
        return None

    def _log(self, line: str) -> None:
        path = self.plan.trial_folder(self.claim.number) / TRAIN_LOG
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


class DevCurve(Callback):
    """Reports a run's dev curve to the study, which may end the trial.

    A step is a percent of the run's rounds, beyond the runs before it; the value there is the mean
    of the earlier runs' results and the dev score of this one.
    """

    def __init__(self, runs: _Runs, index: int, num_runs: int):
        self._runs, self._index, self._num_runs = runs, index, num_runs
        self._num_rounds = 0
        self._reported = set(runs.claim.reported)

    def on_start(self, run: RunInfo) -> None:
        self._num_rounds = run.num_rounds

    def on_evaluate(self, round: int, scores: Mapping[str, Any]) -> None:
        score = self._objective.of(scores)
        step = STEPS_PER_RUN * self._index + STEPS_PER_RUN * round // self._num_rounds
        if score is None:
            return
        if step not in self._reported:  # a resumed run comes by a second time
            self._trial.report(statistics.fmean([*self._runs.scores.values(), score]), step)
            self._reported.add(step)
        is_last = step == STEPS_PER_RUN * self._num_runs
        if not is_last and self._trial.should_prune():
            raise optuna.TrialPruned(
                f"after round {round} of {self._num_rounds}, with a dev score "
                f"({self._objective.name}) of {score:.4f}"
            )

    @property
    def _trial(self) -> Trial:
        return self._runs.claim.trial

    @property
    def _objective(self) -> Objective:
        return self._runs.plan.objective
