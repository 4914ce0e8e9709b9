"""Ways to apply a model's Jacobian J at the embeddings of a clean pass; ``smart.ascent.Jacobian``.

J^T c is a vector-Jacobian product (VJP) over the clean activations in all of them. J delta is

- ``rows``: a dot product with J itself, where each example has one output
  (``docs/math/jacobian.md``);
- ``forward``: a Jacobian-vector product (JVP) in forward mode;
- ``reverse``: the derivative of u -> (J^T u) . delta, by two reverse passes;
- ``finite``: a central difference of two forward passes.

``smart.jacobian_choice`` chooses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.smart.ascent import unit_scale
from sbrrt_fast.smart.model_function import ModelFunction, uncached_autocast
from sbrrt_fast.smart.written_out import WrittenOut

INDEPENDENT = "SmartRegularizer: model_fn's result does not depend on its embeddings"


class NoDerivative(RuntimeError):
    """This way of applying J is not open to the model."""


class AutogradJacobian:
    """J of ``clean_fn`` at the embeddings, in forward and in reverse mode.

    Args:
        logits: ``clean_fn(embeddings)``, computed before. Where both carry a graph ``vjp`` pulls
            back through it.
    """

    def __init__(self, clean_fn: Callable[[Tensor], Tensor], embeddings: Tensor, logits: Tensor):
        self.clean_fn, self.embeddings, self.logits = clean_fn, embeddings, logits

    def jvp(self, delta: Tensor) -> Tensor:
        """J delta; differentiable where gradients are enabled."""
        if torch.is_grad_enabled():
            return _tangent(self._dual(self.embeddings, delta))
        with uncached_autocast(self.embeddings):
            return _tangent(self._dual(self.embeddings.detach(), delta))

    def vjp(self, cotangents: Tensor) -> Tensor:
        """J^T cotangents; no weight gradient is computed."""
        logits, embeddings = self.logits, self.embeddings
        if logits.requires_grad and embeddings.requires_grad:
            with input_gradients_only():
                return _gradient(logits, embeddings, cotangents, retain_graph=True)
        with torch.enable_grad(), input_gradients_only():
            point = embeddings.detach().requires_grad_()
            return _gradient(self.clean_fn(point), point, cotangents)

    def _dual(self, point: Tensor, delta: Tensor) -> tuple[Tensor, Tensor | None]:
        """The outputs and their tangent, of one forward-mode pass."""
        with forward_ad.dual_level():
            dual = self.clean_fn(forward_ad.make_dual(point, delta))
            return forward_ad.unpack_dual(dual)


class Forward(AutogradJacobian):
    """In forward mode, with attention written out."""

    def jvp(self, delta: Tensor) -> Tensor:
        return self.dual(delta)[1]

    def dual(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs and J delta."""
        with _eagerly(), WrittenOut(differentiable=torch.is_grad_enabled()):
            point = self.embeddings if torch.is_grad_enabled() else self.embeddings.detach()
            outputs, tangent = self._dual(point, delta)
        if tangent is None:
            raise NoDerivative("the outputs have no tangent")
        return outputs, tangent


class Reverse(AutogradJacobian):
    """J delta as a derivative of J^T u in u."""

    def jvp(self, delta: Tensor) -> Tensor:
        return self._dual_by_pulls(delta)[1]

    def dual(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs and J delta, after a look at whether J^T u has all of its derivatives."""
        return self._dual_by_pulls(delta, check_differentiable)

    def _dual_by_pulls(
        self, delta: Tensor, check: Callable[[Tensor], None] | None = None
    ) -> tuple[Tensor, Tensor]:
        is_differentiated = torch.is_grad_enabled()
        context = nullcontext() if is_differentiated else uncached_autocast(self.embeddings)
        with context, torch.enable_grad(), _eagerly(), WrittenOut(differentiable=True):
            point = _leaf_or_same(self.embeddings, is_differentiated)
            outputs = self.clean_fn(point)
            cotangents = torch.zeros_like(outputs, requires_grad=True)
            pulled = _gradient(outputs, point, cotangents, create_graph=True)
            if check is not None:
                check(pulled)
            (tangent,) = torch.autograd.grad(
                pulled, cotangents, delta.to(pulled.dtype), create_graph=is_differentiated
            )
        return outputs, tangent


class Finite(AutogradJacobian):
    """J delta by a central difference, at a distance that balances rounding and curvature."""

    clean_fn: ModelFunction

    def jvp(self, delta: Tensor) -> Tensor:
        x = self.embeddings
        size = x.detach().float().square().mean().sqrt().to(x.dtype)
        step = size * self.clean_fn.eps(x) ** (1 / 3) / unit_scale(delta)
        return (self.clean_fn(x + step * delta) - self.clean_fn(x - step * delta)) / (2.0 * step)


class Rows(AutogradJacobian):
    """J of examples with one number each, whose tokens are their own: one row per example.

    Args:
        logits: values [num_sequences], or two classes' logits, whose number is the log-odds.
            ``embeddings`` are [num_sequences, max_length, hidden].
    """

    def __init__(self, clean_fn: Callable[[Tensor], Tensor], embeddings: Tensor, logits: Tensor):
        super().__init__(clean_fn, embeddings, logits)
        self._rows: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """[num_sequences, max_length, hidden], float32 or more; one pull-back, when first asked."""
        if self._rows is None:
            rows = super().vjp(_ones(self.logits))
            self._rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return self._rows

    def jvp(self, delta: Tensor) -> Tensor:
        rows = self._differentiable_rows() if torch.is_grad_enabled() else self.rows
        numbers = (rows * delta).sum(dim=(1, 2))
        return numbers if self.logits.dim() == 1 else torch.stack([-numbers, numbers], 1) / 2.0

    def vjp(self, cotangents: Tensor) -> Tensor:
        numbers = cotangents
        if cotangents.dim() == 2:
            numbers = (cotangents[:, 1] - cotangents[:, 0]) / 2.0
        return (self.rows * numbers[:, None, None]).to(self.embeddings.dtype)

    def _differentiable_rows(self) -> Tensor:
        with _eagerly(), WrittenOut(differentiable=True):
            point = _leaf_or_same(self.embeddings, True)
            outputs = self.clean_fn(point)
            return _gradient(outputs, point, _ones(outputs), create_graph=True)


KINDS: dict[str, type[AutogradJacobian]] = {
    "rows": Rows,
    "forward": Forward,
    "reverse": Reverse,
    "finite": Finite,
}


def check_differentiable(x: Tensor) -> None:
    """NoDerivative if a function in x's graph is differentiable once only.

    ``torch.autograd.grad`` would leave its part out without a word.
    """
    seen, nodes = set(), [x.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if node.name().rpartition("::")[2] in ("DelayedError", "Error", "NotImplemented"):
            raise NoDerivative("the model has a function that can be differentiated once only")
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]


def _ones(outputs: Tensor) -> Tensor:
    """The cotangent of the outputs for one number per example."""
    ones = torch.ones_like(outputs)
    return ones if outputs.dim() == 1 else ones * ones.new_tensor([-1.0, 1.0])


def _leaf_or_same(x: Tensor, is_differentiated: bool) -> Tensor:
    """What a graph from the embeddings on begins with."""
    return x if is_differentiated and x.requires_grad else x.detach().requires_grad_()


def _gradient(outputs: Tensor, x: Tensor, cotangents: Tensor, **options: bool) -> Tensor:
    if not outputs.requires_grad:
        raise ValueError(INDEPENDENT)
    cotangents = cotangents.to(outputs.dtype)
    try:
        (grad,) = torch.autograd.grad(outputs, x, cotangents, allow_unused=True, **options)
    except RuntimeError as error:
        if "use_reentrant=True" not in str(error):
            raise
        raise ValueError(
            "SmartRegularizer: the ascent asks for the embeddings' gradient alone, which reentrant "
            "checkpointing cannot give: use use_reentrant=False (transformers: "
            "gradient_checkpointing_kwargs={'use_reentrant': False})"
        ) from error
    if grad is None:
        raise ValueError(INDEPENDENT)
    return grad


def _tangent(dual: tuple[Tensor, Tensor | None]) -> Tensor:
    if dual[1] is None:
        raise ValueError(INDEPENDENT)
    return dual[1]


@contextmanager
def _eagerly() -> Iterator[None]:
    """Compiled modules run as they were written: compiled graphs have first derivatives alone."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
