"""Every op's forward-mode derivative on every backend, and torch.func's transforms."""

from __future__ import annotations

import torch

from tests.ops.backends import (
    DEVICES,
    FUSED,
    assert_right,
    computed,
    has_tangent,
    params,
    small,
)
from tests.ops.on_device import moved
from tests.ops.op_checks import float_tangent

each = params(FUSED, names=small, where=has_tangent)


@params(where=has_tangent)
def test_tangents(op, backend, sample):
    assert_right(op, backend, sample, "tangent")


def of_some(op, backend, sample):
    """The case where the backend runs it, a function of its inputs with tangents, and these."""
    case = moved(op.case(sample), DEVICES.get(backend, "cpu"))
    places = list(case.tangents)

    def function(*some):
        given = dict(zip(places, some, strict=True))
        inputs = [given.get(i, x) for i, x in enumerate(case.inputs)]
        return case.call(*inputs, backend=backend)

    return case, function, [case.inputs[i] for i in places], list(case.tangents.values())


@each
def test_function_transforms(op, backend, sample):
    case, function, primals, tangents = of_some(op, backend, sample)
    with torch.no_grad():  # else the tangent could be differentiated
        out, tangent = torch.func.jvp(function, tuple(primals), tuple(tangents))
    found = computed(op, backend, sample)
    assert torch.equal(out, found.value[0])
    assert torch.equal(tangent, found.tangent[0])
    if op.name != "symmetric_kl":  # whose gradients of higher order run on the reference
        pulled = torch.func.vjp(function, *primals)[1](case.grad)
        expected = [found.gradients[i] for i in case.tangents]
        assert all(torch.equal(a, b) for a, b in zip(pulled, expected, strict=True))


@each
def test_one_tangent_alone(op, backend, sample):
    """Where no other input has one, as where the others are zero."""
    _, function, primals, tangents = of_some(op, backend, sample)
    for i, (primal, tangent) in enumerate(zip(primals, tangents, strict=True)):
        zeros = [t if j == i else torch.zeros_like(t) for j, t in enumerate(tangents)]

        def of_one(x, i=i):
            return function(*primals[:i], x, *primals[i + 1 :])

        alone = float_tangent(of_one, [primal], [tangent])
        assert torch.equal(alone, float_tangent(function, primals, zeros))
