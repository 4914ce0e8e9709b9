"""One optimiser step at MiniLM's and bert-base's sizes: fused in one pass against stock torch.

Stock is what a user would write: clip_grad_norm_, torch.optim.AdamW (fused, or its foreach form), a
foreach lerp for the teacher, and foreach copies to bfloat16. Each moves the bytes noted beside its
time at least.
"""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.ops.adamw_ema import adamw_ema_, clip_factor, gradient_norm

BYTES_PER_PARAMETER = 44  # norm 4; gradient 4; p, m, v, average 8 each; two bfloat16 copies 2 each


def shapes(hidden, num_layers, inner, vocabulary=30522, positions=512):
    """Parameter shapes of a BERT encoder."""
    layer = 4 * [(hidden, hidden), (hidden,)] + [(inner, hidden), (inner,), (hidden, inner)]
    layer += 5 * [(hidden,)]
    tables = [(vocabulary, hidden), (positions, hidden), (2, hidden), (hidden,), (hidden,)]
    return tables + num_layers * layer


MODELS = {"minilm": shapes(384, 6, 1536), "bert-base": shapes(768, 12, 3072)}


class Run:
    """Weights, gradients and everything one update needs."""

    def __init__(self, sizes):
        torch.manual_seed(0)
        self.params = [torch.nn.Parameter(0.02 * torch.randn(size)) for size in sizes]
        self.grads = [1e-3 * torch.randn(size) for size in sizes]
        for p, g in zip(self.params, self.grads, strict=True):
            p.grad = g
        self.ema = [p.detach().clone() for p in self.params]
        self.low = [p.detach().to(torch.bfloat16) for p in self.params]
        self.ema_low = [p.detach().to(torch.bfloat16) for p in self.params]


def stock(run, **form):
    form = form or {"fused": True}
    optimizer = torch.optim.AdamW(run.params, lr=1e-4, weight_decay=0.01, **form)
    weights = [p.detach() for p in run.params]

    def update():
        # The same gradient each time: it is clipped once, and later calls only measure it.
        torch.nn.utils.clip_grad_norm_(run.params, 1.0)
        optimizer.step()
        torch._foreach_lerp_(run.ema, weights, 0.05)
        torch._foreach_copy_(run.low, weights)
        torch._foreach_copy_(run.ema_low, run.ema)

    return update


def stock_foreach(run):
    return stock(run, foreach=True)


def fused(run):
    weights = [p.detach() for p in run.params]
    moments = [[torch.zeros_like(p) for p in weights] for _ in range(2)]
    decay, rate = [0.01] * len(weights), torch.tensor(1e-4, dtype=torch.float64)
    step = torch.tensor(0)

    def update():
        step.add_(1)
        adamw_ema_(
            weights, run.grads, *moments, learning_rate=rate, weight_decay=decay,
            clip_factor=clip_factor(gradient_norm(run.grads), 1.0), step=step, ema=run.ema,
            ema_beta=0.95, low_precision=run.low, ema_low_precision=run.ema_low, backend="cpu",
        )  # fmt: skip

    return update


def check(variant):
    """Three steps of either, on a small model, leave the same weights and averages."""
    small = shapes(64, 1, 128, vocabulary=999)
    runs = [Run(small), Run(small)]
    for make, run in zip((variant, stock), runs, strict=True):
        update = make(run)
        for _ in range(3):
            update()
    for name in ("params", "ema"):
        for a, b in zip(*(getattr(run, name) for run in runs), strict=True):
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("variant", [fused, stock, stock_foreach], ids=lambda f: f.__name__)
def test_adamw_ema(benchmark, variant, model):
    check(variant)
    run = Run(MODELS[model])
    benchmark.group = model
    benchmark.extra_info["bytes"] = BYTES_PER_PARAMETER * sum(p.numel() for p in run.params)
    benchmark(variant(run))
