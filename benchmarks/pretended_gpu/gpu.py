"""The pretended GPU itself: what is in force while it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.pretended_gpu.memory import Marks, Memory
from benchmarks.pretended_gpu.names import Names
from benchmarks.pretended_gpu.operations import Operations
from benchmarks.pretended_gpu.rules import Refused
from benchmarks.pretended_gpu.streams import NAMES as STREAM_NAMES
from benchmarks.pretended_gpu.streams import STREAMS
from sbrrt_fast.ops._backend import backends
from sbrrt_fast.ops.registry import OPS

Observer = Callable[[OpOverload, tuple, dict, object], object]


class PretendedGpu:
    """Within it, ``cuda`` is a device.

    Args:
        has_values: False keeps shapes alone: nothing is computed, and nothing can be read.

    Attributes:
        observers: called with (op, arguments, keyword arguments, result) of every op on the device,
            views and copies to it included.
        may_wait: False within ``no_waits``. recorder: the mode of ``recording``, or None.
    """

    active: PretendedGpu | None = None

    def __init__(self, has_values: bool = True):
        self.has_values, self.may_wait = has_values, True
        self.observers: list[Observer] = []
        self.recorder: TorchDispatchMode | None = None
        self.memory, self._pinned = Memory(), Marks()

    def __enter__(self) -> PretendedGpu:
        assert PretendedGpu.active is None, "there is one pretended GPU at a time"
        with ExitStack() as stack:
            for context in self._contexts():
                stack.enter_context(context)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def _contexts(self) -> Iterator:
        yield patch.object(PretendedGpu, "active", self)
        yield patch.object(backends, "_cuda_missing", lambda: None)
        for op in OPS:
            yield patch.dict(op._not_built, cuda=None)
        yield patch.object(torch.cuda, "Event", _Event)
        for name in STREAM_NAMES:
            yield patch.object(torch.cuda, name, getattr(STREAMS, name))
        # autograd.grad runs Python code of backward passes, which must be within the modes.
        yield patch.object(torch.autograd, "has_torch_function", lambda arguments: False)
        yield Operations(self)
        yield Names(self)

    @contextmanager
    def no_waits(self) -> Iterator[None]:
        """Within it the host may not wait for the device."""
        with patch.object(self, "may_wait", False):
            yield

    @contextmanager
    def recording(self, mode: TorchDispatchMode) -> Iterator[None]:
        """Within it, as while a graph is captured, ``mode`` sees the work as ops on the values."""
        assert self.has_values, "there is no work to record"
        with patch.object(self, "recorder", mode):
            yield

    def value(self, x: Tensor) -> Tensor:
        """A copy of a tensor in the host's memory, without asking whether the host may wait."""
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            x = x.detach()
            return (self.memory.values_of(x) if x.is_meta else x).clone()

    def pin(self, x: Tensor) -> Tensor:
        """Marks a host tensor's memory as pinned.

        Raises:
            Refused: a graph is captured, which allows no such allocation.
        """
        if self.recorder:
            raise Refused("pinned memory cannot be allocated while a graph is captured")
        self._pinned.add(x)
        return x

    def is_pinned(self, x: Tensor) -> bool:
        return x in self._pinned


@contextmanager
def recording(mode: TorchDispatchMode) -> Iterator[None]:
    """Within it ``mode`` sees the device's work: the pretended GPU's, or without one every op."""
    gpu = PretendedGpu.active
    with gpu.recording(mode) if gpu else mode:
        yield


class _Event:
    """Stands for torch.cuda.Event: all work is done when it is given."""

    def record(self, *stream) -> None:
        pass

    def synchronize(self) -> None:
        pass
