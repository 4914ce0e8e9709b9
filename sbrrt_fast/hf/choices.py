"""Which implementation the ops of a model take: calls with its device and dtype, but no rows."""

from __future__ import annotations

import torch
from torch import nn

from sbrrt_fast.model.op_calls import OpCall


def choices_of(model: nn.Module, backend: str) -> dict[str, str]:
    """By op, ``cpu``, or ``reference (cpu: the reason)``; empty for a model without parameters."""
    weight = next(model.parameters(), None)
    if weight is None:
        return {}
    return {call.op.name: _told(call, backend) for call in _calls(weight)}


def _told(call: OpCall, backend: str) -> str:
    choice = call.explain(backend)
    own = {b: r for b, r in choice.reasons.items() if b == call.args[0].device.type}
    why = "; ".join(f"{b}: {r}" for b, r in own.items()) or choice.reasons_text
    if choice.backend is None:
        return f"none ({why})"
    return f"{choice.backend} ({why})" if choice.backend == "reference" and why else choice.backend


def _calls(weight: torch.Tensor) -> list[OpCall]:
    width = 32
    rows, row = weight.new_empty(0, width), weight.new_empty(width)
    rng, none = torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    rng, none = rng.to(weight.device), none.to(weight.device)
    starts = none.new_zeros(1, dtype=torch.int32)
    dropout = 0.0, rng, 0, none
    tables = none, none, none, rows, rows, rows
    return [
        OpCall.named("embed", *tables, row, row, 1e-12, *dropout),
        OpCall.named("attention", rows, rows, rows, starts, 0, 1, *dropout, 1),
        OpCall.named("dropout_add_layernorm", rows, row, rows, row, row, 1e-12, *dropout),
        OpCall.named("bias_gelu", rows, row),
    ]
