"""dropout_add_layernorm's launchers."""

from __future__ import annotations

from functools import cached_property

from sbrrt_fast.ops.layernorm import _segments_of
from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import (
    column_sums,
    dense_rows,
    unwritten,
    with_stride,
)
from tests.ops.cases.layernorm import EPS
from tests.ops.op_checks import RNG, SITE


class LayerNormKernels:
    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    def call(self, function, *others):
        x, bias, residual, *_ = self.case.inputs
        x, residual = dense_rows(x), dense_rows(residual)
        rows = *with_stride(x), *with_stride(residual), bias
        dropout = self.case.p, RNG, SITE, self.case.offsets
        arguments = *x.shape, x.dtype, residual.dtype, *rows, *dropout, *others
        library("layernorm").call(function, *arguments, seed=self.seed)

    def like(self, x, gap=0):
        return unwritten(*x.shape, dtype=x.dtype, gap=gap)

    def forward(self, low=None, num_tangents=0, low_tangent=None):
        """out, mean, rstd, and with tangents of the last rows that of out."""
        *_, weight, shift = self.case.inputs
        out = self.like(self.case.inputs[2])
        mean, rstd = unwritten(len(out)), unwritten(len(out))
        written = *with_stride(out), *with_stride(low), mean, rstd
        out_tangent = self.like(out)[:num_tangents] if num_tangents else None
        last = self.last_tangents(num_tangents) if num_tangents else (None, 0) * 2
        tangents = num_tangents, *last, *with_stride(out_tangent), *with_stride(low_tangent)
        self.call("forward", weight, shift, EPS, *written, *tangents)
        return out, mean, rstd, out_tangent

    def last_tangents(self, count):
        """Of x and residual, each with its stride."""
        return [
            part for t in self.case.tangents.values() for part in with_stride(t[len(t) - count :])
        ]

    @cached_property
    def statistics(self):
        return self.forward()[1:3]

    def backward(self, segments=None, grad=None, product=None, gap=0):
        """dx, dresidual, and with segments the sums [num_segments, 3, width] of each."""
        x, _, residual, weight, _ = self.case.inputs
        width, dx, dresidual = x.shape[1], self.like(x), self.like(residual)
        num_segments = 0 if segments is None else len(segments) - 1
        sums = None if segments is None else unwritten(num_segments, 3 * width, gap=gap)
        grad = dense_rows(self.case.grad if grad is None else grad)
        read = *with_stride(grad), *with_stride(product), weight, *self.statistics
        written = *with_stride(dx), *with_stride(dresidual)
        self.call("backward", *read, *written, num_segments, segments, *with_stride(sums))
        return dx, dresidual, None if sums is None else sums.unflatten(1, (3, width))

    def jvp(self, low=None):
        out = self.like(self.case.inputs[2])
        tangents = self.last_tangents(len(out))
        written = *with_stride(out), *with_stride(low)
        self.call("jvp", *tangents, self.case.inputs[3], *self.statistics, *written)
        return out

    @property
    def value(self):
        return [self.forward()[0]]

    @property
    def gradients(self):
        dx, dresidual, sums = self.backward(_segments_of(self.case.inputs[0]))
        dbias, dweight, dshift = column_sums(sums.flatten(1), self.seed).split(dx.shape[1])
        return [dx, dbias, dresidual, dweight, dshift]

    @property
    def tangent(self):
        return [self.jvp()]
