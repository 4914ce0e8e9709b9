"""SMART's ascent, R_s and the adversarial gain around one clean pass; the only place they are in.

R_s = mean_i max_{||delta_i|| <= epsilon} l_s(f(x_i + delta_i), f(x_i)), with the maximum
approached by T_x ascent steps (arXiv 1911.03437, section 3.1 and Algorithm 1).

The ascent's gradient is exact to first order in the perturbation (``gradient="tangent"``): with the
model's Jacobian J at x, the gradient of mean l_s at x + delta is J^T H J delta / num_examples,
H the Hessian of l_s in its change. No noisy forward is needed, and the answer keeps its relative
precision. How J is applied is the clean pass's affair: ``smart.regularizer`` asks autograd, the
training step its written-out passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.ops.smart_ascend import group_norm, smart_ascend
from sbrrt_fast.smart.presets import ascent_options

FINITE_RESOLUTION = 64.0  # sigma / eps(dtype) below which a finite difference is mostly rounding
BRANCH_RESOLUTION = 2.0  # radius / eps(dtype) below which R_s by subtraction is mostly rounding
GAIN_RESOLUTION = 200.0  # radius / eps for a random direction, whose R_s is far smaller
# A radius below the precision is made this many times the smallest one that it resolves, where
# the gradient of R_s is wanted of a forward pass: R_s is quadratic there.
SCALED_RESOLUTION = 2.0 * BRANCH_RESOLUTION


class Jacobian(Protocol):
    """J, of the clean outputs in the embeddings, at the embeddings x.

    ``training.step.jacobian`` has one whose ``finish`` is the rest of a backward, too.
    """

    def jvp(self, delta: Tensor) -> Tensor:
        """J delta, of the outputs' shape, from a change of x."""

    def vjp(self, cotangents: Tensor) -> Tensor:
        """J^T cotangents, of x's shape."""


class Smoothness(Protocol):
    """l_s around the clean outputs w, averaged over the examples of a task."""

    def cotangents(self, tangents: Tensor) -> Tensor:
        """The gradient of mean l_s(w + t, w) in t, to first order in t; of w's shape."""

    def values(self, changes: Tensor) -> Tensor:
        """Mean l_s(w + d, w): a scalar, or [num_tasks] of a group's."""


class CleanPass(Protocol):
    """A model that has seen the embeddings x and can be asked around them."""

    jacobian: Jacobian
    smoothness: Smoothness

    def change(self, delta: Tensor) -> Tensor:
        """f(x + delta) - f(x) by a forward pass."""

    def finite_gradient(self, delta: Tensor) -> Tensor:
        """The gradient of mean l_s at x + delta, by a forward and a backward there."""


@dataclass(frozen=True)
class Tokens:
    """Which token is whose, and which may be perturbed.

    Attributes:
        mask: bool [num_tokens]. sequence: int64 [num_tokens]. num_sequences: at least as many as
            there are.
    """

    mask: Tensor
    sequence: Tensor
    num_sequences: int


class Ascent:
    """The perturbation of one clean pass and what it is worth.

    Args:
        config: SMART's resolved settings.
        eps: of the dtype of the model's products.
        backend: of the ascent step.

    Raises:
        ConfigError: a setting asks for differences below ``eps``.
    """

    def __init__(self, config: SmartConfig, eps: float, backend: str = "auto"):
        check_resolution(config, eps)
        self.config, self.eps, self.backend = config, eps, backend
        self.branch = branch_of(config, eps)
        self.is_tangent = config.gradient == "tangent"

    def start(self, noise: Tensor, mask: Tensor) -> Tensor:
        """The perturbation before the first step, from standard normal noise."""
        return self.config.sigma * self.direction(noise, mask)

    def direction(self, noise: Tensor, mask: Tensor) -> Tensor:
        """``start`` without its sigma."""
        return noise * mask[..., None]

    @torch.no_grad()
    def climb(
        self, clean: CleanPass, delta: Tensor, tokens: Tokens, first: Tensor | None = None
    ) -> Tensor:
        """T_x ascent steps from ``delta``, [..., hidden]; detached.

        Args:
            first: the gradient at ``delta``, where it is known already.
        """
        options, width = ascent_options(self.config), delta.shape[-1]
        groups = tokens.mask, tokens.sequence, tokens.num_sequences
        for step in range(self.config.num_steps):
            known = first if step == 0 else None
            gradient = self.gradient(clean, delta) if known is None else known
            rows = delta.reshape(-1, width), gradient.reshape(-1, width)
            delta = smart_ascend(*rows, *groups, **options, backend=self.backend).view_as(delta)
        return delta

    def gradient(self, clean: CleanPass, delta: Tensor) -> Tensor:
        """The gradient of mean l_s at x + delta."""
        return tangent_gradient(clean, delta) if self.is_tangent else clean.finite_gradient(delta)

    def values(self, clean: CleanPass, delta: Tensor, branch: str | None = None) -> Tensor:
        """R_s of a perturbation, by a forward pass or to first order."""
        if (branch or self.branch) == "linear":
            return clean.smoothness.values(clean.jacobian.jvp(delta))
        return clean.smoothness.values(clean.change(delta))

    def gain(self, clean: CleanPass, delta: Tensor, noise: Tensor, tokens: Tokens) -> Tensor:
        """R_s(delta) / R_s(a random direction of the same norms): what the adversary earns.

        Args: see ``compared``.
        """
        ours, theirs = self.compared(clean, delta, noise, tokens)
        return ours / theirs

    def compared(
        self, clean: CleanPass, delta: Tensor, noise: Tensor, tokens: Tokens
    ) -> tuple[Tensor, Tensor]:
        """R_s(delta) and R_s of a random direction of the same norms.

        Args:
            noise: of delta's shape, the random direction; what may not be perturbed stays.
        """
        width = delta.shape[-1]
        direction = noise.reshape(-1, width).to(delta.dtype) * tokens.mask[:, None]
        random = random_direction(direction, delta.reshape(-1, width), tokens, self.config)
        branch = gain_branch_of(self.config, self.eps)
        return tuple(self.values(clean, d, branch) for d in (delta, random.view_as(delta)))

    @property
    def scale(self) -> float:
        """What a perturbation is multiplied with where R_s's gradient is that of a forward pass."""
        if self.branch == "forward":
            return 1.0
        return max(1.0, SCALED_RESOLUTION * self.eps / self.config.radius)


def tangent_gradient(clean: CleanPass, delta: Tensor) -> Tensor:
    """The gradient of mean l_s at x + delta, to first order in delta."""
    scale = unit_scale(delta)
    tangents = clean.jacobian.jvp(delta / scale)
    return scale * clean.jacobian.vjp(clean.smoothness.cotangents(tangents))


def unit_scale(delta: Tensor) -> Tensor:
    """delta's largest entry. A tangent is linear in delta; divided by this, it is far from the
    smallest numbers of its dtype."""
    return delta.abs().amax().clamp(min=torch.finfo(delta.dtype).tiny)


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
    direction: Tensor, delta: Tensor, tokens: Tokens, config: SmartConfig
) -> Tensor:
    """``direction`` [num_tokens, hidden] scaled to the perturbation's norms, group by group."""
    groups = tokens.sequence, tokens.num_sequences, config.norm, config.level
    norms = [group_norm(x, *groups) for x in (delta, direction)]
    return direction * (norms[0] / norms[1].clamp(min=torch.finfo(direction.dtype).tiny))
