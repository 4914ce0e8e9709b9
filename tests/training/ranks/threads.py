"""Ranks that are threads of one process, for tests of what several processes do together.

One thread runs at a time, until it waits for the others: torch's forward mode and its generator
are the process's.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

from torch import Tensor

from sbrrt_fast.errors import SbrrtError
from sbrrt_fast.training.stopping import Stopped

T = TypeVar("T")


class RankLeft(Exception):
    """Another rank returned or failed before it came to the call at hand."""


class _World:
    """Where the ranks meet."""

    def __init__(self, size: int):
        self.turn = threading.Lock()
        self._size, self._condition = size, threading.Condition()
        self._calls: list[dict[int, tuple[tuple, Any]]] = []  # what was given each, by rank
        self._num_calls = [0] * size
        self._left: set[int] = set()

    def exchange(self, rank: int, call: tuple, value: Any) -> list[Any]:
        """Every rank's value, by rank; they must all make the same call."""
        self.turn.release()
        try:
            return self._exchange(rank, call, value)
        finally:
            self.turn.acquire()

    def _exchange(self, rank: int, call: tuple, value: Any) -> list[Any]:
        with self._condition:
            number = self._num_calls[rank]
            self._num_calls[rank] += 1
            if number == len(self._calls):
                self._calls.append({})
            given = self._calls[number]
            given[rank] = call, value
            self._condition.notify_all()
            self._condition.wait_for(lambda: len(given) == self._size or self._lacks(number))
        if len(given) < self._size:
            raise RankLeft(f"rank {rank} waits for others in {call}")
        calls = [given[other][0] for other in range(self._size)]
        assert all(other == call for other in calls), f"the ranks' calls differ: {calls}"
        return [given[other][1] for other in range(self._size)]

    def leave(self, rank: int) -> None:
        """The rank makes no more calls."""
        with self._condition:
            self._left.add(rank)
            self._condition.notify_all()

    def _lacks(self, number: int) -> bool:
        return any(self._num_calls[rank] <= number for rank in self._left)


class ThreadRanks:
    """One of several threads, as a rank; see ``training.ranks.ranks.Ranks``.

    Attributes:
        num_ticks: calls of ``tick``. on_tick: is called at each.
    """

    def __init__(self, world: _World, rank: int, size: int):
        self._world, self.rank, self.size, self.num_ticks = world, rank, size, 0
        self.on_tick: Callable[[], object] | None = None

    @classmethod
    def stub(cls, rank: int, size: int) -> ThreadRanks:
        """One of several without the others, whose sums are its own part."""
        alone = cls(_World(1), rank, size)
        alone._world.exchange = lambda rank, call, value: [value]
        return alone

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def start_sum(self, x: Tensor) -> Callable[[], object]:
        assert x.is_contiguous()
        call = "sum", tuple(x.shape), x.dtype
        total, *others = self._world.exchange(self.rank, call, x.clone())
        total = total.clone()
        for other in others:
            total += other
        return lambda: x.copy_(total)

    def sum(self, x: Tensor) -> Tensor:
        self.start_sum(x)()
        return x

    def gather(self, value: Any) -> list[Any]:
        text = json.dumps(value)
        return [json.loads(t) for t in self._world.exchange(self.rank, ("gather",), text)]

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        own = None
        try:
            yield
        except (SbrrtError, Stopped) as error:
            own = error
        errors = self._world.exchange(self.rank, ("together", what), own)
        for error in (own, *errors):
            if error is not None:
                raise error

    def watched(self, advice: str = "start it again") -> AbstractContextManager[None]:
        return nullcontext()

    def patient(self) -> AbstractContextManager[None]:
        return nullcontext()

    def tick(self, done: int | None = None) -> None:
        self.num_ticks += 1
        if self.on_tick is not None:
            self.on_tick()


def outcomes(size: int, work: Callable[[ThreadRanks], T]) -> list[T | BaseException]:
    """What ``work`` returns or raises on each of ``size`` ranks, by rank."""
    world = _World(size)

    def one(rank: int) -> T | BaseException:
        with world.turn:
            try:
                return work(ThreadRanks(world, rank, size))
            except BaseException as error:
                return error
            finally:
                world.leave(rank)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def on_ranks(size: int, work: Callable[[ThreadRanks], T]) -> list[T]:
    """What ``work`` returns on each of ``size`` ranks; raises what one of them raises."""
    results = outcomes(size, work)
    errors = [result for result in results if isinstance(result, BaseException)]
    errors.sort(key=lambda error: isinstance(error, RankLeft))
    if errors:
        raise errors[0]
    return results
