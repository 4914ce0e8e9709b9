"""A captured graph that is replayed in the orders that its streams allow.

A CUDA graph keeps the order within a stream and what events say between streams; of all else it
may run anything first. ``orders`` goes to the extremes: a stream as far ahead of another as the
events allow, for every two. Of two ops that nothing orders, each comes first in one of them. The
bits must be the same in all; what the work itself makes is poisoned in between, so that no order
finds what another has left.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from itertools import permutations

import torch
from torch import Tensor

from tests.training.recorded_graph import Call, RecordedGraph, Wait, run


class OrderMatters(AssertionError):
    """Work on one stream does not wait for what it needs on another."""


class OrderedGraph(RecordedGraph):
    """Takes the place of ``training.step.cuda_graph.CudaGraph``.

    Every replay is done in all of ``orders``.
    """

    def capture(self, work: Callable[[], Tensor]) -> Tensor:
        self._result = super().capture(work)
        return self._result

    @property
    def num_calls(self) -> dict[object, int]:
        """Number of ops by stream, views aside, the capturing stream's first."""
        counts = dict.fromkeys([self.recorder.origin], 0)
        for item in self.recorder.work:
            if isinstance(item, Call) and not item.op.is_view:
                counts[item.stream] = counts.get(item.stream, 0) + 1
        return counts

    def replay(self) -> None:
        """Raises OrderMatters where an order gives other bits than that of the host."""
        self.num_replays += 1
        written = [whole for whole, _ in self.recorder.before.values()]
        before = [x.clone() for x in written]
        expected = self._outcome(self.recorder.work, written)
        for order in orders(self.recorder.work):
            for x, old in zip(written, before, strict=True):
                x.copy_(old)
            for ours, theirs in zip(self._outcome(order, written), expected, strict=True):
                if not torch.equal(ours, theirs):
                    raise OrderMatters("streams do not wait for what they need")

    def _outcome(self, work: list[Call | Wait], written: list[Tensor]) -> list[Tensor]:
        """Bits of what is there afterwards."""
        for x in self.recorder.made.values():
            poison(x)
        run([item for item in work if not is_allocation(item)])
        return [x.flatten().view(torch.uint8).clone() for x in (*written, self._result)]


def is_allocation(item: Call | Wait) -> bool:
    """Whether it is no work for the device."""
    return isinstance(item, Call) and item.op._opname.removeprefix("new_").startswith("empty")


def poison(x: Tensor) -> None:
    """NaN in numbers; 1 in whole ones, since a wild index would end the process."""
    x.fill_(float("nan") if x.is_floating_point() else 1)


def orders(work: list[Call | Wait]) -> Iterator[list[Call | Wait]]:
    """The extremes: for every two streams the one as early and the other as late as possible."""
    streams = list(dict.fromkeys(item.stream for item in work))
    for first, last in permutations(streams, 2):
        others = [stream for stream in streams if stream not in (first, last)]
        yield schedule(work, [first, *others, last])


def schedule(work: list[Call | Wait], preferred: list[object]) -> list[Call | Wait]:
    """The order in which the first stream of ``preferred`` that need not wait always goes on."""
    queues, done, order = defaultdict(deque), defaultdict(int), []
    for item in work:
        queues[item.stream].append(item)
    while len(order) < len(work):
        stream = next(s for s in preferred if queues[s] and may_run(queues[s][0], done))
        order.append(queues[stream].popleft())
        done[stream] += 1
    return order


def may_run(item: Call | Wait, done: dict[object, int]) -> bool:
    return isinstance(item, Call) or done[item.other] >= item.count
