"""SMART's ascent step on a batch's tokens, against plain torch.

``eager`` is the ascent a user would write for one preset alone, without care for zero or tiny
gradients. The ascent reads delta and gradient twice and writes once: 20 bytes per element.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.harness.benchmark import BACKENDS, REFERENCE, Cost, Plain
from benchmarks.harness.check import WrongResult
from benchmarks.harness.shapes import FORWARD, Case, cases
from benchmarks.peers.torch_ops import eager_or_compiled
from sbrrt_fast.ops.smart_ascend import smart_ascend

NAMES = ("step_size", "normalize_gradient", "projection", "radius", "norm", "level")
PRESETS = {
    "paper": (1e-3, True, "ball", 1e-5, "inf", "sequence"),
    "mtdnn": (1e-3, False, "normalize", 1.0, "inf", "token"),
    "adversarial": (math.inf, True, "normalize", 0.02, "inf", "token"),
    "two-norm": (1e-1, True, "ball", 0.1, "2", "sequence"),
}


def of_sequences(rows, sequence, num_sequences, reduce):
    """[num_tokens] -> the reduction over each token's sequence, [num_tokens, 1]."""
    zeros = rows.new_zeros(num_sequences)
    return zeros.scatter_reduce(0, sequence, rows, reduce)[sequence][:, None]


def eager_paper(delta, gradient, mask, sequence, num_sequences):
    largest = (gradient * mask[:, None]).abs().amax(-1)
    size = of_sequences(largest, sequence, num_sequences, "amax")
    return (delta + 1e-3 * gradient / size).clamp(-1e-5, 1e-5) * mask[:, None]


def eager_mtdnn(delta, gradient, mask, sequence, num_sequences):
    moved = delta + 1e-3 * gradient
    return moved / moved.abs().amax(-1, keepdim=True) * mask[:, None]


def eager_adversarial(delta, gradient, mask, sequence, num_sequences):
    return 0.02 * gradient / gradient.abs().amax(-1, keepdim=True) * mask[:, None]


def eager_two_norm(delta, gradient, mask, sequence, num_sequences):
    groups = sequence, num_sequences, "sum"
    gradient, delta = gradient * mask[:, None], delta * mask[:, None]
    size = of_sequences(gradient.square().sum(-1), *groups).sqrt()
    moved = delta + 1e-1 * gradient / size
    return moved * (0.1 / of_sequences(moved.square().sum(-1), *groups).sqrt()).clamp(max=1)


EAGER = {
    "paper": eager_paper,
    "mtdnn": eager_mtdnn,
    "adversarial": eager_adversarial,
    "two-norm": eager_two_norm,
}


class SmartAscend(Plain):
    name = "smart_ascend"
    variants = (*BACKENDS, REFERENCE, "eager", "compile")

    def cases(self):
        presets = ["adversarial"] if self.settings.quick else PRESETS
        for case in cases(self.settings, ["fp32"], [FORWARD], ["task", "round"]):
            for preset in presets:
                yield replace(case, option=preset)

    def tensors(self, case: Case) -> tuple:
        lengths = torch.tensor(case.lengths)
        sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        delta, gradient = torch.randn(2, len(sequence), case.config.hidden_size)
        mask = torch.ones(len(sequence), dtype=torch.bool)
        mask[lengths.cumsum(0) - 1] = False
        on_device = (x.to(self.device) for x in (1e-5 * delta, gradient, mask, sequence))
        return (*on_device, len(lengths))

    def function(self, case: Case, name: str) -> Callable:
        if name in ("eager", "compile"):
            return eager_or_compiled(name, EAGER[case.option], self.settings, case)
        options = {**dict(zip(NAMES, PRESETS[case.option], strict=True)), "backend": name}
        return lambda *tensors: smart_ascend(*tensors, **options)

    def check(self, case: Case, name: str, result: Tensor, tensors: tuple) -> None:
        expected = self.function(case, REFERENCE)(*tensors)
        # What cancels is up to 5 radii long, so half an ulp of it is 3e-7 of the radius.
        close = {"rtol": 1e-5, "atol": 6e-7 * PRESETS[case.option][NAMES.index("radius")]}
        if not torch.allclose(result, expected, **close):
            raise WrongResult(f"{self.name} {case} {name}: differs from the reference")

    def cost(self, case: Case) -> Cost:
        return Cost(20.0 * case.num_tokens * case.config.hidden_size)
