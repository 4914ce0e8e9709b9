"""One table of cases for every op: samples, the public call, its tangents, bounds, bad arguments.

A file per op; ``OPS`` has them by name. The generic tests (``test_values``, ``test_gradients``,
``test_tangents``, ``test_opcheck``, ``test_compile``, ``test_errors``, ``test_repeats``) run all of
it on every backend.
"""

from __future__ import annotations

from tests.ops.cases import (
    adamw,
    attention,
    dropout,
    embed,
    gelu,
    gradient_norm,
    layernorm,
    objective,
    smart,
    symmetric_kl,
    task_heads,
)
from tests.ops.cases.base import Op

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        attention.OP, layernorm.OP, gelu.OP, embed.OP, symmetric_kl.OP, symmetric_kl.FISHER,
        smart.NOISE, smart.ASCEND, adamw.ADAMW, adamw.ROWS, gradient_norm.OP,
        dropout.MASK, dropout.BITS,
        task_heads.FORWARD, task_heads.JVP, task_heads.VJP, task_heads.WEIGHTS,
        objective.OBJECTIVE, objective.COTANGENTS, objective.VALUES,
    )
}  # fmt: skip
