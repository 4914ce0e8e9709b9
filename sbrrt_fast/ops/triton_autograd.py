"""Autograd around the Triton ops: each op says its rule, and both Functions follow from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbrrt_fast.ops import triton_ops
from sbrrt_fast.ops.autodiff import needs_weight_gradients


def differentiable(
    name: str,
    backward: Callable,
    jvp: Callable | None = None,
    *,
    weights: tuple[int, ...] = (),
    higher: Callable | None = None,
) -> Callable[..., Tensor]:
    """An op ``triton_ops.ops.<name>`` with its derivatives: (*inputs) -> out.

    The op returns out, or (out, *kept) with what the derivatives need. Under torch.compile its
    backward is registered with it, so that a graph has the op itself; else a Function runs, which
    also knows the forward mode.

    Args:
        backward: (grad, inputs, kept, needs) -> a gradient per input, None where there is none;
            needs[i] says whether input i wants one.
        jvp: (tangents, inputs, kept) -> the tangent of out, or None without a forward mode; a
            tangent is None where the input has none.
        weights: numbers of the inputs that ``input_gradients_only`` leaves out.
        higher: (grad, inputs) -> the gradients with their graph, for derivatives of higher order;
            None forbids them.
    """
    function = _function_of(name, backward, weights, higher)
    if jvp is not None:
        function = _with_tangent(function, jvp)
    triton_ops.register_backward(name, function.backward, _keep)

    def run(*inputs) -> Tensor:
        if torch.compiler.is_compiling():
            result = getattr(triton_ops.ops, name)(*inputs)
        else:
            result = function.apply(*inputs)
        return result[0] if isinstance(result, tuple) else result

    return run


def _keep(ctx, inputs: tuple, output) -> None:
    ctx.numbers = [None if isinstance(x, Tensor) else x for x in inputs]
    ctx.places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
    kept = output[1:] if isinstance(output, tuple) else ()
    ctx.save_for_backward(*(inputs[i] for i in ctx.places), *kept)


def _function_of(name: str, backward_, weights, higher) -> type[torch.autograd.Function]:
    @once_differentiable
    def gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, kept = _restored(ctx)
        needs = list(ctx.needs_input_grad)
        for i in weights:
            needs[i] = needs_weight_gradients(ctx, i)
        return tuple(backward_(grad, inputs, kept, needs))

    class TritonFunction(torch.autograd.Function):
        @staticmethod
        def forward(*inputs):
            return getattr(triton_ops.ops, name)(*inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.mark_non_differentiable(*(output[1:] if isinstance(output, tuple) else ()))
            _keep(ctx, inputs, output)

        @staticmethod
        def backward(ctx, grad, *_):
            if higher is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return gradients(ctx, grad)
            return tuple(higher(grad, _restored(ctx)[0]))

    return TritonFunction


def _with_tangent(plain, jvp_) -> type[torch.autograd.Function]:
    """The same with its forward-mode derivative."""

    class TritonFunctionWithTangent(plain):
        @staticmethod
        def setup_context(ctx, inputs, output):
            plain.setup_context(ctx, inputs, output)
            ctx.save_for_forward(*ctx.to_save)

        @staticmethod
        def jvp(ctx, *tangents):
            inputs, kept = _restored(ctx)
            tangent = jvp_(tangents, inputs, kept)
            return (tangent, *(None for _ in kept)) if kept else tangent

    return TritonFunctionWithTangent


def _restored(ctx) -> tuple[list, tuple[Tensor, ...]]:
    """(inputs, kept) as they were."""
    inputs, saved = list(ctx.numbers), ctx.saved_tensors
    for i, x in zip(ctx.places, saved, strict=False):
        inputs[i] = x
    return inputs, saved[len(ctx.places) :]
