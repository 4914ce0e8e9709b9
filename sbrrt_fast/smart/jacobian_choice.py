"""Which way J is applied: the first that the model can, tried once and remembered."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sbrrt_fast.smart.jacobians import (
    KINDS,
    AutogradJacobian,
    Forward,
    NoDerivative,
    Reverse,
    check_differentiable,
)
from sbrrt_fast.smart.model_function import ModelFunction


class Choice:
    """What has been found out about a model.

    Attributes:
        ascent, tangent: ways in order of ``KINDS``, of the ascent's products and of the linear
            branch's differentiated J delta; those that failed are gone.
        reasons: of those, the error's first line.
    """

    def __init__(self, has_one_output: bool):
        self.ascent = list(KINDS) if has_one_output else list(KINDS)[1:]
        self.tangent = list(self.ascent)
        self.reasons: dict[str, str] = {}
        self.tried: set[tuple[str, bool]] = set()


class ChosenJacobian:
    """``smart.ascent.Jacobian`` of one clean pass, by the first way that works.

    Args:
        choice: of the model; what fails here is struck out.
        model: of the clean pass. embeddings, logits: of it.
    """

    def __init__(self, choice: Choice, model: ModelFunction, embeddings: Tensor, logits: Tensor):
        self.choice, self.model = choice, model
        self.embeddings, self.logits = embeddings, logits
        self._made: dict[tuple[str, bool], AutogradJacobian] = {}

    @property
    def kind(self) -> str:
        """How the ascent's products are taken, or would be."""
        return self.choice.ascent[0]

    def jvp(self, delta: Tensor) -> Tensor:
        """J delta; differentiable where gradients are enabled.

        Raises:
            ValueError: the model has no derivative, or does not repeat itself.
        """
        if torch.is_grad_enabled():
            return self._first(self.choice.tangent, lambda kind: self._differentiable(kind, delta))
        return self._first(self.choice.ascent, lambda kind: self._product(kind, delta))

    def vjp(self, cotangents: Tensor) -> Tensor:
        """J^T cotangents."""
        return self._of(self.kind).vjp(cotangents)

    def _first(self, kinds: list[str], product: Callable[[str], Tensor]) -> Tensor:
        while True:
            try:
                return product(kinds[0])
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # torch raises nothing narrower
                if kinds[0] == "finite":
                    raise
                self.choice.reasons[kinds[0]] = str(error).partition("\n")[0]
                del kinds[0]

    def _of(self, kind: str, is_differentiated: bool = False) -> AutogradJacobian:
        key = kind, is_differentiated
        if key not in self._made:
            embeddings = self.embeddings
            if is_differentiated and not embeddings.requires_grad:
                embeddings = embeddings.detach().requires_grad_()
            self._made[key] = KINDS[kind](self.model, embeddings, self.logits)
        return self._made[key]

    def _product(self, kind: str, delta: Tensor) -> Tensor:
        jacobian = self._of(kind)
        if (kind, False) in self.choice.tried or kind == "rows":
            return jacobian.jvp(delta)
        if isinstance(jacobian, Forward | Reverse):
            outputs, tangent = jacobian.dual(delta)
            if not self._repeats(outputs):
                self._check_plain()
                raise NoDerivative("attention draws other dropout masks when it is written out")
        else:
            self._check_plain()
            tangent = jacobian.jvp(delta)
        self.choice.tried.add((kind, False))
        return tangent

    def _differentiable(self, kind: str, delta: Tensor) -> Tensor:
        """J delta with its graph; what cannot be differentiated fails when it is tried first."""
        jacobian = self._of(kind, is_differentiated=True)
        tangent = jacobian.jvp(delta)
        if (kind, True) not in self.choice.tried:
            check_differentiable(tangent)
            inputs, options = jacobian.embeddings, {"retain_graph": True, "allow_unused": True}
            torch.autograd.grad(tangent.sum(), inputs, **options)
            self.choice.tried.add((kind, True))
        return tangent

    def _check_plain(self) -> None:
        """ValueError unless the model gives the clean outputs again."""
        with torch.no_grad():
            again = self.model(self.embeddings)
        if not self._repeats(again):
            raise ValueError(
                "SmartRegularizer: the model does not give these logits for these embeddings "
                "again; give the logits of the same embeddings, of a model that repeats itself"
            )

    def _repeats(self, outputs: Tensor) -> bool:
        """Whether these are the clean outputs, up to what other kernels round."""
        clean = self.logits.detach()
        tolerance = self.model.eps(self.embeddings) ** 0.5
        apart = (outputs.detach() - clean).abs().max()
        return bool(apart <= tolerance * clean.abs().max().clamp(min=1e-3))
