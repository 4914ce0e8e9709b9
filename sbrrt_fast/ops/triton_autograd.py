"""Autograd around the Triton ops: each op says its rule, and both Functions follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sbrrt_fast.ops.autodiff import needs_weight_gradients


@dataclass(frozen=True)
class Rule:
    """How an op is differentiated.

    Attributes:
        forward: (*inputs) -> out, or (out, *kept) with what the derivatives need.
        backward: (grad, inputs, kept, needs) -> a gradient per input, None where there is none;
            needs[i] says whether input i wants one.
        jvp: (tangents, inputs, kept) -> the tangent of out, or None without a forward mode; a
            tangent is None where the input has none.
        weights: numbers of the inputs that ``input_gradients_only`` leaves out.
        higher: (grad, inputs) -> the gradients with their graph, for derivatives of higher order;
            None forbids them.
    """

    forward: Callable
    backward: Callable[..., Sequence[Tensor | None]]
    jvp: Callable[..., Tensor] | None = None
    weights: tuple[int, ...] = ()
    higher: Callable[..., Sequence[Tensor | None]] | None = None

    def __call__(self, *inputs) -> Tensor:
        """out, differentiable."""
        with_tangent = self.jvp is not None and not torch.compiler.is_compiling()
        result = self._functions[with_tangent].apply(*inputs)
        return result[0] if isinstance(result, tuple) else result

    @cached_property
    def _functions(self) -> tuple[type, type]:
        """Without a tangent, which torch.compile cannot trace, and with one."""
        plain = _function_of(self)
        return plain, _with_tangent(plain, self)


def _function_of(rule: Rule) -> type[torch.autograd.Function]:
    class TritonFunction(torch.autograd.Function):
        @staticmethod
        def forward(*inputs):
            return rule.forward(*inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            kept = output[1:] if isinstance(output, tuple) else ()
            ctx.mark_non_differentiable(*kept)
            ctx.numbers = [None if isinstance(x, Tensor) else x for x in inputs]
            ctx.places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
            ctx.save_for_backward(*(inputs[i] for i in ctx.places), *kept)

        @staticmethod
        def backward(ctx, grad, *_):
            if rule.higher is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
                return _gradients(ctx, grad, rule)
            return tuple(rule.higher(grad, _restored(ctx)[0]))

    return TritonFunction


@once_differentiable
def _gradients(ctx, grad: Tensor, rule: Rule) -> tuple[Tensor | None, ...]:
    inputs, kept = _restored(ctx)
    needs = list(ctx.needs_input_grad)
    for i in rule.weights:
        needs[i] = needs_weight_gradients(ctx, i)
    return tuple(rule.backward(grad, inputs, kept, needs))


def _with_tangent(plain: type, rule: Rule) -> type[torch.autograd.Function]:
    class TritonFunctionWithTangent(plain):
        @staticmethod
        def setup_context(ctx, inputs, output):
            plain.setup_context(ctx, inputs, output)
            ctx.save_for_forward(*ctx.to_save)

        @staticmethod
        def jvp(ctx, *tangents):
            inputs, kept = _restored(ctx)
            tangent = rule.jvp(tangents, inputs, kept)
            return (tangent, *(None for _ in kept)) if kept else tangent

    return TritonFunctionWithTangent


def _restored(ctx) -> tuple[list, tuple[Tensor, ...]]:
    """(inputs, kept) as they were."""
    inputs, saved = list(ctx.numbers), ctx.saved_tensors
    for i, x in zip(ctx.places, saved, strict=False):
        inputs[i] = x
    return inputs, saved[len(ctx.places) :]
