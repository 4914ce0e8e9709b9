"""The time that a run may take, shared out among its stages and cases."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

NO_TIME = "no time was left for it"


class Deadline:
    """So many seconds from now; without an argument there is no end."""

    def __init__(self, seconds: float = math.inf, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds, not less than none."""
        return max(0.0, self.end - self.clock())

    def part(self, share: float) -> Deadline:
        """The end of a share, from 0 to 1, of what is left."""
        return Deadline(self.left * share, self.clock)
