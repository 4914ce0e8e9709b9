"""Device work recorded once and replayed, and inputs at addresses that do not change."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor


@cache
def _pool(device: torch.device) -> tuple[int, int]:
    return torch.cuda.graph_pool_handle()


class CudaGraph:
    """One recording; all of them share a pool of memory, since they run one after the other.

    Attributes:
        seconds: what recording took. bytes: by how much the allocator's memory grew.
    """

    def __init__(self, device: torch.device):
        self.device, self.seconds, self.bytes = device, 0.0, 0
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], Tensor]) -> Tensor:
        """Records what ``work`` sends to the device, without running it.

        Returns:
            its result, which every replay overwrites.

        Raises:
            RuntimeError: something in it cannot be recorded.
        """
        start, before = time.perf_counter(), torch.cuda.memory_reserved(self.device)
        with (
            torch.cuda.device(self.device),
            torch.cuda.graph(self._graph, pool=_pool(self.device)),
        ):
            result = work()
        self.seconds = time.perf_counter() - start
        self.bytes = max(torch.cuda.memory_reserved(self.device) - before, 0)
        return result

    def replay(self) -> None:
        self._graph.replay()


def error_chain(error: BaseException) -> str:
    """An error and those it followed from, the first one first: one line of each.

    A capture that is broken off raises twice: the op that cannot be captured, then its end.
    """
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None:
        lines.append(str(current).strip().partition("\n")[0] or type(current).__name__)
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)
    return "; then ".join(reversed(lines))


class StaticInput:
    """A vector on the device that is filled from the host without waiting for the device.

    Args:
        size: number of elements. dtype: theirs.
    """

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device):
        is_cuda = device.type == "cuda"
        self.tensor = torch.zeros(size, dtype=dtype, device=device)
        self._staging = torch.zeros(size, dtype=dtype, pin_memory=is_cuda)
        self._copied = torch.cuda.Event() if is_cuda else None

    def load(self, parts: Sequence[Tensor]) -> None:
        """Fills it with vectors of the host's, one after the other."""
        if self._copied:
            self._copied.synchronize()  # the last copy has read what is overwritten now
        torch.cat(list(parts), out=self._staging)
        self.tensor.copy_(self._staging, non_blocking=True)
        if self._copied:
            self._copied.record()
