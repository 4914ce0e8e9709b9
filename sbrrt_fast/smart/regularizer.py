"""SMART's smoothness regulariser R_s, usable in any training loop.

    regularizer = SmartRegularizer(model_fn)
    smart = regularizer(embeddings, logits, mask)
    (task_loss + weight * smart.loss).backward()

R_s = mean_i max_{||delta_i|| <= epsilon} l_s(f(x_i + delta_i), f(x_i)), with the maximum
approached by T_x ascent steps. Source: arXiv 1911.03437, section 3.1 and Algorithm 1.

The ascent gradient is exact to first order in the perturbation (``gradient="tangent"``): with the
model's Jacobian J at x, the gradient of mean l_s at x + delta is J^T H J delta / num_examples,
H the Hessian of l_s in its change. J delta is a Jacobian-vector product (JVP, in forward mode), the
rest a vector-Jacobian product (VJP) over the clean activations, so no noisy forward is needed and
the answer keeps its relative precision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.ops.smart_ascend import group_norm, smart_ascend
from sbrrt_fast.smart.divergence import SYMMETRIC_KL, Divergence
from sbrrt_fast.smart.presets import ascent_options, resolve

ModelFn = Callable[[Tensor], Tensor]

FINITE_RESOLUTION = 64.0  # sigma / eps(dtype) below which a finite difference is mostly rounding
BRANCH_RESOLUTION = 2.0  # radius / eps(dtype) below which R_s by subtraction is mostly rounding
GAIN_RESOLUTION = 200.0  # radius / eps for a random direction, whose R_s is far smaller


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
        groups = _groups(embeddings, mask, sequence)
        eps = torch.finfo(_compute_dtype(embeddings)).eps
        check_resolution(self.config, eps)
        noise = torch.randn_like(embeddings) if noise is None else noise.to(embeddings.dtype)
        delta = self._ascend(embeddings, logits, noise, mask, groups)
        branch = branch_of(self.config, eps)
        loss = self._divergence(embeddings, logits, delta, branch).mean()
        return SmartOutput(loss, delta, branch)

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
        groups, width = _groups(embeddings, mask, sequence), embeddings.shape[-1]
        noise = torch.randn_like(embeddings) if noise is None else noise
        direction = (noise * mask[..., None]).reshape(-1, width).to(embeddings.dtype)
        random = random_direction(direction, delta.reshape(-1, width), *groups, self.config)
        random = random.view_as(delta)
        branch = gain_branch_of(self.config, torch.finfo(_compute_dtype(embeddings)).eps)
        with _uncached_autocast(embeddings):
            ours, theirs = (
                self._divergence(embeddings, logits, d.to(embeddings.dtype), branch).mean()
                for d in (delta, random)
            )
        return ours / theirs

    def _ascend(
        self, embeddings: Tensor, logits: Tensor, noise: Tensor, mask: Tensor, groups: tuple
    ) -> Tensor:
        """T_x ascent steps from sigma * noise; detached."""
        config, width = self.config, embeddings.shape[-1]
        is_tangent = config.gradient == "tangent"
        gradient_at = self.tangent_gradient if is_tangent else self.finite_gradient
        delta = config.sigma * noise * mask[..., None]
        for _ in range(config.num_steps):
            gradient = gradient_at(embeddings, logits, delta)
            rows = delta.reshape(-1, width), gradient.reshape(-1, width), mask.reshape(-1)
            delta = smart_ascend(
                *rows, *groups, **ascent_options(config), backend=self.backend
            ).view_as(embeddings)
        return delta

    def tangent_gradient(self, embeddings: Tensor, logits: Tensor, delta: Tensor) -> Tensor:
        """The gradient of mean l_s at x + delta, to first order in delta."""
        # At unit scale the tangent is far from the dtype's smallest numbers; it is linear in it.
        scale = delta.abs().amax().clamp(min=torch.finfo(delta.dtype).tiny)
        with torch.no_grad(), _uncached_autocast(embeddings):
            _, tangent = _jvp(self.clean_fn, embeddings.detach(), delta / scale)
            cotangent = self.divergence.fisher(logits.detach(), tangent) / logits.shape[0]
        return scale * self._vjp(embeddings, logits, cotangent)

    def _vjp(self, embeddings: Tensor, logits: Tensor, cotangent: Tensor) -> Tensor:
        """J^T cotangent; no weight gradient is computed."""
        if logits.requires_grad and embeddings.requires_grad:
            with input_gradients_only():
                return torch.autograd.grad(
                    logits, embeddings, cotangent.to(logits.dtype), retain_graph=True
                )[0]
        with torch.enable_grad(), input_gradients_only():
            point = embeddings.detach().requires_grad_()
            outputs = self.clean_fn(point)
            return torch.autograd.grad(outputs, point, cotangent.to(outputs.dtype))[0]

    def finite_gradient(self, embeddings: Tensor, logits: Tensor, delta: Tensor) -> Tensor:
        """The gradient of mean l_s at x + delta, by a forward and a backward there."""
        with torch.enable_grad(), input_gradients_only():
            point = (embeddings.detach() + delta).requires_grad_()
            loss = self.divergence(self.model_fn(point), logits.detach()).mean()
            return torch.autograd.grad(loss, point)[0]

    def _divergence(self, embeddings: Tensor, logits: Tensor, delta: Tensor, branch: str) -> Tensor:
        """l_s of the perturbed against the clean output, per example."""
        if branch == "linear":
            _, tangent = _jvp(self.clean_fn, embeddings, delta)
            return self.divergence.delta(logits, tangent)
        return self.divergence(self.model_fn(embeddings + delta), logits)


def branch_of(config: SmartConfig, eps: float) -> str:
    """``forward`` or ``linear``: how R_s is evaluated where the model computes with this eps."""
    if config.branch == "auto":
        return "linear" if config.radius < BRANCH_RESOLUTION * eps else "forward"
    return config.branch


def gain_branch_of(config: SmartConfig, eps: float) -> str:
    """How the adversarial gain is evaluated, whose random direction has a far smaller R_s."""
    return "linear" if config.radius < GAIN_RESOLUTION * eps else "forward"


def check_resolution(config: SmartConfig, eps: float) -> None:
    """ConfigError if the setting asks for differences below a precision's eps."""
    if config.gradient == "finite" and config.sigma < FINITE_RESOLUTION * eps:
        raise ConfigError(
            f"smart.gradient 'finite' with smart.sigma {config.sigma:g} is below what this "
            f"precision resolves (eps {eps:.1e}): its gradient would be rounding noise; "
            "use gradient 'tangent', precision fp32 or a larger sigma"
        )
    if config.branch == "forward" and config.radius < BRANCH_RESOLUTION * eps:
        raise ConfigError(
            f"smart.branch 'forward' with smart.radius {config.radius:g} is below what this "
            f"precision resolves (eps {eps:.1e}): R_s would be rounding noise; "
            "use branch 'linear' or 'auto', or precision fp32"
        )


def random_direction(
    direction: Tensor, delta: Tensor, sequence: Tensor, num_sequences: int, config: SmartConfig
) -> Tensor:
    """``direction`` [num_tokens, hidden] scaled to the perturbation's norms, group by group."""
    norms = [
        group_norm(x, sequence, num_sequences, config.norm, config.level)
        for x in (delta, direction)
    ]
    return direction * (norms[0] / norms[1].clamp(min=torch.finfo(direction.dtype).tiny))


def _jvp(model_fn: ModelFn, point: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
    """(f(point), J tangent) in one forward-mode pass."""
    with forward_ad.dual_level():
        dual = model_fn(forward_ad.make_dual(point, tangent))
        primal, output_tangent = forward_ad.unpack_dual(dual)
    if output_tangent is None:
        raise ValueError("SmartRegularizer: model_fn's result does not depend on its embeddings")
    return primal, output_tangent


def _groups(embeddings: Tensor, mask: Tensor, sequence: Tensor | None) -> tuple[Tensor, int]:
    """(sequence of each token, number of sequences) after checking shapes."""
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
        return sequence, mask.shape[0]  # at most one sequence per token
    if embeddings.dim() != 3:
        raise ValueError(
            "SmartRegularizer: embeddings must be [num_sequences, max_length, hidden], or "
            f"[num_tokens, hidden] with sequence; got {tuple(embeddings.shape)}"
        )
    num_sequences, max_length = mask.shape
    rows = torch.arange(num_sequences, device=mask.device)
    return rows.repeat_interleave(max_length), num_sequences


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
