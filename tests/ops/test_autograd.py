"""The C++ nodes of the autograd graph: as the Python functions that torch.compile traces."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.ops import attention, embed, gelu, layernorm
from sbrrt_fast.ops.autodiff import input_gradients_only
from tests.ops.op_checks import BF16, F32, RNG, SITE, Calls

HIDDEN, HEADS, ROWS, EPS, P = 64, 2, 23, 1e-12, 0.1


class Case:
    """A call ``op(*tensors, ...)`` and what its two nodes are.

    Attributes:
        op: the native op, with its node.
        function: the Python function.
        arguments: of both.
        inputs: the numbers of those that have a gradient.
        weights: the numbers of those whose gradient ``input_gradients_only`` leaves out.
    """

    def __init__(self, name: str, dtype: torch.dtype = F32):
        torch.manual_seed(0)
        self.op = getattr(torch.ops.sbrrt, name).default
        self.function, arguments, self.inputs, self.weights = CASES[name](dtype)
        self.arguments = [
            x.requires_grad_() if i in self.inputs else x for i, x in enumerate(arguments)
        ]

    def leaves(self, numbers=None):
        return [self.arguments[i] for i in (self.inputs if numbers is None else numbers)]

    def python(self):
        out = self.function.apply(*self.arguments)
        return out if isinstance(out, torch.Tensor) else out[0]

    def native(self):
        return self.op(*self.arguments)


def layernorm_case(dtype):
    bias, weight, shift = torch.randn(3, HIDDEN)
    tensors = torch.randn(ROWS, HIDDEN).to(dtype), bias, torch.randn(ROWS, HIDDEN), weight, shift
    arguments = *tensors, EPS, P, RNG, SITE, torch.arange(ROWS) * HIDDEN
    return layernorm._Function, arguments, range(5), (1, 3, 4)


def gelu_case(dtype):
    arguments = torch.randn(ROWS, HIDDEN).to(dtype), torch.randn(HIDDEN)
    return gelu._Function, arguments, range(2), (1,)


def embed_case(dtype):
    tokens = torch.arange(ROWS) % 7, torch.arange(ROWS), torch.arange(ROWS) % 2
    tables = [torch.randn(rows, HIDDEN).to(dtype) for rows in (101, 32, 2)]
    dropout = P, RNG, SITE, torch.arange(ROWS) * HIDDEN
    arguments = *tokens, *tables, *torch.randn(2, HIDDEN), EPS, *dropout
    return embed._Function, arguments, range(3, 8), range(3, 8)


def attention_case(dtype):
    tensors = torch.randn(3, ROWS, HIDDEN).to(dtype).unbind()
    cu_seqlens = torch.tensor([0, 5, 5, ROWS], dtype=torch.int32)
    numbers = ROWS, HEADS, P, RNG, SITE, torch.arange(3), 32
    return attention._Traced, (*tensors, cu_seqlens, *numbers), range(3), ()


CASES = {
    "attention": attention_case,
    "bias_gelu": gelu_case,
    "dropout_add_layernorm": layernorm_case,
    "embed": embed_case,
}
every_op = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=["fp32", "bf16"])
@every_op
def test_same_bits_as_the_python_function(name, dtype):
    case, results = Case(name, dtype), []
    for run in (case.native, case.python):
        y = run()
        grad = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
        results.append([y.detach(), *torch.autograd.grad(y, case.leaves(), grad)])
    for ours, expected in zip(*results, strict=True):
        assert ours.dtype == expected.dtype
        assert torch.equal(ours, expected)


@every_op
def test_nothing_is_recorded_where_no_gradient_is_wanted(name):
    case = Case(name)
    y = case.native()
    assert y.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = case.native()
        assert not found.requires_grad
        assert torch.equal(found, y)
    case.arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in case.arguments]
    assert not case.native().requires_grad


def backward_calls(case, wanted):
    """The last argument of every backward op that runs for the inputs numbered ``wanted``."""
    with Calls() as calls:
        y = case.native()
        torch.autograd.grad(y, case.leaves(wanted), torch.ones_like(y), allow_unused=True)
    return [args[-1] for name, args in calls.seen if name.endswith("_backward")]


@pytest.mark.parametrize("name", ["bias_gelu", "dropout_add_layernorm", "embed"])
def test_weight_gradients_are_computed_where_they_are_wanted(name):
    """For all inputs, for one activation or table, and where only activations are asked."""
    case = Case(name)
    needs = {"embed": ([True] * 5, [True, *[False] * 4], [False] * 5)}
    every, first, none = needs.get(name, (True, False, False))
    assert backward_calls(case, case.inputs) == [every]
    assert backward_calls(case, case.inputs[:1]) == [first]
    with input_gradients_only():
        assert backward_calls(case, case.inputs) == [none]
        y = case.native()
        grads = torch.autograd.grad(y, case.leaves(), torch.ones_like(y), allow_unused=True)
    missing = {i for i, grad in zip(case.inputs, grads, strict=True) if grad is None}
    assert missing == set(case.weights)
    assert backward_calls(case, case.inputs) == [every]


def test_the_flag_is_what_it_was_after_an_error_and_nested():
    case = Case("bias_gelu")
    with pytest.raises(KeyError), input_gradients_only(), input_gradients_only():
        raise KeyError
    assert backward_calls(case, [0, 1]) == [True]
    with input_gradients_only():
        with input_gradients_only():
            pass
        assert backward_calls(case, [0, 1]) == [False]


@every_op
def test_the_gradients_cannot_be_differentiated(name):
    case = Case(name)
    y = case.native()
    first = case.leaves()[0]
    (found,) = torch.autograd.grad(y, first, torch.ones_like(y), create_graph=True)
    (expected,) = torch.autograd.grad(case.python(), first, torch.ones_like(y))
    assert torch.equal(found, expected)
    with pytest.raises(RuntimeError, match="gradients of sbrrt's ops cannot be differentiated"):
        found.square().sum().backward()


@pytest.mark.parametrize(
    ("name", "changed"),
    [("attention", 0), ("attention", 9), ("bias_gelu", 0), ("bias_gelu", 1)]
    + [("dropout_add_layernorm", i) for i in (0, 2, 3, 7, 9)]
    + [("embed", i) for i in (0, 3, 6, 10)],
)
def test_a_saved_tensor_that_has_changed_raises(name, changed):
    case = Case(name)
    y = case.native()
    with torch.no_grad():
        case.arguments[changed].mul_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_attention_saves_its_result():
    y = Case("attention").native()
    with torch.no_grad():
        y.mul_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every_op
def test_nothing_is_kept_after_the_backward(name):
    case = Case(name)
    y = case.native()
    y.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        y.sum().backward()


@every_op
def test_a_tangent_is_refused(name):
    """The Python functions are there for these."""
    case = Case(name)
    first = case.inputs[0]
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        x = case.arguments[first].detach()
        case.arguments[first] = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="jvp is not implemented"):
            case.native()


@every_op
def test_opcheck(name):
    """Schema, autograd registration, meta implementation, and gradients under tracing."""
    case = Case(name)
    torch.library.opcheck(case.op, tuple(case.arguments))
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in case.arguments]
    torch.library.opcheck(case.op, tuple(detached))
