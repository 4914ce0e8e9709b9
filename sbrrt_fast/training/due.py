"""After which rounds a run logs, evaluates and saves its state, and what it does at its end."""

from __future__ import annotations

from dataclasses import dataclass

from sbrrt_fast.config import LogConfig


@dataclass(frozen=True)
class DueRounds:
    """Each method takes a number of rounds done."""

    log: LogConfig
    rounds_per_epoch: int
    num_rounds: int
    skip_final_evaluation: bool = False

    def is_evaluated(self, done: int) -> bool:
        every = self.log.evaluate_every or self.rounds_per_epoch
        return done % every == 0 or done == self.num_rounds

    def is_saved(self, done: int) -> bool:
        every = self.log.state_every
        return every > 0 and done % every == 0 and done < self.num_rounds

    def is_logged(self, done: int) -> bool:
        """Also wherever a model or a state is saved, so that no mean runs across it."""
        return done % self.log.every == 0 or self.is_evaluated(done) or self.is_saved(done)

    def is_unscored(self, done: int) -> bool:
        """Whether the evaluation that is due is the final one, on all dev rows, and left out."""
        is_left_out = self.skip_final_evaluation and self.log.dev_rows is None
        return is_left_out and done == self.num_rounds

    @property
    def keeps_state(self) -> bool:
        """Whether the state stays when the run has ended."""
        return self.log.keep_state and self.log.state_every > 0
