"""The tests of native ops on a GPU, and the same ones on the CPU: tensors moved, calls replayed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import cuda_missing

no_gpu = pytest.mark.skipif(cuda_missing() is not None, reason=cuda_missing() or "")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=no_gpu)])


def moved(value: Any, device: str) -> Any:
    """A copy of a tensor, with its strides, or of what holds tensors, on a device."""
    if isinstance(value, Tensor):
        size = value.untyped_storage().nbytes() // value.element_size()
        storage = value.detach().as_strided((size,), (1,), 0).to(device, copy=True)
        return storage.as_strided(value.shape, value.stride(), value.storage_offset())
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: moved(item, device) for key, item in value.items()}
    if hasattr(value, "__dict__") and not callable(value):
        result = copy.copy(value)
        vars(result).update(moved(vars(value), device))
        return result
    return value


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether all bits are equal; a NaN's count like any others."""
    return all(_equal(a, b) for a, b in zip(some, others, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))


def replayed(run: Callable[[], list[Tensor]], change: Callable[[], None], device: str) -> list:
    """What ``run`` leaves after ``change``, from a CUDA graph that was captured before.

    On the CPU, which has no graphs, ``run`` is called again.
    """
    if device == "cpu":
        run()
        change()
        return run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    change()
    graph.replay()
    results = [x.clone() for x in results]
    torch.cuda.synchronize()  # the graph ends with this function
    return results
