"""bias_gelu."""

from __future__ import annotations

import torch

from sbrrt_fast.ops.gelu import bias_gelu, bias_gelu_reference
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason, vector_dtype, writing
from tests.ops.op_checks import BF16, F32, F64
from tests.ops.triton_only import GELU

F16 = torch.float16

# rows, features, dtype, scale of x, layout
SAMPLES = {
    "one token": (1, 1536, F32, 1.0, "dense"),
    "primes": (67, 131, F32, 3.0, "dense"),
    "primes in a half": (17, 37, BF16, 1.0, "dense"),
    "small values": (19, 48, F32, 1e-3, "dense"),
    "large values": (19, 53, F32, 50.0, "dense"),
    "no rows": (0, 64, F32, 1.0, "dense"),
    "gaps between rows": (40, 96, F32, 1.0, "strided"),
    "gaps in a half": (40, 90, BF16, 1.0, "strided"),
    "transposed": (19, 33, F32, 1.0, "transposed"),
    "transposed in a half": (19, 33, BF16, 1.0, "transposed"),
    "one feature": (5, 1, F32, 1.0, "dense"),
}
NATIVE = {
    "512 tokens": (512, 384, BF16, 1.0, "dense"),
    "bert-base": (33, 3072, F32, 1.0, "dense"),
    "batch of 200": (200, 64, F32, 3.0, "dense"),
}
# A tile has 16 rows and 256 features.
TRITON = {
    "bert-base": (9, 3072, F32, 1.0, "dense"),
    "bert-base in a half": (5, 3072, BF16, 1.0, "dense"),
    "whole tiles": (32, 256, F32, 1.0, "dense"),
    "a row and a feature more": (33, 257, F32, 1.0, "dense"),
    "a row and a feature less": (15, 255, BF16, 1.0, "dense"),
}
CUDA = {
    f"{dtype}, {features} features": (37, features, dtype, 1.0, "dense")
    for dtype in (F32, BF16, F16)
    for features in (264, 131)
} | {"more rows than blocks hold": (16391, 3, F32, 1.0, "dense")}


class GeluCase(Case):
    def __init__(self, sample: tuple):
        rows, features, dtype, scale, layout = sample
        draw = Drawn(rows * features, layout)
        bias = draw(features, dtype=vector_dtype(dtype), scale=0.5 * scale)
        self.inputs = [draw.rows(rows, features, dtype=dtype, scale=scale), bias]
        self.grad = draw.rows(rows, features, dtype=dtype)
        self.tangents = {0: draw.rows(rows, features, dtype=dtype)}

    def function(self, backend):
        return lambda x, bias: bias_gelu(x, bias, backend=backend)

    def stock(self, x, bias):
        return bias_gelu_reference(x, bias)


def good() -> dict:
    names = ("grad", "x", "x_tangent", "out", "out_tangent", "dx")
    return {name: torch.zeros(2, 8) for name in names} | {
        "bias": torch.zeros(8),
        "dbias": torch.zeros(8),
    }


BAD = (
    Bad("x", torch.zeros(2, 8, dtype=F64), TypeError, "x must have dtype float32"),
    Bad("x", torch.zeros(2, 8).int(), TypeError, "x must have dtype float32"),
    Bad("x", torch.zeros(8), ValueError, "x must (be a dense tensor of shape|have 2 dimensions)"),
    Bad("x", torch.zeros(2, 0), ValueError, "x must (be a dense tensor|have at least one feature)"),
    Bad("bias", torch.zeros(7), ValueError, r"bias must be a dense tensor of shape \[8\]"),
    Bad("bias", torch.zeros(8).int(), TypeError, "bias must have dtype"),
    Bad("bias", torch.zeros(8, device="meta"), ValueError, "must be on"),
    Bad("grad", torch.zeros(3, 8), ValueError, r"grad must be a dense tensor of shape \[2, 8\]"),
    Bad("grad", torch.zeros(2, 8).bool(), TypeError, "grad must have dtype float32"),
    Bad(
        "x_tangent",
        torch.zeros(3, 8),
        ValueError,
        "x_tangent (must be a dense tensor of shape|is of the last rows of x, which has 2)",
    ),
    Bad("x_tangent", torch.zeros(2, 8).bool(), TypeError, "x_tangent must have dtype float32"),
    Bad("x_tangent", None, ValueError, "go together; pass both or none", parts=("forward",)),
    Bad("out_tangent", None, ValueError, "go together; pass both or none"),
    Bad("out_tangent", torch.zeros(1, 8), ValueError, "out_tangent must be a dense tensor"),
    Bad("out_tangent", torch.zeros(2, 8, dtype=BF16), TypeError, "out_tangent must have dtype"),
)

REASONS = (
    Reason(
        lambda backend: bias_gelu(torch.zeros(3, 8, dtype=F64), torch.zeros(8), backend=backend),
        "x is float64, which runs on the reference",
    ),
)

OP = Op(
    "bias_gelu", GeluCase, SAMPLES, native=NATIVE, triton=TRITON, cuda=CUDA,
    small="primes in a half",
    repeated=("512 tokens", "primes"), orders=tuple(name for name in CUDA if "features" in name),
    calls=writing("bias_gelu", "forward", "backward", "jvp"), weights=(1,),
    sized=lambda rows: (rows, 64, F32, 1.0, "dense"),
    approximation=GELU, good=good, bad=BAD, reasons=REASONS,
)  # fmt: skip
