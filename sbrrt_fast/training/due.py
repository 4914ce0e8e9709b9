"""After which rounds a run logs, evaluates and saves its state."""

from __future__ import annotations

from dataclasses import dataclass

from sbrrt_fast.config import LogConfig


@dataclass(frozen=True)
class DueRounds:
    """Each method takes a number of rounds done."""

    log: LogConfig
    rounds_per_epoch: int
    num_rounds: int

    def is_evaluated(self, done: int) -> bool:
        every = self.log.evaluate_every or self.rounds_per_epoch
        return done % every == 0 or done == self.num_rounds

    def is_saved(self, done: int) -> bool:
        every = self.log.state_every
        return every > 0 and done % every == 0 and done < self.num_rounds

    def is_logged(self, done: int) -> bool:
        """Also wherever a model or a state is saved, so that no mean runs across it."""
        return done % self.log.every == 0 or self.is_evaluated(done) or self.is_saved(done)
