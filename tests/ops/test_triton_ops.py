"""Every op in Triton: what is read, what is written, what is compiled."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sbrrt_fast.kernels.embed_tables import CHUNK
from tests.ops.backends import case_of, parts_of, run
from tests.ops.cases import OPS
from tests.ops.op_checks import BF16
from tests.ops.triton_checks import assert_compiles_once, by_name, poisoned, triton_calls
from tests.ops.triton_only import equal_but_for_order
from tests.ops.write_samples import written

pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero|overflow):RuntimeWarning"  # of what masks leave out
)
each_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def widened(x):
    return x.float() if isinstance(x, Tensor) and x.dtype == BF16 else x


# Attention multiplies matrices, which the interpreter does not in bfloat16.
READ = [op for op in OPS.values() if BF16 in op.samples[op.small] and op.name != "attention"]


@pytest.mark.parametrize("op", READ, ids=lambda op: op.name)
def test_bfloat16_is_read_exactly(op):
    """The interpreter truncates what is stored in it; what is read is compared with float32."""
    for call, arguments in triton_calls(op, op.samples[op.small]):
        wide = tree_map(widened, arguments)
        call(*arguments)
        call(*wide)
        names = written(call._opname)
        for argument, mine, other in zip(call._schema.arguments, arguments, wide, strict=True):
            if argument.name not in names:
                continue
            for a, b in zip(tree_leaves(mine), tree_leaves(other), strict=True):
                if a is None or a.dtype != BF16:
                    assert a is None or equal_but_for_order(a, b)
                else:
                    torch.testing.assert_close(a.float(), b, rtol=2**-7, atol=1e-30)


@each_op
def test_every_result_is_written(op, monkeypatch):
    """Fresh memory holds NaN, as it may."""
    names = [name for name in op.table("triton") if BF16 not in op.table("triton")[name]]
    for name in names[-1:] + names[:2]:
        case = case_of(op, op.table("triton")[name])
        with poisoned(monkeypatch):
            found = run(op, "triton", case)
            for part in parts_of(op, "triton"):
                assert not any(x.isnan().any() for x in getattr(found, part))


SIZES = {"embed": ((1, 17, 32, CHUNK), (CHUNK + 1, 5000))}  # the second has sums to join
OF_THEIR_OWN = ("attention", "adamw_ema_", "adamw_ema_rows_", "gradient_norm")


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.name not in OF_THEIR_OWN],
                         ids=lambda op: op.name)  # fmt: skip
def test_a_batch_of_another_size_compiles_nothing(op):
    """Nor does another site."""

    def launch(size):
        for call, arguments in triton_calls(op, op.sized(size)):
            given = by_name(call, arguments)
            call(**given | ({"site": size} if "site" in given else {}))

    for sizes in SIZES.get(op.name, ((1, 17, 32, 1000),)):
        assert_compiles_once(*(partial(launch, size) for size in sizes))
