"""All ops and which of their implementations can run here."""

from __future__ import annotations

from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops import dropout
from sbrrt_fast.ops.attention import attention_reference
from sbrrt_fast.ops.dispatch import Op, reference_only
from sbrrt_fast.ops.embed import embed_reference
from sbrrt_fast.ops.gelu import bias_gelu_reference
from sbrrt_fast.ops.layernorm import dropout_add_layernorm_reference
from sbrrt_fast.ops.smart_ascend import smart_ascend_reference
from sbrrt_fast.ops.symmetric_kl import symmetric_kl

OPS: tuple[Op, ...] = (
    reference_only("attention", attention_reference),
    reference_only("dropout_add_layernorm", dropout_add_layernorm_reference),
    reference_only("bias_gelu", bias_gelu_reference),
    reference_only("embed", embed_reference),
    reference_only("symmetric_kl", symmetric_kl),
    reference_only("smart_ascend", smart_ascend_reference),
    *dropout.OPS,
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
