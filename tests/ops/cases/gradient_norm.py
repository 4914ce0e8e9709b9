"""gradient_norm, against the norm in float64."""

from __future__ import annotations

import math

import torch

from sbrrt_fast.ops.gradient_norm import gradient_norm
from tests.ops.cases.adamw import CUDA_SHAPES, F16, NATIVE_SHAPES, SHAPES, TRITON_SHAPES
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason
from tests.ops.op_checks import BF16, F32, F64


class NormCase(Case):
    def __init__(self, sample: tuple):
        shapes, dtypes, scale = sample
        draw = Drawn(len(shapes))
        if isinstance(dtypes, torch.dtype):
            dtypes = (dtypes,) * len(shapes)
        self.inputs = [
            draw(*shape, dtype=dtype, scale=scale)
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ]

    def function(self, backend):
        return lambda *grads: gradient_norm(list(grads), backend=backend)

    def stock(self, *grads):
        return torch.cat([g.double().reshape(-1) for g in grads]).norm()

    def check(self, ours, stock, exact, approximation):
        for norm in ours:  # CUDA on the CPU gives several
            assert norm.shape == () and norm.dtype in (F32, F64)
            assert abs(norm.double() - exact[0]) <= 3e-7 * exact[0]


def _two_dtypes(backend):
    return gradient_norm([torch.ones(3), torch.ones(3, dtype=F64)], backend=backend)


def norms(shapes: dict) -> dict:
    return {
        f"{name}, {dtype}, {scale}".replace("torch.", ""): (sizes, dtype, scale)
        for name, sizes in shapes.items()
        for dtype, scales in ((F32, (1e-12, 1.0, 1e12)), (BF16, (1e-2, 10.0)))
        for scale in scales
    }


OP = Op(
    "gradient_norm", NormCase,
    norms(SHAPES) | {"both dtypes": (SHAPES["odd sizes"], (F32, BF16) * 3, 1.0)},
    native=norms(NATIVE_SHAPES),
    triton=norms(TRITON_SHAPES), cuda=norms(CUDA_SHAPES)
    | {f"{name}, {F16}": (sizes, F16, 1e-3) for name, sizes in (SHAPES | CUDA_SHAPES).items()},
    small="odd sizes, bfloat16, 10.0",
    repeated=("several pieces, float32, 1.0", "an element more, float32, 1.0"),
    orders=("an element more, float32, 1.0", "an element more, bfloat16, 10.0",
            f"an element more, {F16}"),
    sized=lambda n: (((n, 3), (n,)), F32, 1.0),
    good=lambda: {
        "grads": [torch.ones(3, 5), torch.ones(7)], "max_norm": 1.0, "out": torch.zeros(3)
    },
    bad=(Bad("grads", [torch.ones(3), torch.ones(3).double()], TypeError,
             r"grads must have dtype float32.* in grads\[1\]"),
         Bad("max_norm", -1.0, ValueError, "max_norm must be >= 0, got -1"),
         Bad("max_norm", math.nan, ValueError, "max_norm must be >= 0, got nan"),
         Bad("out", torch.zeros(()), ValueError, r"out must be .* \[3\]")),
    reasons=(Reason(_two_dtypes, "a gradient is float64, which runs on the reference"),
             Reason(lambda b: gradient_norm([torch.ones(3, dtype=F64)], backend=b),
                    "float64.* on the reference")),
    is_differentiated=False,
)  # fmt: skip
