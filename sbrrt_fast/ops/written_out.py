"""Whose ops the written-out passes of ``model.packed`` call, into memory that is there already.

They are not differentiable; where autograd is wanted, use the ops' public functions.
"""

from __future__ import annotations

import torch

from sbrrt_fast.ops._backend.backends import CPU, CUDA, TRITON, Backend
from sbrrt_fast.ops._backend.library import define

# a b by torch's library; on the CPU every thread has a part of its own
define("mm_into(Tensor a, Tensor b, Tensor(a!) out)", "matmul.mm_into")


def written_out_backend(backend: str, device: torch.device) -> tuple[Backend | None, str]:
    """Whose ops the written-out passes call, or None and the reason why there are none."""
    if backend in ("auto", device.type) and device.type in ("cpu", "cuda"):
        native = CPU if device.type == "cpu" else CUDA
        reason = native.missing()
        if reason is None:
            return native, ""
        if backend != "auto" or device.type == "cpu":
            return None, reason
    elif backend != "triton":
        return None, f"backend '{backend}' has no written-out passes on {device.type}"
    reason = TRITON.missing()
    if reason is None and TRITON.device != device.type:
        reason = f"Triton's kernels run on {TRITON.device} here"
    return (None, reason) if reason else (TRITON, "")
