"""Ranks that count what they send, and how long they wait for it."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from benchmarks.tune.scaling_messages import SUM_BYTES
from sbrrt_fast.training.ranks.ranks import Ranks, Wait


class CountingRanks:
    """The same ranks, with counts; what they do not count is theirs.

    Attributes:
        num_messages, num_bytes: that this rank gave to be summed; an element of bfloat16 counts the
            4 bytes of the float32 in which it is summed.
        seconds: spent in starting sums and in waiting for them.
    """

    def __init__(self, ranks: Ranks):
        self.ranks = ranks
        self.clear()

    def clear(self) -> None:
        self.num_messages, self.num_bytes, self.seconds = 0, 0, 0.0

    def start_sum(self, x: Tensor) -> Wait:
        if self.ranks.size > 1:
            self.num_messages += 1
            self.num_bytes += x.numel() * max(x.itemsize, SUM_BYTES)
        wait = self._timed(self.ranks.start_sum, x)
        return lambda: self._timed(wait)

    def sum(self, x: Tensor) -> Tensor:
        self.start_sum(x)()
        return x

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ranks, name)

    def _timed(self, call, *args) -> Any:
        start = time.perf_counter()
        try:
            return call(*args)
        finally:
            self.seconds += time.perf_counter() - start
