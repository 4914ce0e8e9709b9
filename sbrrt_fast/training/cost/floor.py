"""The least a round can cost: operations over the machine's rate, bytes over its bandwidth.

A forward over one token multiplies it with every matrix of the encoder, 2 operations per weight.
An SBRRT round takes such forward-equivalents over its tokens: clean 1, ascent 1 (input gradients
alone), adversarial 1, teacher 1, and a backward of 2 over the adversarial rows and of 1, the
weights' gradients, over the clean ones: 7. Over tokens of examples with more than one output there
are 2 more: a tangent, and the clean rows' own input gradients. A backward ends above frozen layers;
gradual unfreezing is counted as if all trained from the first round on. The optimiser
reads and writes every parameter, both moments and the average, reads the gradient and writes the
low-precision copies.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from sbrrt_fast.config import RunConfig
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.smart.presets import resolve


@dataclass(frozen=True)
class Ceilings:
    """The machine's best rates: operations and bytes per second."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class RoundCost:
    """Operations and bytes that a round cannot do without, by stage.

    Attributes:
        num_tokens: real tokens of a round. flops, bytes: by stage.
    """

    num_tokens: float
    flops: dict[str, float]
    bytes: dict[str, float]

    def seconds(self, ceilings: Ceilings) -> dict[str, float]:
        """The floor by stage."""
        seconds = {name: flops / ceilings.flops for name, flops in self.flops.items()}
        for name, count in self.bytes.items():
            seconds[name] = max(seconds.get(name, 0.0), count / ceilings.bytes)
        return seconds


def round_cost(
    model: BertConfig, config: RunConfig, num_tokens: Mapping[str, float], num_parameters: int
) -> RoundCost:
    """The cost of a run's rounds.

    Args:
        num_tokens: of one round, by task. num_parameters: that are trained.
    """
    hidden, inner = model.hidden_size, model.intermediate_size
    weights = model.num_hidden_layers * (4 * hidden * hidden + 2 * hidden * inner)
    smart, total = resolve(config.smart), sum(num_tokens.values())
    forward, several = 2.0 * weights * total, 2.0 * weights * _several(config, num_tokens)
    flops = {"clean": forward, "backward": 2 * forward}
    if smart.weight > 0 and smart.gradient == "tangent":
        flops["clean"] += several
        flops |= {"ascent": forward + 2 * (smart.num_steps - 1) * several, "adversarial": forward}
        flops["backward"] += forward + several
    elif smart.weight > 0:
        flops |= {"ascent": 2 * smart.num_steps * forward, "adversarial": forward}
        flops["backward"] *= 2
    if config.bregman.weight > 0:
        flops["teacher"] = forward
    flops["backward"] *= 1 - config.optimizer.frozen_layers / model.num_hidden_layers
    low = config.precision == "bf16"
    teaches = config.bregman.weight > 0
    moved = 24 + (2 if low else 4) + (2 if low else 0) + (8 + (2 if low else 0)) * teaches
    updates = 1 if config.round.update == "joint" else len(config.trained_tasks)
    return RoundCost(total, flops, {"optimiser": float(moved * num_parameters * updates)})


def _several(config: RunConfig, num_tokens: Mapping[str, float]) -> float:
    """Tokens of examples with more than one output."""
    return sum(n for name, n in num_tokens.items() if not config.tasks[name].has_one_output)


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, rows: int | None = None, repeats: int = 7
) -> Ceilings:
    """The best matrix product and copy of a few, in well under a second.

    Args:
        rows: of the product; as many as fill the device if None.
    """
    width = 8192 if device.type == "cuda" else 1024
    rows = rows or width
    a, b = (torch.randn(rows, width, device=device).to(dtype) for _ in range(2))
    product = _fastest(lambda: a @ b.t(), device, repeats)
    source = torch.randn(1 << 26, device=device)
    target = torch.empty_like(source)
    copied = _fastest(lambda: target.copy_(source), device, repeats)
    return Ceilings(2.0 * rows * rows * width / product, 2.0 * source.nbytes / copied)


def best_ceilings(device: torch.device, precision: str) -> Ceilings:
    """The best rates for ``fp32`` or ``bf16``; bf16 products may be made in float32 too."""
    dtypes = [torch.float32, torch.bfloat16] if precision == "bf16" else [torch.float32]
    ceilings = [measure_ceilings(device, dtype) for dtype in dtypes]
    return Ceilings(max(c.flops for c in ceilings), max(c.bytes for c in ceilings))


def _fastest(call, device: torch.device, repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
