"""The one place where kernels are launched, so that launches can be listed without a GPU.

A host function calls ``launch(kernel, grid, *arguments, **constants)`` in place of
``kernel[grid](...)``. Under ``recording()`` nothing runs: the launches are kept, and ``aot``
compiles each of them for chips that are not here. Tensors may then be on the ``meta`` device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from . import interpreter
from .previous_kernel import starts_early

interpreter.mend()
_records: list[Launch] | None = None


@dataclass(frozen=True)
class Launch:
    """A launch that did not happen.

    Attributes:
        kernel: the triton.jit function.
        arguments: its positional arguments.
        constants: its constexpr arguments, and Triton's num_warps and num_stages, by name.
    """

    kernel: object
    arguments: tuple
    constants: dict


def launch(kernel, grid: tuple[int, ...], *arguments, **constants) -> None:
    """Runs a kernel on its first argument's device; an empty grid is no launch."""
    if 0 in grid:
        return
    if _records is not None:
        _records.append(Launch(kernel, arguments, constants))
        return
    with _on_device_of(arguments[0]):
        kernel[grid](*arguments, **constants, **_options(arguments[0]))


def _options(tensor: Tensor) -> dict[str, bool]:
    """Every kernel begins with ``await_previous``, so where it may it starts early."""
    return {"launch_pdl": True} if tensor.is_cuda and starts_early(tensor.device.index) else {}


def _on_device_of(tensor: Tensor):
    """Triton launches on the current device, which need not be the tensor's."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return nullcontext()


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches inside are appended to the list and do not run."""
    global _records
    before, _records = _records, []
    try:
        yield _records
    finally:
        _records = before
