"""Every native op and a round of a tiny model, for a memory checker to run over.

    DEVICE=cuda python -m tests.ops.small_shapes

Nothing is compared: the same calls are in tests. Shapes are small, since a checker slows kernels
down a hundred times, and odd, so that the last block of each is a part of one.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from sbrrt_fast.ops.attention import attention
from sbrrt_fast.training.step.fast_step import FastStep
from tests.ops import test_attention
from tests.ops.on_device import moved
from tests.ops.op_checks import BF16, F32, gradients
from tests.ops.test_compile import native_calls
from tests.training.test_fast_step import SBRRT, build, make_round

# (lengths, heads, head dimension, dtype, dropout, maximum length, layout): what short and long
# sequences, and heads of either width, take.
LENGTHS = ([4, 29, 1], [33, 130], [257])
SHAPES = [
    (lengths, 2, width, dtype, 0.1, 512, "dense")
    for lengths in LENGTHS
    for width in (32, 64)
    for dtype in (F32, BF16)
]


def call_native_ops(device: str) -> None:
    for name, arguments in native_calls().items():
        getattr(torch.ops.sbrrt, name).default(*moved(arguments, device))
        _wait(name, device)


def call_attention(device: str) -> None:
    for shape in SHAPES:
        case = moved(test_attention.Case(shape), device)

        def run(*inputs, case=case):
            return attention(*inputs, *case.batch, *case.dropout, backend=device)

        gradients(run, case.inputs, case.grad)
        _wait(f"attention {shape}", device)


def train_rounds(device: str) -> None:
    for precision in ("fp32", "bf16"):
        step = build(FastStep, replace(SBRRT, precision=precision), device=device)
        for index in range(2):
            step.round(make_round(index), index, report=True)
        _wait(f"rounds in {precision}", device)


def _wait(name: str, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    print(name, flush=True)


def main() -> None:
    device = os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    call_native_ops(device)
    call_attention(device)
    train_rounds(device)


if __name__ == "__main__":
    main()
