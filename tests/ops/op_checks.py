"""What the tests of the C++ ops have in common."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64
RNG, SITE = torch.tensor([0x1234_5678_9ABC, 3]), 5


def assert_as_good_as_stock(
    ours: Tensor, stock: Tensor, exact: Tensor, approximation: float = 0.0
) -> None:
    """At most twice stock torch's error against float64, and half an ulp of the largest value.

    ``approximation`` is what instructions that do not round correctly may add, relative to the
    largest value.
    """
    assert ours.shape == exact.shape
    assert ours.dtype == stock.dtype
    if exact.numel() == 0:
        return
    error, stock_error = ((x.double() - exact).abs().max().item() for x in (ours, stock))
    half_ulp, oracle = torch.finfo(ours.dtype).eps / 2, torch.finfo(F64).eps  # float64 rounds too
    floor = (half_ulp + oracle + approximation) * exact.abs().max().item()
    assert error <= 2 * stock_error + floor, (error, stock_error, floor)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another layout."""
    if layout == "strided":  # rows with a gap between them
        return torch.cat([x, x + 1], dim=1)[:, : x.shape[1]]
    return x.t().contiguous().t() if layout == "transposed" else x


def float_tangent(f: Callable[..., Tensor], primals: list, tangents: list) -> Tensor:
    """The forward-mode derivative of f."""
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(*pair) for pair in zip(primals, tangents, strict=True)]
        return forward_ad.unpack_dual(f(*duals)).tangent


def gradients(f: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Gradients of f at all its inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    return list(torch.autograd.grad(f(*leaves), leaves, grad))


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_with_capability(module: str, capability: str) -> str:
    """Runs ``module.check_values()`` under one instruction set, and returns that set's name."""
    code = (
        f"from {module} import check_values; check_values();"
        "from sbrrt_fast._extension import extension;"
        "print(extension.build_info()['cpu_capability'])"
    )
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()[-1]


class Calls(TorchDispatchMode):
    """Records every op of the two libraries that runs, and its arguments."""

    def __init__(self):
        super().__init__()
        self.ops: list[tuple[torch._ops.OpOverload, tuple]] = []

    @property
    def seen(self) -> list[tuple[str, tuple]]:
        return [(op._opname, args) for op, args in self.ops]

    def argument(self, name: str) -> Tensor:
        """The argument of that name of the first op that ran."""
        op, args = self.ops[0]
        return args[[argument.name for argument in op._schema.arguments].index(name)]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("sbrrt", "sbrrt_triton"):
            left_out = func._schema.arguments[len(args) :]  # the dispatcher drops defaults
            self.ops.append((func, (*args, *(argument.default_value for argument in left_out))))
        return func(*args, **(kwargs or {}))


def odd_tensor(draw: random.Random) -> object:
    """Something that some tensor argument must refuse, or not."""
    size = [draw.choice([0, 1, 2, 5, 16, 33]) for _ in range(draw.choice([0, 1, 1, 2, 2, 3]))]
    choices = [
        lambda: torch.randn(size).to(draw.choice([F32, BF16, F64, torch.float16])),
        lambda: torch.randint(-3, 9, size),
        lambda: torch.full(size, draw.choice([-1, 2**40, 2**63 - 1, -(2**63)])),
        lambda: torch.zeros(size, dtype=draw.choice([torch.bool, torch.int32, torch.complex64])),
        lambda: torch.zeros(size, device="meta"),
        lambda: torch.randn(max(size, default=3), 4).to_sparse(),
        lambda: torch.randn(()).expand(size),
        lambda: torch.full(size, float("nan")),
        lambda: None,
    ]
    return draw.choice(choices)()
