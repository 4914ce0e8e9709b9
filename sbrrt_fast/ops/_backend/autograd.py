"""Autograd around writing ops: an op says its rule once, for every backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sbrrt_fast.ops._backend.backends import CPU, CUDA, TRITON, Backend
from sbrrt_fast.ops.autodiff import has_tangent, only_input_gradients

_BACKENDS = {backend.name: backend for backend in (CUDA, TRITON, CPU)}


@dataclass(frozen=True)
class Rule:
    """An op and its derivatives over the writing ops of any backend.

    Attributes:
        op: the writing op of the forward, whose schema tells which inputs are tensors.
        forward: (ops, *inputs) -> (out, *saved), what the derivatives need after the result.
        backward: (ops, grad, inputs, saved, needs) -> gradients of the first inputs, None where
            there is none; needs[i] says whether input i wants one. The other inputs have none.
        jvp: (ops, tangents, inputs, saved) -> the tangent of out, or None without a forward mode;
            a tangent is None where the input has none.
        weights: numbers of the inputs that ``input_gradients_only`` leaves out.
        saves_out: ``saved`` begins with the result itself.
        higher: (grad, *inputs) -> the gradients with their graph, for derivatives of higher order;
            None forbids them.
    """

    op: str
    forward: Callable[..., tuple[Tensor, ...]]
    backward: Callable[..., tuple[Tensor | None, ...]]
    jvp: Callable[..., Tensor] | None = None
    weights: tuple[int, ...] = ()
    saves_out: bool = False
    higher: Callable[..., tuple[Tensor | None, ...]] | None = None


class _Functions(NamedTuple):
    """A rule as autograd takes it.

    Attributes:
        eager: without ``setup_context``, for which torch inspects signatures at every call.
        traced: for torch.compile, which knows no forward mode. transformed: for torch.func.
    """

    eager: type[torch.autograd.Function]
    traced: type[torch.autograd.Function]
    transformed: type[torch.autograd.Function]


def differentiable(rule: Rule) -> Callable[..., Tensor]:
    """The rule's op: (backend, *inputs) -> out."""
    functions, indices = _functions_of(rule), _tensor_indices(rule.op)[0]

    def run(backend: Backend, *inputs) -> Tensor:
        compiles = torch.compiler.is_compiling()
        if not compiles and torch._C._are_functorch_transforms_active():
            return functions.transformed.apply(backend.name, *inputs)[0]
        if not _is_recorded([inputs[i] for i in indices]):
            return rule.forward(backend.ops, *inputs)[0]
        if compiles:
            return functions.traced.apply(backend.name, *inputs)[0]
        return functions.eager.apply(backend.name, *inputs)

    return run


def _is_recorded(tensors: list[Tensor]) -> bool:
    """Whether autograd, in reverse or forward mode, looks at a call with these inputs."""
    records = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return records or any(map(has_tangent, tensors))


def _tensor_indices(op: str) -> tuple[list[int], list[int]]:
    """Which inputs of a writing op are tensors, and which are not; none that may be left out."""
    schema = getattr(TRITON.ops, op)._schema
    arguments = [a for a in schema.arguments if not a.has_default_value()]
    inputs = [a.type.kind() for a in arguments if not (a.alias_info and a.alias_info.is_write)]
    tensors = [i for i, kind in enumerate(inputs) if kind == "TensorType"]
    return tensors, [i for i in range(len(inputs)) if i not in tensors]


# What torch.compile traces closes over functions and lists alone: it takes no other object.


def _contexts_of(rule: Rule) -> tuple[Callable, Callable]:
    """(save, restored): a call's inputs and outputs into a context, and out of it."""
    tensor_indices, other_indices = _tensor_indices(rule.op)
    num_tensors, first_saved = len(tensor_indices), 0 if rule.saves_out else 1
    indices = [*tensor_indices, *other_indices]
    order = sorted(range(len(indices)), key=indices.__getitem__)

    def save(ctx, inputs: tuple, outputs: tuple, forward_mode: bool) -> None:
        ctx.backend, *inputs = inputs
        ctx.others = [inputs[i] for i in other_indices]
        tensors = [*[inputs[i] for i in tensor_indices], *outputs[first_saved:]]
        ctx.save_for_backward(*tensors)
        if forward_mode:
            ctx.save_for_forward(*tensors)

    def restored(ctx) -> tuple[list, tuple[Tensor, ...]]:
        """(inputs, saved) as they were."""
        tensors = ctx.saved_tensors
        inputs = [*tensors[:num_tensors], *ctx.others]
        return [inputs[i] for i in order], tensors[num_tensors:]

    return save, restored


def _derivatives_of(rule: Rule, restored: Callable) -> tuple[Callable, Callable]:
    """(backward, jvp) as a Function has them; their first input is the backend's name."""
    backward_, jvp_, higher, weights = rule.backward, rule.jvp, rule.higher, rule.weights
    num_inputs = sum(map(len, _tensor_indices(rule.op)))

    def padded(gradients: tuple) -> tuple:
        return None, *gradients, *[None] * (num_inputs - len(gradients))

    def gradients(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, saved = restored(ctx)
        needs = list(ctx.needs_input_grad[1:])
        if only_input_gradients():
            for i in weights:
                needs[i] = False
        return padded(backward_(_BACKENDS[ctx.backend].ops, grad, inputs, saved, needs))

    def backward(ctx, grad: Tensor, *_) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return gradients(ctx, grad)
        if higher is not None:
            return padded(tuple(higher(grad, *restored(ctx)[0])))
        with torch.no_grad():
            grads = gradients(ctx, grad)
        return _of_first_order(grads, (grad, *ctx.saved_tensors))

    def jvp(ctx, _backend, *tangents) -> Tensor:
        inputs, saved = restored(ctx)
        return jvp_(_BACKENDS[ctx.backend].ops, tangents, inputs, saved)

    return backward, jvp


class _FirstOrder(torch.autograd.Function):
    """(number of sources, *sources, *gradients) -> gradients, whose differentiation raises."""

    @staticmethod
    def forward(ctx, num_sources, *tensors):
        return tuple(x.view_as(x) for x in tensors[num_sources:])

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("the gradients of sbrrt's ops cannot be differentiated")


def _of_first_order(
    grads: tuple[Tensor | None, ...], sources: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients that raise where they are differentiated, on any way to their sources."""
    wanted = [g for g in grads if g is not None]
    results = iter(_FirstOrder.apply(len(sources), *sources, *wanted))
    return tuple(g if g is None else next(results) for g in grads)


def _functions_of(rule: Rule) -> _Functions:
    forward_, has_jvp = rule.forward, rule.jvp is not None
    save, restored = _contexts_of(rule)
    backward, jvp = _derivatives_of(rule, restored)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx, backend, *inputs):
            outputs = forward_(_BACKENDS[backend].ops, *inputs)
            save(ctx, (backend, *inputs), outputs, has_jvp)
            return outputs[0]

    class Traced(torch.autograd.Function):
        @staticmethod
        def forward(backend, *inputs):
            return forward_(_BACKENDS[backend].ops, *inputs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.mark_non_differentiable(*output[1:])
            save(ctx, inputs, output, False)

    class Transformed(Traced):
        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.mark_non_differentiable(*output[1:])
            ctx.num_others = len(output) - 1
            save(ctx, inputs, output, has_jvp)

    for function in (Eager, Traced, Transformed):
        function.backward = staticmethod(backward)
    if has_jvp:
        Eager.jvp = staticmethod(jvp)
        Transformed.jvp = staticmethod(
            lambda ctx, *tangents: (jvp(ctx, *tangents), *[None] * ctx.num_others)
        )
    return _Functions(Eager, Traced, Transformed)
