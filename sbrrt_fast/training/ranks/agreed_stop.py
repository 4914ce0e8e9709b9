"""One rank's SIGTERM or Ctrl-C stops all of them, after the same round."""

from __future__ import annotations

from collections.abc import Callable

from sbrrt_fast.training.ranks.ranks import Ranks
from sbrrt_fast.training.stopping import Stopped, StopSignals


class AgreedStop:
    """What a run's signals say, on all ranks alike.

    Signals reach processes at different times. So every rank says between two rounds whether it
    has got one, and what all of them said is read one round later, when it has long arrived.

    Args:
        signals: of this process.
        ranks: of the run; one alone stops at once.
    """

    def __init__(self, signals: StopSignals, ranks: Ranks):
        self._signals, self._ranks = signals, ranks
        self._has_come: Callable[[], bool] | None = None

    def check(self) -> None:
        """Between two rounds: raises ``Stopped`` on every rank if a signal came to any."""
        if self._ranks.size == 1:
            self._signals.check()
            return
        self.end()
        self._has_come = self._ranks.start_flag(self._signals.number is not None)

    def end(self) -> None:
        """After the last round: raises as ``check`` does, and asks no more."""
        has_come, self._has_come = self._has_come, None
        if has_come is not None and has_come():
            numbers = self._ranks.gather(self._signals.number)
            raise Stopped(next(number for number in numbers if number is not None))
