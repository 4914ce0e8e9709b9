"""The shapes that the fused attention takes, on every backend alike.

``csrc/common/attention_checks.h`` and ``kernels/attention.py`` refuse the others; what is said here
is why, before one of them is called.
"""

from __future__ import annotations

HEAD_DIMS = (32, 64)
MAX_LENGTH = 512
_NUM_HEADS_END, _POSITIONS_END = 2**16, 2**31


def shape_reason(hidden: int, num_heads: int, max_length: int, max_positions: int) -> str | None:
    """Why no fused attention takes these shapes, or None."""
    if max_length > MAX_LENGTH:
        return f"max_length is {max_length}, above {MAX_LENGTH}"
    if hidden not in [num_heads * head_dim for head_dim in HEAD_DIMS]:
        return f"the head dimension, {hidden} / {num_heads}, is neither 32 nor 64"
    if num_heads >= _NUM_HEADS_END:
        return f"there are {num_heads} heads, not below {_NUM_HEADS_END}"
    if max_positions >= _POSITIONS_END:
        return f"max_positions is {max_positions}, not below {_POSITIONS_END}"
    return None
