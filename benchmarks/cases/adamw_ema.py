"""One optimiser step at MiniLM's and bert-base's sizes, in one pass, against stock torch.

Stock is what a user would write: clip_grad_norm_, torch.optim.AdamW (fused, or its foreach form), a
foreach lerp for the teacher, and foreach copies to bfloat16. All keep the same state. Bytes per
parameter: the norm reads the gradient (4); the update reads it again (4), reads and writes weight,
both moments and average (32), and writes two bfloat16 copies (4).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.harness.benchmark import BACKENDS, Benchmark, Cost
from benchmarks.harness.check import WrongResult
from benchmarks.harness.shapes import Case, models
from benchmarks.peers.optional import apex_adam
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.ops.adamw_ema import adamw_ema_
from sbrrt_fast.ops.gradient_norm import clipped_gradient_norm

BYTES_PER_PARAMETER = 44
SMALL = BertConfig(
    vocab_size=999,
    hidden_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=128,
)


def shapes(config: BertConfig) -> list[tuple[int, ...]]:
    """Of the parameters of an encoder."""
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 4 * [(hidden, hidden), (hidden,)] + [(inner, hidden), (inner,), (hidden, inner)]
    layer += 5 * [(hidden,)]
    sizes = config.vocab_size, config.max_position_embeddings, config.type_vocab_size
    tables = [(n, hidden) for n in sizes] + 2 * [(hidden,)]
    return tables + config.num_hidden_layers * layer


class Weights:
    """Weights, gradients and everything one update needs."""

    def __init__(self, config: BertConfig, device: torch.device):
        torch.manual_seed(0)
        sizes = shapes(config)
        values = [0.02 * torch.randn(size, device=device) for size in sizes]
        self.params = [torch.nn.Parameter(x) for x in values]
        self.grads = [1e-3 * torch.randn(size, device=device) for size in sizes]
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g
        self.ema = [p.detach().clone() for p in self.params]
        self.low = [p.detach().to(torch.bfloat16) for p in self.params]
        self.ema_low = [p.detach().to(torch.bfloat16) for p in self.params]


def stock(weights: Weights, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    plain = [p.detach() for p in weights.params]

    def update():
        # The same gradient each time: it is clipped once, and later calls only measure it.
        torch.nn.utils.clip_grad_norm_(weights.params, 1.0)
        optimizer.step()
        torch._foreach_lerp_(weights.ema, plain, 0.05)
        torch._foreach_copy_(weights.low, plain)
        torch._foreach_copy_(weights.ema_low, weights.ema)

    return update


def ours(weights: Weights, backend: str) -> Callable[[], None]:
    plain = [p.detach() for p in weights.params]
    moments = [[torch.zeros_like(p) for p in plain] for _ in range(2)]
    device, decay = plain[0].device, [0.01] * len(plain)
    rate, step = torch.tensor(1e-4, device=device), torch.tensor(0, device=device)

    def update():
        step.add_(1)
        factor = clipped_gradient_norm(weights.grads, 1.0, backend=backend).clip_factor
        adamw_ema_(
            plain, weights.grads, *moments, learning_rate=rate, weight_decay=decay,
            clip_factor=factor, step=step, ema=weights.ema, ema_beta=0.95,
            low_precision=weights.low, ema_low_precision=weights.ema_low, backend=backend,
        )  # fmt: skip

    return update


class AdamwEma(Benchmark):
    """No part of it runs from a graph: torch's optimisers count their steps on the host."""

    name, graph = "adamw_ema", False
    variants = (*BACKENDS, "torch fused", "torch foreach", "apex")

    def cases(self):
        for model in models(self.settings):
            yield Case(model, "all weights", part="update")

    def tokens(self, case: Case) -> None:
        return None

    def calls(self, case: Case, variant: str, num_sets: int):
        self.check_device(variant)
        self._check(variant)
        return [self._update(variant, Weights(case.config, self.device))]

    def _update(self, variant: str, weights: Weights) -> Callable[[], None]:
        if variant in BACKENDS:
            return ours(weights, variant)
        options = {"lr": 1e-4, "weight_decay": 0.01}
        if variant == "apex":
            return stock(weights, apex_adam(self.device)(weights.params, **options))
        options[variant.split()[1]] = True
        return stock(weights, torch.optim.AdamW(weights.params, **options))

    def _check(self, variant: str) -> None:
        """Three steps on a small model leave the weights and averages of stock torch."""
        runs = [Weights(SMALL, self.device) for _ in range(2)]
        for name, weights in zip((variant, "torch fused"), runs, strict=True):
            update = self._update(name, weights)
            for _ in range(3):
                update()
        for part in ("params", "ema"):
            for a, b in zip(*(getattr(weights, part) for weights in runs), strict=True):
                if not torch.allclose(a, b, rtol=1e-6, atol=1e-7):
                    raise WrongResult(f"{self.name} {variant}: other {part} than torch's")

    def cost(self, case: Case) -> Cost:
        count = sum(torch.Size(size).numel() for size in shapes(case.config))
        return Cost(BYTES_PER_PARAMETER * count)
