"""attention's launchers."""

from __future__ import annotations

from functools import cached_property

import torch

from tests.cuda_on_cpu import library
from tests.ops.op_checks import RNG, SITE

NAN = float("nan")


def views(*tensors):
    """Each tensor with dense rows and its stride, as the launchers take them."""
    dense = (x if x.stride(1) == 1 else x.contiguous() for x in tensors)
    return [y for x in dense for y in (x, x.stride(0))]


class AttentionKernels:
    """A case's calls; results start as NaN."""

    def __init__(self, case, seed=0, variant=None, rng=RNG):
        self.case, self.seed, self.library = case, seed, library("attention", variant)
        self.like = case.inputs[0]
        num_tokens, hidden = self.like.shape
        sizes = len(case.lengths), num_tokens, case.max_length, case.num_heads
        kind = hidden // case.num_heads, self.like.dtype
        numbers = *sizes, *kind, rng, SITE, case.max_positions, case.p
        self.batch = case.cu_seqlens, case.rows, *numbers

    def empty(self):
        return torch.full(self.like.shape, NAN, dtype=self.like.dtype)

    def call(self, name, *arguments):
        self.library.call(name, *self.batch, *arguments, seed=self.seed)

    def forward(self, *inputs):
        out = self.empty()
        logsumexp = torch.full((self.like.shape[0], self.case.num_heads), NAN)
        self.call("forward", *views(*inputs, out), logsumexp)
        return out, logsumexp

    def backward(self, grad, inputs, logsumexp, results=None):
        results = results or [self.empty() for _ in range(3)]
        size = torch.zeros(1, dtype=torch.int64)
        self.call("workspace_bytes", size)
        workspace = torch.full((size.item(),), 255, dtype=torch.uint8)
        self.call("backward", *views(grad, *inputs), logsumexp, *views(*results), workspace)
        return results

    def jvp(self, inputs, tangents, logsumexp):
        out = self.empty()
        self.call("jvp", *views(*inputs, *tangents), logsumexp, *views(out))
        return out

    @cached_property
    def results(self):
        return self.forward(*self.case.inputs)

    @property
    def logsumexp(self):
        return self.results[1]

    @property
    def value(self):
        return [self.results[0]]

    @property
    def gradients(self):
        return self.backward(self.case.grad, self.case.inputs, self.logsumexp)

    @property
    def tangent(self):
        return [self.jvp(self.case.inputs, self.case.tangents.values(), self.logsumexp)]
