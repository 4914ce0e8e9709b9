"""torch.library.opcheck of every writing op of both libraries, with arguments of the table."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from tests.ops.backends import FUSED, computed, has_tangent, params
from tests.ops.cases import OPS
from tests.ops.op_checks import Calls
from tests.ops.write_samples import writing_ops

WITHOUT_A_PUBLIC_OP = {"column_sums_into", "mm_into"}


def checked(op, backend):
    """A usual one, one without rows and one with gaps between them."""
    kinds = ("no rows", "no tokens", "no examples"), ("gaps", "strided")
    found = [next((n for n in op.samples if n.startswith(kind)), op.small) for kind in kinds]
    return list(dict.fromkeys([op.small, *found]))


def native_calls(op, backend, sample) -> list[tuple]:
    """(op, arguments) of every writing op behind a value, its gradients, one of them, a tangent."""
    with Calls() as calls:
        found = computed.__wrapped__(op, backend, sample)
        assert found.value
        if op.is_differentiated:
            assert found.gradients and found.gradient_of_the_first is not None
        if has_tangent(op, backend):
            assert found.tangent
    different = {}
    for op, arguments in calls.ops:
        different.setdefault((op, kind_of(arguments)), arguments)
    detached = partial(tree_map_only, Tensor, Tensor.detach)
    return [(op, detached(arguments)) for (op, _), arguments in different.items()]


def kind_of(arguments: tuple) -> tuple:
    """What makes a call another kind: words, and results that are not wanted."""
    return tuple(x for x in arguments if x is None or isinstance(x, str))


@params(FUSED, names=checked)
def test_opcheck(op, backend, sample):
    calls = native_calls(op, backend, sample)
    called = {overload._opname for overload, _ in calls}
    assert called - WITHOUT_A_PUBLIC_OP == set(op.writing)
    for overload, arguments in calls:
        torch.library.opcheck(overload, arguments)


@pytest.mark.parametrize("library", ["sbrrt", "sbrrt_triton"])
def test_every_schema_is_checked(library):
    checked = {name for op in OPS.values() for name in op.writing}
    assert checked | WITHOUT_A_PUBLIC_OP >= set(writing_ops(library)) >= checked
