"""A search from its start, or from where it stopped, to its last trial."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sbrrt_fast.errors import Interrupted, SbrrtError
from sbrrt_fast.experiments.search.plan import Plan
from sbrrt_fast.experiments.search.results import write_results
from sbrrt_fast.experiments.search.study import Claim, SharedStudy
from sbrrt_fast.experiments.search.trial import Outcome, train_trial
from sbrrt_fast.messages import shown

_GO_ON = "go on with the same command"


class Search:
    """Trains the trials of a plan that nobody else trains, one after the other.

    Args:
        num_trials: of the whole search, those of other processes and of earlier calls included.
        minutes: after which no more trial is begun; no limit if None.

    Raises:
        SbrrtError: the folder holds something else, or its study cannot be used.
    """

    def __init__(
        self,
        plan: Plan,
        num_trials: int,
        minutes: float | None = None,
    ):
        self.plan, self.num_trials = plan, num_trials
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self.shared = SharedStudy(plan)

    def run(self) -> None:
        """Trains until there is no more to begin, and writes the results after each trial.

        Raises:
            SbrrtError: what would end every trial; see ``train_trial``.
            Interrupted: a signal came; the state of the trial at hand was saved.
        """
        with self.shared.explained():
            self._write()
            while not self._is_late() and (claim := self.shared.claim(self.num_trials)):
                try:
                    self._train(claim)
                finally:
                    claim.lock.release()

    def _train(self, claim: Claim) -> None:
        _say(self._opening(claim))
        self._write(draws=False)
        ended = any(t.state.is_finished() for t in self.shared.trials)
        name = f"trial {claim.number} of {self.num_trials}"
        try:
            outcome = train_trial(self.plan, claim, f"{name}, {self._best()}", not ended)
        except Interrupted as error:
            saved = str(error).partition("; ")[0]
            message = f"trial {claim.number}: {saved}; {_GO_ON}"
            raise Interrupted(message, error.status) from None
        except SbrrtError as error:
            raise SbrrtError(f"trial {claim.number}: {error}; then {_GO_ON}") from error
        self._tell(claim, outcome)
        self._write()
        _say(f"{name}: {_told(outcome)}; {self._best()}")

    def _tell(self, claim: Claim, outcome: Outcome) -> None:
        scores = {str(seed): score for seed, score in (outcome.scores or {}).items()}
        for key, value in (("scores", scores), ("seconds", outcome.seconds or None)):
            claim.trial.set_user_attr(key, value)
        claim.trial.set_user_attr("reason", outcome.reason)
        self.shared.tell(claim, outcome.value, outcome.state)

    def _write(self, draws: bool = True) -> None:
        with self.shared.alone():
            write_results(self.shared, draws)

    def _is_late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline

    def _opening(self, claim: Claim) -> str:
        what = "goes on" if claim.is_resumed else "starts"
        return f"trial {claim.number} of {self.num_trials} {what}: {settings_text(claim.settings)}"

    def _best(self) -> str:
        return best_text(self.shared.best)


def settings_text(settings: Mapping[str, Any]) -> str:
    """``smart.radius 0.02, round.batch_size 8``."""
    parts = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {shown(value, 40)}"
        for key, value in settings.items()
    )
    return ", ".join(parts)


def best_text(best: FrozenTrial | None) -> str:
    """``best 0.7312 (trial 4)``."""
    return "no score yet" if best is None else f"best {best.value:.4f} (trial {best.number + 1})"


def _told(outcome: Outcome) -> str:
    if outcome.state == TrialState.COMPLETE:
        return f"{outcome.value:.4f}"
    word = "pruned" if outcome.state == TrialState.PRUNED else "failed:"
    return f"{word} {shown(outcome.reason, 200)}"


def _say(line: str) -> None:
    """Prints a line that whoever follows a file of it sees at once."""
    print(line, flush=True)
