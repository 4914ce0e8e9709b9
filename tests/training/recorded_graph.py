"""A captured graph on the CPU: records every op that reaches a device and runs it again.

It keeps a CUDA graph's promises and limits. A replay runs the same ops on the same memory, so what
the host decided while it was captured stays as it was; ops that make the host wait, or whose
results have a size that depends on the data, are refused. Unlike a CUDA graph it runs the work
while it captures it, so the memory it writes is put back afterwards. On the pretended GPU
(``benchmarks.pretended_gpu``) it records what that runs for the device.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.pretended_gpu import name_of, recording, waits_for_device


class NotCapturable(RuntimeError):
    """An op that a CUDA graph cannot hold."""


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls: list[tuple] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if waits_for_device(func, args, kwargs) or name_of(func) == "lift_fresh":
            raise NotCapturable(f"{name_of(func)} makes the host wait for the device")
        if func._schema.is_mutable:
            self._remember([*args, *kwargs.values()])
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        if not func.is_view and not func._schema.is_mutable:
            self.made |= {_memory(x) for x in tree_leaves(result) if _has_memory(x)}
        return result

    def _remember(self, arguments) -> None:
        """Whole storages that were there before, as they are before the first write."""
        for x in tree_leaves(arguments):
            if _has_memory(x) and _memory(x) not in self.made | self.before.keys():
                whole = torch.as_strided(
                    x.detach(), (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0
                )
                self.before[_memory(x)] = whole, whole.clone()


def _has_memory(x) -> bool:
    """Forward mode stands for zero tangents with tensors that have none."""
    return isinstance(x, Tensor) and not x._is_zerotensor()


def _memory(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


class RecordedGraph:
    """Takes the place of ``training.step.cuda_graph.CudaGraph``."""

    seconds, bytes = 0.0, 0

    def __init__(self, device: torch.device | None = None):
        self.num_replays = 0

    def capture(self, work: Callable[[], Tensor]) -> Tensor:
        recorder = _Recorder()
        with recording(recorder):
            result = work()
        self._calls = recorder.calls
        for whole, old in recorder.before.values():
            whole.copy_(old)
        return result

    @torch.no_grad()
    def replay(self) -> None:
        self.num_replays += 1
        with torch._C._AutoDispatchBelowAutograd():
            for func, args, kwargs, result in self._calls:
                if not func.is_view:
                    _store(func(*args, **kwargs), result)


def _store(found, recorded) -> None:
    """The result goes where it was when it was recorded."""
    for new, old in zip(tree_leaves(found), tree_leaves(recorded), strict=True):
        if _has_memory(new) and new.data_ptr() != old.data_ptr():
            old.copy_(new)
