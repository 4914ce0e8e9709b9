"""A captured graph on the CPU: records every op that reaches a device and runs it again.

It keeps a CUDA graph's promises and limits. A replay runs the same ops on the same memory, so what
the host decided while it was captured stays as it was; ops that make the host wait, or whose
results have a size that depends on the data, are refused, and so is work on a stream that does not
wait for captured work, or that is not joined. Unlike a CUDA graph it runs the work while it
captures it, so the memory it writes is put back afterwards. On the pretended GPU
(``benchmarks.pretended_gpu``) it records what that runs for the device.

A replay does things in the order in which they were recorded; ``ordered_graph`` has the others that
the streams allow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.pretended_gpu import STREAMS, name_of, recording, waits_for_device


class NotCapturable(RuntimeError):
    """An op that a CUDA graph cannot hold."""


class Call(NamedTuple):
    """An op that a stream was given."""

    stream: object
    op: object
    args: tuple
    kwargs: dict
    result: object


class Wait(NamedTuple):
    """``stream`` goes on when ``other`` has done the first ``count`` things it was given."""

    stream: object
    other: object
    count: int


class Recorder(TorchDispatchMode):
    """Records what streams are given.

    Attributes:
        work: in the order of the host. before: memory that it writes and that was there before, and
            what was in it. made: memory that it makes, by address.
    """

    def __init__(self):
        super().__init__()
        self.work: list[Call | Wait] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: dict[int, Tensor] = {}
        self.origin = STREAMS.current
        self._given = Counter({self.origin: 0})
        self._last_call = Counter()
        self._follows = {self.origin: Counter()}  # of each stream, what others have done by then

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if waits_for_device(func, args, kwargs) or name_of(func) == "lift_fresh":
            raise NotCapturable(f"{name_of(func)} makes the host wait for the device")
        if func._schema.is_mutable:
            self._remember([*args, *kwargs.values()])
        if STREAMS.current not in self._follows and not func.is_view:
            raise NotCapturable(f"{name_of(func)} is on a stream that waits for no captured work")
        result = func(*args, **kwargs)
        self._give(Call(STREAMS.current, func, args, kwargs, result))
        if not func.is_view and not func._schema.is_mutable:
            known = {_memory(x) for x in tree_leaves([args, kwargs]) if _has_memory(x)}
            made = {_memory(x): x for x in tree_leaves(result) if _has_memory(x)}
            self.made |= {at: _whole(x) for at, x in made.items() if at not in known}
        return result

    def wait(self, stream, other) -> None:
        """Makes a stream wait for all that another was given so far."""
        if other not in self._given:
            raise NotCapturable("a stream waits for work that is not captured")
        self._give(Wait(stream, other, self._given[other]))
        self._follows.setdefault(stream, Counter())
        self._follows[stream] |= self._follows[other] | Counter({other: self._given[other]})

    def check_joined(self) -> None:
        """Raises NotCapturable where the capturing stream does not wait for another's work."""
        for stream, count in self._last_call.items():
            if stream is not self.origin and self._follows[self.origin][stream] < count:
                raise NotCapturable("a stream is not joined when the capture ends")

    def _give(self, item: Call | Wait) -> None:
        self.work.append(item)
        self._given[item.stream] += 1
        if isinstance(item, Call) and not item.op.is_view:
            self._last_call[item.stream] = self._given[item.stream]

    def _remember(self, arguments) -> None:
        """Whole storages that were there before, as they are before the first write."""
        for x in tree_leaves(arguments):
            if _has_memory(x) and _memory(x) not in self.made.keys() | self.before.keys():
                self.before[_memory(x)] = _whole(x), _whole(x).clone()


def _has_memory(x) -> bool:
    """Forward mode stands for zero tangents with tensors that have none."""
    return isinstance(x, Tensor) and not x._is_zerotensor()


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _whole(x: Tensor) -> Tensor:
    """All of a tensor's memory."""
    size = x.untyped_storage().nbytes() // x.element_size()
    return torch.as_strided(x.detach(), (size,), (1,), 0)


class RecordedGraph:
    """Takes the place of ``training.step.cuda_graph.CudaGraph``."""

    seconds, bytes = 0.0, 0

    def __init__(self, device: torch.device | None = None):
        self.num_replays = 0

    def capture(self, work: Callable[[], Tensor]) -> Tensor:
        self.recorder = recorder = Recorder()
        with recording(recorder), STREAMS.capturing(recorder):
            result = work()
        recorder.check_joined()
        for whole, old in recorder.before.values():
            whole.copy_(old)
        return result

    def replay(self) -> None:
        self.num_replays += 1
        run(self.recorder.work)


@torch.no_grad()
def run(work: list[Call | Wait]) -> None:
    """Does recorded work again, in the order of the list."""
    with torch._C._AutoDispatchBelowAutograd():
        for item in work:
            if isinstance(item, Call) and not item.op.is_view:
                _store(item.op(*item.args, **item.kwargs), item.result)


def _store(found, recorded) -> None:
    """The result goes where it was when it was recorded."""
    for new, old in zip(tree_leaves(found), tree_leaves(recorded), strict=True):
        if _has_memory(new) and new.data_ptr() != old.data_ptr():
            old.copy_(new)
