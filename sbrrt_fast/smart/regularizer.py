"""SMART's smoothness regulariser R_s, usable in any training loop.

    regularizer = SmartRegularizer(model_fn)
    smart = regularizer(embeddings, logits, mask)
    (task_loss + weight * smart.loss).backward()

``smart.ascent`` has the mathematics; here autograd applies the model's Jacobian: J delta is a
Jacobian-vector product (JVP, in forward mode), J^T c a vector-Jacobian product (VJP) over the clean
activations. Source: arXiv 1911.03437, section 3.1 and Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.smart.ascent import Ascent, Tokens, tangent_gradient
from sbrrt_fast.smart.divergence import SYMMETRIC_KL, Divergence
from sbrrt_fast.smart.presets import resolve

ModelFn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SmartOutput:
    """One evaluation of the regulariser.

    Attributes:
        loss: R_s, a scalar; gradients flow through the clean and the adversarial output.
        delta: the perturbation, of the embeddings' shape, detached.
        branch: ``forward`` or ``linear``, how R_s was evaluated.
    """

    loss: Tensor
    delta: Tensor
    branch: str


class SmartRegularizer:
    """R_s of a model given as a function of its embeddings.

    Args:
        model_fn: embeddings -> logits [num_examples, num_classes], or values [num_examples] with
            ``divergence=SQUARED``. It must be deterministic (dropout off, or masks fixed). Unless
            ``gradient`` is ``finite`` it needs forward-mode derivatives, which torch's
            ``scaled_dot_product_attention`` lacks (transformers: ``attn_implementation="eager"``).
        config: the mechanism's settings; ``SmartConfig()`` is the ``adversarial`` preset. Its
            ``weight`` is for the caller to apply.
        divergence: ``SYMMETRIC_KL`` or ``SQUARED``.
        backend: implementation of the ascent step.
        clean_fn: the model as it gave the clean logits, where ``model_fn`` has other dropout masks;
            the tangent of the ascent is its.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        config: SmartConfig | None = None,
        divergence: Divergence = SYMMETRIC_KL,
        backend: str = "auto",
        clean_fn: ModelFn | None = None,
    ):
        self.model_fn, self.backend = model_fn, backend
        self.clean_fn = clean_fn or model_fn
        self.config = resolve(config or SmartConfig())
        self.divergence = divergence

    def __call__(
        self,
        embeddings: Tensor,
        logits: Tensor,
        mask: Tensor,
        *,
        sequence: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> SmartOutput:
        """R_s at these embeddings.

        Args:
            embeddings: [num_sequences, max_length, hidden], or [num_tokens, hidden] with
                ``sequence``; the embedding layer's output.
            logits: ``model_fn(embeddings)``, as already computed for the task loss. Where both
                carry a graph the ascent pulls back through it.
            mask: bool, the embeddings' shape without the last dimension; True where a token may
                be perturbed (never at padding).
            sequence: int64 [num_tokens], the sequence of each token, ascending from 0.
            noise: standard normal, the embeddings' shape; drawn from torch's generator if None.

        Raises:
            ValueError: shapes do not fit.
            ConfigError: the setting asks for differences below the compute dtype's resolution.
        """
        ascent, tokens = self._ascent(embeddings), _tokens(embeddings, mask, sequence)
        noise = torch.randn_like(embeddings) if noise is None else noise.to(embeddings.dtype)
        clean = self._clean(embeddings, logits)
        delta = ascent.climb(clean, ascent.start(noise, mask), tokens)
        return SmartOutput(ascent.values(clean, delta).mean(), delta, ascent.branch)

    @torch.no_grad()
    def gain(
        self,
        embeddings: Tensor,
        logits: Tensor,
        mask: Tensor,
        delta: Tensor,
        *,
        sequence: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """R_s(delta) / R_s(a random direction of the same norms): what the adversary earns.

        Near 1 the perturbation is random noise. Arguments as in the call; a scalar.
        """
        ascent, tokens = self._ascent(embeddings), _tokens(embeddings, mask, sequence)
        noise = torch.randn_like(embeddings) if noise is None else noise
        clean = self._clean(embeddings, logits)
        return ascent.gain(clean, delta.to(embeddings.dtype), noise, tokens)

    def tangent_gradient(self, embeddings: Tensor, logits: Tensor, delta: Tensor) -> Tensor:
        """The gradient of mean l_s at x + delta, to first order in delta."""
        with torch.no_grad():
            return tangent_gradient(self._clean(embeddings, logits), delta)

    def finite_gradient(self, embeddings: Tensor, logits: Tensor, delta: Tensor) -> Tensor:
        """The gradient of mean l_s at x + delta, by a forward and a backward there."""
        return self._clean(embeddings, logits).finite_gradient(delta)

    def _ascent(self, embeddings: Tensor) -> Ascent:
        eps = torch.finfo(_compute_dtype(embeddings)).eps
        return Ascent(self.config, eps, self.backend)

    def _clean(self, embeddings: Tensor, logits: Tensor) -> AutogradPass:
        jacobian = AutogradJacobian(self.clean_fn, embeddings, logits)
        return AutogradPass(self.model_fn, self.divergence, embeddings, logits, jacobian)


class AutogradJacobian:
    """J of ``clean_fn`` at the embeddings, in forward and in reverse mode.

    Args:
        logits: ``clean_fn(embeddings)``, computed before. Where both carry a graph ``vjp`` pulls
            back through it.
    """

    def __init__(self, clean_fn: ModelFn, embeddings: Tensor, logits: Tensor):
        self.clean_fn, self.embeddings, self.logits = clean_fn, embeddings, logits

    def jvp(self, delta: Tensor) -> Tensor:
        """J delta; differentiable where gradients are enabled."""
        if torch.is_grad_enabled():
            return _jvp(self.clean_fn, self.embeddings, delta)
        with _uncached_autocast(self.embeddings):
            return _jvp(self.clean_fn, self.embeddings.detach(), delta)

    def vjp(self, cotangents: Tensor) -> Tensor:
        """J^T cotangents; no weight gradient is computed."""
        logits, embeddings = self.logits, self.embeddings
        if logits.requires_grad and embeddings.requires_grad:
            with input_gradients_only():
                return torch.autograd.grad(
                    logits, embeddings, cotangents.to(logits.dtype), retain_graph=True
                )[0]
        with torch.enable_grad(), input_gradients_only():
            point = embeddings.detach().requires_grad_()
            outputs = self.clean_fn(point)
            return torch.autograd.grad(outputs, point, cotangents.to(outputs.dtype))[0]


@dataclass(frozen=True)
class MeanDivergence:
    """``smart.ascent.Smoothness`` of one task's clean logits; see ``AutogradPass``."""

    divergence: Divergence
    logits: Tensor
    share: float = 1.0

    def cotangents(self, tangents: Tensor) -> Tensor:
        scale = self.share / len(self.logits)
        return self.divergence.fisher(self.logits.detach(), tangents) * scale

    def values(self, changes: Tensor) -> Tensor:
        """Gradients flow into the clean logits and the change."""
        return self.divergence.delta(self.logits, changes).mean()


class AutogradPass:
    """``smart.ascent.CleanPass`` of a model given as a function of its embeddings.

    Args:
        model_fn, divergence: see ``SmartRegularizer``. embeddings, logits: of the clean pass.
        jacobian: of the clean pass.
        share: the examples' part of all those whose mean divergence is climbed. Gradients are of
            that mean; values are means over the examples at hand.
    """

    def __init__(
        self,
        model_fn: ModelFn,
        divergence: Divergence,
        embeddings: Tensor,
        logits: Tensor,
        jacobian: AutogradJacobian,
        share: float = 1.0,
    ):
        self.model_fn, self.divergence, self.share = model_fn, divergence, share
        self.embeddings, self.logits, self.jacobian = embeddings, logits, jacobian
        self.smoothness = MeanDivergence(divergence, logits, share)

    def change(self, delta: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.model_fn(self.embeddings + delta) - self.logits
        with _uncached_autocast(self.embeddings):
            return self.model_fn(self.embeddings + delta) - self.logits

    def finite_gradient(self, delta: Tensor) -> Tensor:
        with torch.enable_grad(), input_gradients_only():
            point = (self.embeddings.detach() + delta).requires_grad_()
            loss = self.divergence(self.model_fn(point), self.logits.detach()).mean()
            return torch.autograd.grad(self.share * loss, point)[0]


def _jvp(model_fn: ModelFn, point: Tensor, tangent: Tensor) -> Tensor:
    """J tangent in one forward-mode pass."""
    with forward_ad.dual_level():
        dual = model_fn(forward_ad.make_dual(point, tangent))
        output_tangent = forward_ad.unpack_dual(dual).tangent
    if output_tangent is None:
        raise ValueError("SmartRegularizer: model_fn's result does not depend on its embeddings")
    return output_tangent


def _tokens(embeddings: Tensor, mask: Tensor, sequence: Tensor | None) -> Tokens:
    """Whose tokens these are, after checking shapes."""
    if mask.shape != embeddings.shape[:-1] or mask.dtype != torch.bool:
        raise ValueError(
            f"SmartRegularizer: mask must be bool {tuple(embeddings.shape[:-1])}, got "
            f"{mask.dtype} {tuple(mask.shape)}"
        )
    if sequence is not None:
        if sequence.shape != mask.shape or mask.dim() != 1:
            raise ValueError(
                f"SmartRegularizer: sequence goes with [num_tokens, hidden] embeddings; got "
                f"{tuple(sequence.shape)} for {tuple(embeddings.shape)}"
            )
        return Tokens(mask, sequence, mask.shape[0])  # at most one sequence per token
    if embeddings.dim() != 3:
        raise ValueError(
            "SmartRegularizer: embeddings must be [num_sequences, max_length, hidden], or "
            f"[num_tokens, hidden] with sequence; got {tuple(embeddings.shape)}"
        )
    num_sequences, max_length = mask.shape
    rows = torch.arange(num_sequences, device=mask.device)
    return Tokens(mask.reshape(-1), rows.repeat_interleave(max_length), num_sequences)


def _uncached_autocast(x: Tensor) -> torch.autocast:
    """Autocast as it is, without its cache of weight copies.

    Copies made while autograd is off would be reused where it is on, and drop weight gradients.
    """
    device = x.device.type
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the model's products: autocast's where it is on."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
