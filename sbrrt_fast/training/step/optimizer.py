"""AdamW with warm-up and decay, weight decay exclusions, layer-wise rates, and clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.config import OptimizerConfig
from sbrrt_fast.model.height import height_of, num_layers

_FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    config: OptimizerConfig,
    head_prefix: str = "heads.",
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, in groups of one rate each.

    Groups are the parts of ``rate_factors`` x with or without weight decay. Vectors and scalars,
    that is biases and LayerNorm, are never decayed. Each group keeps its ``name`` (such as
    ``encoder.no_decay``) and ``peak_lr``; empty groups are left out. The update is PyTorch's fused
    one on CPU and CUDA.

    Args:
        named_parameters: all of a model's, frozen ones too. config: the optimiser's.
        head_prefix: with which the names of the heads' parameters start.

    Raises:
        ConfigError: ``layer_decay`` is not 1 and the encoder has no layers.
    """
    named = list(named_parameters)
    factors = rate_factors([name for name, _ in named], config.layer_decay, head_prefix)
    groups: dict[str, list[nn.Parameter]] = {}
    rates: dict[str, float] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            part, factor = factors[name]
            group = f"{part}.{'decay' if parameter.ndim >= 2 else 'no_decay'}"
            groups.setdefault(group, []).append(parameter)
            rates[group] = _peak(part, config) * factor
    assert groups, "nothing to train: every parameter is frozen"
    fused = all(p.device.type in _FUSED_DEVICES for group in groups.values() for p in group)
    return torch.optim.AdamW(
        [_group(name, groups[name], rates[name], config) for name in sorted(groups)],
        betas=config.betas,
        eps=config.eps,
        fused=fused,
    )


def rate_factors(
    names: Sequence[str], decay: float, head_prefix: str = "heads."
) -> dict[str, tuple[str, float]]:
    """Of each parameter its part of the model, and the factor on the part's learning rate.

    Layer l of L has decay^(L - 1 - l) and the embeddings decay^L (Sun et al., arXiv
    1905.05583).
    The parts are ``heads``; ``encoder``, all of it that has the whole rate; and with a decay below
    1 also ``layer_<l>`` and ``embeddings``.
    """
    count = num_layers(names, "optimizer.layer_decay") if decay != 1.0 else 0

    def part_of(name: str) -> tuple[str, float]:
        if name.startswith(head_prefix):
            return "heads", 1.0
        height = height_of(name)
        if count == 0 or height is None or height == count:
            return "encoder", 1.0
        return f"layer_{height - 1}" if height else "embeddings", decay ** (count - height)

    return {name: part_of(name) for name in names}


def _peak(part: str, config: OptimizerConfig) -> float:
    head_rate = config.head_learning_rate
    return head_rate if part == "heads" and head_rate is not None else config.learning_rate


def _group(
    name: str, parameters: list[nn.Parameter], rate: float, config: OptimizerConfig
) -> dict[str, Any]:
    decay = 0.0 if name.endswith("no_decay") else config.weight_decay
    return {"params": parameters, "name": name, "lr": rate, "peak_lr": rate, "weight_decay": decay}


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rates now, as ``learning_rate/<part>``; see ``rate_factors``."""
    groups = optimizer.param_groups
    return {f"learning_rate/{group['name'].split('.')[0]}": group["lr"] for group in groups}


def learning_rate_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Factor on the peak learning rate at optimiser step ``step``, in (0, 1].

    ``step`` counts from 1 to ``total_steps``. With W = round(warmup * total_steps) the factor is
    ``step / W`` up to step W, so it rises from 0 yet the first update is not wasted at rate 0, and
    is 1 at step W. From then on it depends on x = (step - 1 - W) / (total_steps - W): ``1 - x``,
    ``(1 + cos(pi x)) / 2``, or 1. It is 1 at step W + 1 and would be 0 just after the last step.
    """
    assert 1 <= step <= total_steps, f"step {step} is not in 1..{total_steps}"
    num_warmup = round(config.warmup * total_steps)
    if step <= num_warmup:
        return step / num_warmup
    progress = (step - 1 - num_warmup) / (total_steps - num_warmup)
    if config.decay == "linear":
        return 1.0 - progress
    if config.decay == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, total_steps: int, config: OptimizerConfig
) -> None:
    """Sets every group's rate to ``peak_lr * learning_rate_factor(step, ...)``.

    A rate that is a tensor, as a captured graph needs, is filled in place.
    """
    factor = learning_rate_factor(step, total_steps, config)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["peak_lr"] * factor)
        else:
            group["lr"] = group["peak_lr"] * factor


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients so that their global 2-norm is at most ``max_norm``; 0 does not clip.

    Returns:
        The norm before clipping, a 0-dim tensor on the gradients' device; the host does not wait.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in with_gradient])
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(with_gradient, max_norm, norm)
    return norm
