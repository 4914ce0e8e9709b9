"""All ops and which of their implementations can run here."""

from __future__ import annotations

from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops import (
    adamw_ema,
    attention,
    dropout,
    embed,
    gelu,
    gradient_norm,
    layernorm,
    objective,
    smart_ascend,
    smart_noise,
    symmetric_kl,
    task_heads,
)
from sbrrt_fast.ops._backend.dispatch import Op

OPS: tuple[Op, ...] = (
    *attention.OPS,
    *layernorm.OPS,
    *gelu.OPS,
    *embed.OPS,
    *symmetric_kl.OPS,
    *smart_noise.OPS,
    *smart_ascend.OPS,
    *adamw_ema.OPS,
    *gradient_norm.OPS,
    *dropout.OPS,
    *task_heads.OPS,
    *objective.OPS,
)


def require(backend: str) -> None:
    """Checks that every op has a named backend.

    Raises:
        BackendError: with each op that lacks it and the reason.
    """
    if backend == "auto":
        return
    reasons = [(op.name, dict(op.table())[backend]) for op in OPS]
    missing = [f"{name}: {reason}" for name, reason in reasons if reason != "yes"]
    if backend != "reference" and missing:
        raise BackendError(
            f"backend '{backend}' cannot run every op here ({'; '.join(missing)}); "
            "use --backend auto or reference"
        )
