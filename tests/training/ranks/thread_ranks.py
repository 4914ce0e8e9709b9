"""Ranks that are threads of one process: ``Ranks`` without torch.distributed.

One thread runs at a time, until it waits for the others: torch's forward mode and its generator
are the process's.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from sbrrt_fast.errors import SbrrtError

Result = TypeVar("Result")


class World:
    """What the threads share."""

    def __init__(self, size: int):
        self.size, self.barrier, self.turn = size, threading.Barrier(size), threading.Lock()
        self.slots: list[Any] = [None] * size

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Every rank's value, once all are there."""
        self.slots[rank] = value
        self._wait()
        found = list(self.slots)
        self._wait()
        return found

    def _wait(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait(300)
        finally:
            self.turn.acquire()


class ThreadRanks:
    """One thread's view; ``start_sum`` sums in the order of ranks, in its wait."""

    def __init__(self, world: World, rank: int):
        self.world, self.rank, self.size = world, rank, world.size
        self.num_sums = 0

    @classmethod
    def stub(cls, rank: int, size: int) -> ThreadRanks:
        """One of several without the others, whose sums are its own part."""
        alone = cls(World(1), 0)
        alone.rank, alone.size = rank, size
        alone.world.exchange = lambda rank, value: [value]
        return alone

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def start_sum(self, x: Tensor) -> Callable[[], None]:
        self.num_sums += 1
        assert x.is_contiguous()

        def wait() -> None:
            parts = self.world.exchange(self.rank, x.clone())
            x.copy_(sum(parts[1:], parts[0]))

        return wait

    def sum(self, x: Tensor) -> Tensor:
        self.start_sum(x)()
        return x

    def gather(self, value: Any) -> list[Any]:
        return [json.loads(text) for text in self.world.exchange(self.rank, json.dumps(value))]

    @contextmanager
    def together(self, what: str) -> Iterator[None]:
        error = None
        try:
            yield
        except SbrrtError as caught:
            error = str(caught)
        messages = [m for m in self.world.exchange(self.rank, error) if m is not None]
        if messages:
            raise SbrrtError(messages[0])

    def tick(self) -> None:
        pass


def on_ranks(size: int, work: Callable[[ThreadRanks], Result]) -> list[Result]:
    """``work`` on ranks that are threads; their results, or the first error."""
    world, results, errors = World(size), [None] * size, []

    def run(rank: int) -> None:
        with world.turn:
            try:
                results[rank] = work(ThreadRanks(world, rank))
            except BaseException as error:
                errors.append(error)
                world.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    return results
