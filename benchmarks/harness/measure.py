"""How everything here is timed: variants in turn, medians with quartiles.

A sample is the time of one call: of a loop of calls between two synchronisations, or on a GPU of
the replay of a graph that holds many, so that microsecond kernels are not hidden by their launch.
Variants take turns sample by sample, each round starting with another one, so that a change of
the machine's speed meets all of them. A variant too slow for that has fewer samples than others.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from benchmarks.harness.deadline import Deadline
from sbrrt_fast.training.step.cuda_graph import error_chain

Call = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)
GRAPH_CALLS = 32  # at least so many calls in a captured graph


@dataclass(frozen=True)
class Budget:
    """How long the variants of one case are sampled.

    Attributes:
        seconds: sampling stops after so many, but takes ``min_samples`` of each variant.
        sample_seconds: quicker calls are looped until a sample takes so long.
        warm_ups: calls before the first sample, begun within ``warm_up_seconds``.
        variant_seconds: that one variant is sampled. A call that takes longer is the only sample of
            its variant, without a warm-up.
    """

    seconds: float = 1.0
    min_samples: int = 7
    max_samples: int = 200
    sample_seconds: float = 5e-4
    warm_ups: int = 3
    warm_up_seconds: float = math.inf
    variant_seconds: float = math.inf


@dataclass(frozen=True)
class Samples:
    """Seconds of a call, sample by sample, and how a sample was taken."""

    seconds: tuple[float, ...]
    method: str

    @property
    def quartiles(self) -> tuple[float, float, float]:
        return quartiles(self.seconds)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile); of one value three times that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, statistics.median(values), high


class CaptureFailed(RuntimeError):
    """Work could not be captured; this process's GPU allocator keeps traces of the attempt."""


class Stopwatch:
    """Times calls that do the same work, each on inputs of its own.

    Args:
        calls: taken in turn. device: where their work runs.
        graph: whether a GPU may replay them from a graph.
        clock: seconds.

    Attributes:
        call: makes the next of the calls, until its work is done.
        seconds: that a sample takes, roughly. only: of a call that is not to be repeated.
        spare: seconds of the last warm-up, None where it was the first call of its kind.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        device: torch.device,
        budget: Budget,
        graph: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.calls, self.device, self.clock = list(calls), device, clock
        self._turns = itertools.cycle(self.calls)
        is_waited_for = device.type == "cuda" or len(self.calls) > 1
        self.call = self._next if is_waited_for else self.calls[0]
        once, is_warm = self._warm_up(budget)
        self.spare = once if is_warm else None
        self.only = once if once > budget.variant_seconds else None
        self.replay = self._captured() if graph and device.type == "cuda" else None
        each = budget.sample_seconds / (once * len(self.calls))
        self.loops = max(1, min(1000, math.ceil(each)))
        self.seconds = once * self.num_calls

    @property
    def method(self) -> str:
        if self.only:
            return "one call, the first"
        if self.replay:
            return f"replay of a graph of {self.num_calls} calls"
        return f"loop of {self.num_calls} calls"

    @property
    def num_calls(self) -> int:
        """Calls in a sample."""
        return self._per_replay if self.replay else self.loops * len(self.calls)

    def sample(self) -> float:
        """Seconds per call."""
        self._wait()
        start = self.clock()
        if self.replay:
            self.replay()
        else:
            for _ in range(self.loops):
                for call in self.calls:
                    call()
        self._wait()
        return (self.clock() - start) / self.num_calls

    def _next(self) -> None:
        next(self._turns)()
        self._wait()

    def _warm_up(self, budget: Budget) -> tuple[float, bool]:
        """Seconds of the last of some calls, at least one of every kind; and whether it was more
        than the first of its kind."""
        begin = self.clock()
        for index in range(max(1, budget.warm_ups, len(self.calls))):
            if index >= len(self.calls) and self.clock() - begin > budget.warm_up_seconds:
                break
            self._wait()
            start = self.clock()
            self.call()
            seconds = self.clock() - start
            num_calls = index + 1
        return max(seconds, 1e-7), num_calls > len(self.calls)

    def _captured(self) -> Call:
        """The replay of a graph of the calls.

        Raises:
            CaptureFailed: they cannot be captured; the allocator is degraded then.
        """
        repeats = math.ceil(GRAPH_CALLS / len(self.calls))
        self._per_replay = repeats * len(self.calls)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream(self.device)):
                for _ in range(repeats):
                    for call in self.calls:
                        call()
        except RuntimeError as error:
            raise CaptureFailed(f"capture failed ({error_chain(error)})") from error
        graph.replay()
        return graph.replay

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def interleave(
    watches: Mapping[Name, Stopwatch], budget: Budget, until: Deadline | None = None
) -> dict[Name, Samples]:
    """Samples of every variant, taken in turn; none that would end too late.

    Where there is no time for the least number of samples of all, the last variants have none. A
    variant that has none for that reason has its last warm-up instead, if that was warm.

    Args:
        watches: the most telling first.
    """
    until = until or Deadline()
    seconds = {name: [watch.only] if watch.only else [] for name, watch in watches.items()}
    chosen = affordable(watches, budget, until.left)
    start, turn = time.perf_counter(), 0
    with _no_collection():
        while _goes_on(turn, time.perf_counter() - start, budget):
            due = [n for n in chosen if _is_due(watches[n], len(seconds[n]), budget, until)]
            if not due:
                break
            first = turn % len(due)
            for name in due[first:] + due[:first]:
                seconds[name].append(watches[name].sample())
            turn += 1
    samples = {name: Samples(tuple(seconds[name]), w.method) for name, w in watches.items()}
    for name, watch in watches.items():
        if watch.spare and not seconds[name]:
            samples[name] = Samples((watch.spare,), "one call, a warm-up")
    return {name: taken for name, taken in samples.items() if taken.seconds}


def affordable(watches: Mapping[Name, Stopwatch], budget: Budget, seconds: float) -> list[Name]:
    """The first of the variants, as many as have their least number of samples in that time."""
    chosen, needed = [], 0.0
    for name, watch in watches.items():
        if not watch.only:
            needed += min(budget.min_samples * watch.seconds, budget.variant_seconds)
        if chosen and needed > seconds:
            break
        chosen.append(name)
    return chosen


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without Python's garbage collection, after one."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _is_due(watch: Stopwatch, taken: int, budget: Budget, until: Deadline) -> bool:
    """Whether another sample still fits."""
    if watch.only or watch.seconds > until.left:
        return False
    return taken == 0 or (taken + 1) * watch.seconds <= budget.variant_seconds


def _goes_on(turn: int, elapsed: float, budget: Budget) -> bool:
    if turn < budget.min_samples:
        return True
    return turn < budget.max_samples and elapsed < budget.seconds


def is_lost() -> bool:
    """Whether an earlier kernel has left this process's GPU unusable: all that follows fails."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False
