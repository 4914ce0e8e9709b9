"""The fused backends ``cuda``, ``triton`` and ``cpu``: where they run, and what they can take."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace

import torch
from torch import Tensor

from sbrrt_fast import _extension
from sbrrt_fast.ops._backend.library import NATIVE_OPS, TRITON_OPS
from sbrrt_fast.ops.autodiff import has_tangent, tangent_is_differentiated

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"  # as Triton reads it, once
_HALVES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """Kernels that write into given memory.

    Attributes:
        name: ``cuda``, ``triton`` or ``cpu``.
        ops: its library's ops by name.
        dtypes: of the floating-point tensors that it takes.
        max_width: of rows that are normalised, in features; None for any.
        missing: the reason why it cannot run on this machine at all, or None.
    """

    name: str
    ops: SimpleNamespace
    dtypes: tuple[torch.dtype, ...]
    max_width: int | None
    missing: Callable[[], str | None]

    @property
    def device(self) -> str:
        """The type of device that its tensors are on."""
        if self.name == "triton":
            return "cpu" if INTERPRETED else "cuda"
        return self.name

    def device_reason(self, name: str, tensor: Tensor) -> str | None:
        """Why a tensor is where the backend cannot reach it, or None."""
        if tensor.device.type == self.device:
            return None
        hint = " in the interpreter" if self.name == "triton" and INTERPRETED else ""
        return f"{name} is on {tensor.device}, not {self.device}{hint}"

    def dtype_reason(self, name: str, tensor: Tensor) -> str | None:
        """Why the backend cannot take a tensor's place or dtype, or None."""
        if reason := self.device_reason(name, tensor):
            return reason
        if tensor.dtype not in self.dtypes:
            return f"{name} is {dtype_name(tensor)}, which runs on the reference"
        if self.name == "triton" and INTERPRETED and tensor.dtype is torch.bfloat16:
            return f"{name} is bfloat16, which Triton's interpreter truncates where a GPU rounds"
        return None

    def tensor_reason(
        self, *, differentiable: dict[str, Tensor], constant: dict[str, Tensor]
    ) -> str | None:
        """Why the backend cannot take these floating-point tensors, or None.

        Args:
            differentiable: by name, those in which the op has a forward-mode derivative.
            constant: by name, those in which it has none.
        """
        for tensors in (differentiable, constant):
            for name, tensor in tensors.items():
                if reason := self.dtype_reason(name, tensor):
                    return reason
        for name, tensor in differentiable.items():
            if tangent_is_differentiated(tensor):
                return f"the tangent of {name} is itself being differentiated"
        for name, tensor in constant.items():
            if has_tangent(tensor):
                return f"{name} has a tangent, which runs on the reference"
        return None

    def width_reason(self, name: str, tensor: Tensor) -> str | None:
        """Why the backend cannot normalise rows of this width, or None."""
        width = tensor.shape[-1]
        if self.max_width is None or width <= self.max_width:
            return None
        return f"{name} has {width} features, above {self.max_width}"


def dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def cuda_missing() -> str | None:
    """Why no CUDA kernel can run on this machine, or None."""
    return _cuda_missing()


@cache
def _cuda_missing() -> str | None:
    if _extension.extension is None:
        return "its kernels are part of the C++ ops, which are not there"
    build = _extension.extension.build_info()
    if build["cuda"] is None:
        return f"the C++ ops have no CUDA kernels: {build['cuda_reason']}"
    return None if torch.cuda.is_available() else "there is no NVIDIA GPU"


def triton_missing() -> str | None:
    """Why no Triton kernel can run on this machine, or None."""
    return _triton_missing()


@cache
def _triton_missing() -> str | None:
    if find_spec("triton") is None:
        return "Triton is not installed; `pip install triton` (Linux)"
    if not INTERPRETED and not torch.cuda.is_available():
        return "there is no NVIDIA GPU (and TRITON_INTERPRET=1 is not set)"
    try:
        import_module("sbrrt_fast.kernels.philox")
    except Exception as error:  # a broken installation may raise anything
        return f"Triton does not work: {type(error).__name__}: {error}"
    return None


def cpu_missing() -> str | None:
    """Why the C++ ops cannot run on this machine, or None."""
    return _extension.extension_error


# torch.compiler.assume_constant_result, without its import
cuda_missing._dynamo_marked_constant = True
triton_missing._dynamo_marked_constant = True

CUDA = Backend("cuda", NATIVE_OPS, (torch.float32, *_HALVES), 2048, cuda_missing)
TRITON = Backend("triton", TRITON_OPS, (torch.float32, *_HALVES), 8192, triton_missing)
CPU = Backend("cpu", NATIVE_OPS, (torch.float32, torch.bfloat16), None, cpu_missing)
