"""What the Triton kernels say they take, they take; in the interpreter on the CPU."""

from __future__ import annotations

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode

from sbrrt_fast.kernels import attention, rows, symmetric_kl
from sbrrt_fast.ops import attention as attention_op
from sbrrt_fast.ops import symmetric_kl as symmetric_kl_op
from sbrrt_fast.ops._backend import backends
from tests.ops.op_limits import CALLS, implementation, refusal

pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero|overflow):RuntimeWarning"  # of what masks leave out
)
DEVICE = "cpu" if backends.INTERPRETED else "cuda"


def test_limits_are_those_of_the_kernels():
    assert attention_op.HEAD_DIMS == attention.HEAD_DIMS
    assert attention_op.MAX_LENGTH == attention.MAX_LENGTH
    assert backends.TRITON.max_width == rows.MAX_WIDTH
    assert symmetric_kl_op.MAX_TRITON_CLASSES == symmetric_kl.MAX_CLASSES


@pytest.mark.parametrize("op", CALLS)
def test_what_is_taken_runs(op):
    why_not, seen = implementation(op, "triton").why_not, set()
    for what, args, kwargs in CALLS[op](DEVICE):
        reason = why_not(*args, **kwargs)
        seen.add(reason is None)
        if reason is None:
            assert refusal(op, "triton", args, kwargs) is None, what
    assert seen == {True, False}


@pytest.mark.parametrize("op", CALLS)
def test_a_gpu_has_the_interpreter_s_reasons_but_for_bfloat16(op, monkeypatch):
    why_not = implementation(op, "triton").why_not
    here = [why_not(*args, **kwargs) for _, args, kwargs in CALLS[op](DEVICE)]
    monkeypatch.setattr(backends, "INTERPRETED", False)
    with FakeTensorMode():
        there = [why_not(*args, **kwargs) for _, args, kwargs in CALLS[op]("cuda")]
    for ours, theirs in zip(here, there, strict=True):
        assert ours == theirs or "bfloat16, which Triton's interpreter" in ours
