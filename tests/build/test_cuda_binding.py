"""The CUDA kernels as torch sees them: registered for every op, and choosing among them."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast import _extension
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops._backend import backends
from sbrrt_fast.ops.gelu import bias_gelu
from sbrrt_fast.ops.registry import OPS

BUILT = _extension.extension is not None and _extension.extension.build_info()["cuda"] is not None
needs_build = pytest.mark.skipif(not BUILT, reason="this build has no CUDA; `make cuda-check` does")


def kernels_for(key: str) -> set[str]:
    ours = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("sbrrt::")]
    return {n[7:] for n in ours if torch._C._dispatch_has_kernel_for_dispatch_key(n, key)}


@needs_build
def test_every_op_of_the_cpu_has_a_cuda_kernel():
    assert kernels_for("CUDA") == kernels_for("CPU")
    assert kernels_for("CUDA")


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_cuda_comes_first_and_says_why_not(op):
    first = op.implementations[0]
    assert first.backend == "cuda"
    if not torch.cuda.is_available():
        assert "GPU" in op.missing(first) or "CUDA" in op.missing(first)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so none can be missing")
def test_a_named_backend_that_is_not_there():
    with pytest.raises(BackendError, match=r"bias_gelu cannot run here .cuda: .*(CUDA|GPU)"):
        bias_gelu(torch.randn(2, 8), torch.zeros(8), backend="cuda")


def test_reasons_of_the_device_and_the_dtype():
    x = torch.zeros(2, 4)
    assert backends.CPU.dtype_reason("x", x) is None
    assert backends.CUDA.dtype_reason("x", x) == "x is on cpu, not cuda"
    assert "float16, which runs on the reference" in backends.CPU.dtype_reason("x", x.half())
    on_gpu = torch.zeros(2, 4096, device="meta")
    assert backends.CUDA.width_reason("x", on_gpu) == "x has 4096 features, above 2048"
    assert backends.CPU.width_reason("x", on_gpu) is None
