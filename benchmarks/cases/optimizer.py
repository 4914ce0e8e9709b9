"""The update after a task's backward: clip, AdamW, teacher, as a run does it.

Against torch's fused and foreach AdamW with a foreach lerp. ``adamw_ema.py`` has the op with
the same dense gradients for everybody; here ours has what its step leaves it: the gradients of the
words that occur, and bfloat16 copies to write, which the peers have not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.check import WrongResult
from benchmarks.harness.rounds import SBRRT, Rounds, build_ours
from benchmarks.harness.shapes import Case, models
from sbrrt_fast.training.step.optimizer import set_learning_rate
from sbrrt_fast.training.step.step import Step

PEERS = {"torch fused": {"fused": True}, "torch foreach": {"foreach": True}}
OURS = "fast bf16"


def stock(step: Step, gradients: dict, **form: bool) -> Callable[[], None]:
    """torch's update of the same weights and teacher."""
    groups = [
        {"params": g["params"], "weight_decay": g["weight_decay"]}
        for g in step.optimizer.param_groups
    ]
    rate, clip_norm = step.optimizer.param_groups[0]["lr"], SBRRT.optimizer.clip_norm
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=SBRRT.optimizer.betas, **form)
    params = [p for group in groups for p in group["params"]]
    for name, p in step.model.named_parameters():
        p.grad = gradients.get(name)
    ema_params = step.teacher.averages_by_parameter()
    pairs = [(ema_params[id(p)], p.detach()) for p in params if id(p) in ema_params]
    ema, plain = (list(x) for x in zip(*pairs, strict=True))

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(params, clip_norm)
        optimizer.step()
        torch._foreach_lerp_(ema, plain, 1.0 - SBRRT.bregman.beta)

    return update


class Optimizer(Benchmark):
    name, graph = "optimizer", False
    variants = (OURS, *PEERS)

    def cases(self):
        for model in models(self.settings):
            yield Case(model, "round", "", "update")

    def tokens(self, case: Case) -> None:
        return None

    def calls(self, case: Case, variant: str, num_sets: int):
        if case.model == "minilm":
            self._check(case, variant)
        return [self._update(case, variant)[1]]

    def _update(self, case: Case, variant: str) -> tuple[Step, Callable[[], None]]:
        rounds = Rounds.of(self.settings, case)
        step = build_ours(rounds.encoder(), SBRRT, self.device)
        batch, rng = rounds[0][1], torch.tensor([0, 0], device=self.device)
        groups, gradients = step.passes.groups([batch]), step.gradients(batch, rng)
        count = itertools.count(1)
        if variant == OURS:
            return step, lambda: step._update(groups, next(count))
        set_learning_rate(step.optimizer, 1, step.num_steps, step.config.optimizer)
        return step, stock(step, gradients, **PEERS[variant])

    def _check(self, case: Case, variant: str) -> None:
        """One update leaves the weights and averages that torch's does."""
        expected = self.once("torch's", case, lambda: self._updated(case, "torch fused"))
        for name, a in self._updated(case, variant).items():
            if not torch.allclose(a, expected[name], rtol=1e-6, atol=1e-7):
                raise WrongResult(f"{self.name} {variant}: other {name} than torch's")

    def _updated(self, case: Case, variant: str) -> dict[str, torch.Tensor]:
        """Weights and averages after one update."""
        step, update = self._update(case, variant)
        update()
        modules = {"model": step.model, "teacher": step.teacher.module}
        return {
            f"{kind}.{name}": p.detach()
            for kind, module in modules.items()
            for name, p in module.named_parameters()
        }
