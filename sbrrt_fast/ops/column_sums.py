"""Column sums of several layers at once, each row times a weight.

    out[l, j] = sum over r of weights[r] x[l, r, j]

Only written-out passes and backward rules call it, so it has no derivative of its own.
"""

from __future__ import annotations

from torch import Tensor

from sbrrt_fast.ops._backend.library import define, empty_floats

# x [num_layers, num_rows, width] in a compute dtype; weights float32, of the first rows, or None:
# the others have 1;
# out float32 [num_layers, width]
define(
    "column_sums_into(Tensor x, Tensor? weights, Tensor(a!) out)", "column_sums.column_sums_into"
)


def column_sums(ops, x: Tensor) -> Tensor:
    """The sums over the rows of x [num_rows, width], float32 [width].

    Args:
        ops: a backend's writing ops.
    """
    out = empty_floats(x, 1, x.shape[1])
    ops.column_sums_into(x[None], None, out)
    return out[0]
