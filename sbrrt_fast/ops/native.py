"""The backends ``cuda`` and ``cpu``: the extension's ops, on tensors of one device or the other.

To Python an op of the extension is one function; torch takes its kernel by the tensors' device. So
the two backends share how they run, and differ in what they can take.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from sbrrt_fast import _extension
from sbrrt_fast.ops.autodiff import has_tangent, tangent_is_differentiated
from sbrrt_fast.ops.dispatch import Implementation

DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
MAX_CUDA_WIDTH = 2048  # of rows that are normalised: kMaxLayerNormWidth, kMaxEmbedWidth


def native(run: Callable, why_not: Callable) -> tuple[Implementation, Implementation]:
    """An op's implementations on ``cuda`` and ``cpu``.

    Args:
        run: the callable, as for ``Implementation``.
        why_not: given the device, ``cuda`` or ``cpu``, and the op's arguments, the reason why it
            cannot take them there, or None.
    """
    return (
        Implementation("cuda", run, partial(why_not, "cuda"), cuda_missing),
        Implementation("cpu", run, partial(why_not, "cpu"), lambda: _extension.extension_error),
    )


def cuda_missing() -> str | None:
    """Why no CUDA kernel can run on this machine, or None."""
    return _cuda_missing()


cuda_missing._dynamo_marked_constant = True  # see triton_ops.missing


@cache
def _cuda_missing() -> str | None:
    if _extension.extension is None:
        return "its kernels are part of the C++ ops, which are not there"
    build = _extension.extension.build_info()
    if build["cuda"] is None:
        return f"the C++ ops have no CUDA kernels: {build['cuda_reason']}"
    return None if torch.cuda.is_available() else "there is no NVIDIA GPU"


def device_reason(device: str, name: str, tensor: Tensor) -> str | None:
    """Why a tensor is where a backend cannot reach it, or None."""
    if tensor.device.type == device:
        return None
    return f"{name} is on {tensor.device}, not {device}"


def dtype_reason(device: str, name: str, tensor: Tensor) -> str | None:
    """Why a backend cannot take a tensor's place or dtype, or None."""
    if tensor.device.type != device:
        return device_reason(device, name, tensor)
    if tensor.dtype not in DTYPES[device]:
        return f"{name} is {str(tensor.dtype).removeprefix('torch.')}, which runs on the reference"
    return None


def native_reason(
    device: str, *, differentiable: dict[str, Tensor], constant: dict[str, Tensor]
) -> str | None:
    """Why the C++ ops cannot take these floating-point tensors on a device, or None.

    Args:
        device: ``cuda`` or ``cpu``.
        differentiable: by name, those in which the op has a forward-mode derivative.
        constant: by name, those in which it has none.
    """
    for tensors in (differentiable, constant):
        for name, tensor in tensors.items():
            if reason := dtype_reason(device, name, tensor):
                return reason
    for name, tensor in differentiable.items():
        if tangent_is_differentiated(tensor):
            return f"the tangent of {name} is itself being differentiated"
    for name, tensor in constant.items():
        if has_tangent(tensor):
            return f"{name} has a tangent, which runs on the reference"
    return None


def width_reason(device: str, name: str, tensor: Tensor) -> str | None:
    """Why the CUDA kernels cannot normalise rows of this width, or None."""
    if device == "cuda" and tensor.shape[-1] > MAX_CUDA_WIDTH:
        return f"{name} has {tensor.shape[-1]} features, above {MAX_CUDA_WIDTH}"
    return None
