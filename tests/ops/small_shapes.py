"""Every native op and a round of a tiny model, for a memory checker to run over.

    DEVICE=cuda python -m tests.ops.small_shapes

Nothing is compared: the same calls are in tests. Shapes are small, since a checker slows kernels
down a hundred times, and odd, so that the last block of each is a part of one.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from tests.ops.backends import parts_of, run
from tests.ops.cases import OPS
from tests.ops.cases.attention import AttentionCase
from tests.ops.op_checks import BF16, F32
from tests.training.steps import SBRRT, build, make_round, written_out

# (lengths, heads, head dimension, dtype, dropout, maximum length, layout): what short and long
# sequences, and heads of either width, take.
LENGTHS = ((4, 29, 1), (33, 130), (257,))
SHAPES = [
    (lengths, 2, width, dtype, 0.1, 512, "dense")
    for lengths in LENGTHS
    for width in (32, 64)
    for dtype in (F32, BF16)
]


def call_ops(device: str) -> None:
    for op in OPS.values():
        _call(op, device, op.case(op.samples[op.small]))
    for shape in SHAPES:
        _call(OPS["attention"], device, AttentionCase(shape))


def _call(op, device: str, case) -> None:
    found = run(op, device, case)
    for part in parts_of(op, device):
        assert getattr(found, part)
    _wait(op.name, device)


def train_rounds(device: str) -> None:
    for precision in ("fp32", "bf16"):
        step = build(written_out, replace(SBRRT, precision=precision), device=device)
        for index in range(2):
            step.round(make_round(index), index, report=True)
        _wait(f"rounds in {precision}", device)


def _wait(name: str, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    print(name, flush=True)


def main() -> None:
    device = os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    call_ops(device)
    train_rounds(device)


if __name__ == "__main__":
    main()
