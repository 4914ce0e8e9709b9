"""Symmetric KL of a task's batch, forward and with both gradients, against plain torch.

The log-softmax form is what a user would write; it loses its digits where the change is small, so
it is compared with the others at a change of order one. A batch has a few hundred bytes: these are
times of calls, not of memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.benchmark import BACKENDS, Differentiable, Plain, Variant
from benchmarks.harness.check import check_close
from benchmarks.harness.shapes import BOTH, FORWARD, Case
from benchmarks.peers.torch_ops import eager_or_compiled
from sbrrt_fast.ops.symmetric_kl import symmetric_kl_delta, symmetric_kl_fisher

BATCHES = {"sst-8": (8, 5), "quora-8": (8, 2), "sst-64": (64, 5)}


def log_softmax_form(logits, delta):
    log_q, log_p = F.log_softmax(logits, -1), F.log_softmax(logits + delta, -1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1)


class SymmetricKl(Differentiable):
    name, dropout = "symmetric_kl", 0.0
    variants = (*BACKENDS, "reference", "eager", "compile")

    def cases(self):
        for batch in list(BATCHES)[: 1 if self.settings.quick else None]:
            for part in (FORWARD, BOTH):
                yield Case("any model", batch, part=part)

    def tokens(self, case: Case) -> None:
        return None

    def tensors(self, case: Case) -> list[Tensor]:
        return list(torch.randn(2, *BATCHES[case.batch], device=self.device))

    def ours(self, case: Case, backend: str) -> Variant:
        return Variant(lambda inputs, p: symmetric_kl_delta(*inputs, backend=backend))

    def peer(self, case: Case, name: str) -> Variant:
        joint_round = Case("", "round")
        function = eager_or_compiled(name, log_softmax_form, self.settings, joint_round)
        return Variant(lambda inputs, p: function(*inputs))


class Fisher(Plain):
    """The product with the divergence's Hessian, which the tangent ascent takes."""

    name = "symmetric_kl_fisher"
    variants = (*BACKENDS, "reference")

    def cases(self):
        for batch in list(BATCHES)[: 1 if self.settings.quick else None]:
            yield Case("any model", batch)

    def tokens(self, case: Case) -> None:
        return None

    def tensors(self, case: Case) -> tuple:
        return tuple(torch.randn(2, *BATCHES[case.batch], device=self.device))

    def function(self, case: Case, name: str) -> Callable:
        return lambda logits, tangent: symmetric_kl_fisher(logits, tangent, backend=name)

    def check(self, case: Case, name: str, result: Tensor, tensors: tuple) -> None:
        expected = symmetric_kl_fisher(*(x.double() for x in tensors), backend="reference")
        check_close(f"{self.name} {case} {name}", [result], [expected], 1e-4)
