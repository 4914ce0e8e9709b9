"""Every op's gradients on every backend, and what autograd records and asks of them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from sbrrt_fast.ops.autodiff import input_gradients_only
from tests.ops.backends import (
    DEVICES,
    FUSED,
    assert_right,
    computed,
    has_tangent,
    is_differentiated,
    params,
    small,
)
from tests.ops.cases import OPS
from tests.ops.on_device import moved
from tests.ops.op_checks import Calls

each = params(FUSED, names=small, where=is_differentiated)


def once_only(op, backend):
    """symmetric_kl's gradients have gradients of their own."""
    return op.is_differentiated and op.name != "symmetric_kl"


class Recorded:
    """A call of which autograd records a graph for some inputs."""

    def __init__(self, op, backend, sample, wanted=None):
        self.case = moved(op.case(sample), DEVICES.get(backend, "cpu"))
        inputs = self.case.inputs
        wanted = range(len(inputs)) if wanted is None else wanted
        self.leaves = [x.requires_grad_(i in wanted) for i, x in enumerate(inputs)]
        self.constants = [x.clone() for x in self.case.constants]
        self.out = self.case.function(backend)(*self.leaves, *self.constants)

    def backward(self):
        self.out.backward(self.case.grad)


@params(where=is_differentiated)
def test_gradients(op, backend, sample):
    assert_right(op, backend, sample, "gradients")


@each
def test_only_wanted_gradients_are_computed(op, backend, sample):
    """Of one input after the other: its gradient as it was among all, and no other."""
    whole = computed(op, backend, sample).gradients
    for i, expected in enumerate(whole):
        call = Recorded(op, backend, sample, [i])
        with Calls() as calls:
            call.backward()
        for j, leaf in enumerate(call.leaves):
            assert leaf.grad is None if j != i else torch.equal(leaf.grad, expected)
        (name, arguments), *others = calls.seen
        assert name == op.writing[1]
        has_sums = op.name == "dropout_add_layernorm" and i in op.weights
        assert [name for name, _ in others] == ["column_sums_into"] * has_sums
        assert weight_results(op, arguments) <= (set(op.weights) if has_sums else {i})


def weight_results(op, arguments) -> set[int]:
    """Numbers of the weights whose gradients a backward op writes; a LayerNorm's come together."""
    if op.name == "dropout_add_layernorm":
        *_, segments, sums = arguments
        assert (segments is None) == (sums is None)
        return set() if sums is None else set(op.weights)
    found = arguments[-len(op.weights) :] if op.weights else ()
    return {i for i, x in zip(op.weights, found, strict=True) if x is not None}


@params(FUSED, names=small, where=lambda op, backend: bool(op.weights))
def test_weights_get_none_where_only_inputs_are_asked(op, backend, sample):
    whole = computed(op, backend, sample).gradients
    call = Recorded(op, backend, sample)
    with Calls() as calls, input_gradients_only():
        call.backward()
    for i, (leaf, expected) in enumerate(zip(call.leaves, whole, strict=True)):
        assert leaf.grad is None if i in op.weights else torch.equal(leaf.grad, expected)
    for _, arguments in calls.seen:
        assert not weight_results(op, arguments)
    again = Recorded(op, backend, sample)
    again.backward()
    assert all(leaf.grad is not None for leaf in again.leaves)


def test_the_flag_is_what_it_was_after_an_error_and_nested():
    op = OPS["bias_gelu"]

    def has_bias_gradient():
        call = Recorded(op, "cpu", op.samples[op.small])
        call.backward()
        return call.leaves[1].grad is not None

    with pytest.raises(KeyError), input_gradients_only(), input_gradients_only():
        raise KeyError
    assert has_bias_gradient()
    with input_gradients_only():
        with input_gradients_only():
            pass
        assert not has_bias_gradient()


@each
def test_nothing_is_recorded_where_no_gradient_is_wanted(op, backend, sample):
    call = Recorded(op, backend, sample)
    assert call.out.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = call.case.call(*call.leaves, backend=backend)
        assert not found.requires_grad
        assert torch.equal(found, call.out)
    assert not Recorded(op, backend, sample, []).out.requires_grad


@params(FUSED, names=small, where=once_only)
def test_the_gradients_cannot_be_differentiated(op, backend, sample):
    """Backwards, and on the way to a leaf that the loss reaches in another way as well."""
    call = Recorded(op, backend, sample)
    (first, *_) = torch.autograd.grad(call.out, call.leaves, call.case.grad, create_graph=True)
    assert torch.equal(first, computed(op, backend, sample).gradients[0])
    loss = first.square().sum() + call.out.sum()
    with pytest.raises(RuntimeError, match="sbrrt's ops cannot be differentiated"):
        torch.autograd.grad(loss, call.leaves[0], retain_graph=True)
    with pytest.raises(RuntimeError, match="sbrrt's ops cannot be differentiated"):
        first.square().sum().backward()


@each
def test_a_saved_tensor_that_has_changed_raises(op, backend, sample):
    """Each input, and each tensor besides that the backward pass reads."""
    case = op.case(sample)
    for i in range(len(case.inputs) + len(case.constants)):
        call = Recorded(op, backend, sample)
        with torch.no_grad():
            [*call.leaves, *call.constants][i].mul_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            call.backward()


@each
def test_nothing_is_kept_after_use(op, backend, sample):
    gc.disable()
    try:
        case = moved(op.case(sample), DEVICES.get(backend, "cpu"))
        leaves = [x.requires_grad_() for x in case.inputs]
        inputs = [2 * x for x in leaves]
        kept = [weakref.ref(x) for x in inputs]
        out = case.call(*inputs, backend=backend)
        del inputs
        assert any(x() is not None for x in kept)  # the node keeps what backward needs
        out.backward(case.grad, retain_graph=False)
        with pytest.raises(RuntimeError, match="second time"):
            out.backward(case.grad)
        del out
        assert all(x() is None for x in kept)
    finally:
        gc.enable()


@params(FUSED, names=small, where=has_tangent)
def test_tangent_and_gradient_are_adjoint(op, backend, sample):
    found, case = computed(op, backend, sample), op.case(sample)
    pairs = [(found.gradients[i].cpu(), t) for i, t in case.tangents.items()]
    pulled = sum((g.double() * t.double()).sum() for g, t in pairs)
    tangent, grad = found.tangent[0].cpu().double(), case.grad.double()
    eps = max(torch.finfo(x.dtype).eps for x in case.inputs)
    assert abs(pulled - (tangent * grad).sum()) < 100 * eps * tangent.norm() * grad.norm()
