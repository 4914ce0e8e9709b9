"""dropout_add_layernorm's launchers."""

from __future__ import annotations

from functools import cached_property

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import (
    column_sums,
    dense_rows,
    num_row_blocks,
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

    def forward(self, low=None):
        *_, weight, shift = self.case.inputs
        out = self.like(self.case.inputs[2])
        mean, rstd = unwritten(len(out)), unwritten(len(out))
        written = *with_stride(out), *with_stride(low), mean, rstd
        self.call("forward", weight, shift, EPS, *written)
        return out, mean, rstd

    @cached_property
    def statistics(self):
        return self.forward()[1:]

    def backward(self, grad=None, product=None, need_weight_grads=True):
        """dx, dresidual, and of bias, weight and shift where they are needed."""
        x, _, residual, weight, _ = self.case.inputs
        width, dx, dresidual = x.shape[1], self.like(x), self.like(residual)
        blocks = num_row_blocks("layernorm", len(x))
        partial = unwritten(blocks, 3 * width) if need_weight_grads else None
        grad = dense_rows(self.case.grad if grad is None else grad)
        read = *with_stride(grad), *with_stride(product), weight, *self.statistics
        written = *with_stride(dx), *with_stride(dresidual), partial
        self.call("backward", *read, *written)
        if not need_weight_grads:
            return dx, dresidual
        return dx, dresidual, *column_sums(partial, self.seed).split(width)

    def jvp(self, low=None):
        out = self.like(self.case.inputs[2])
        tangents = [value for t in self.case.tangents.values() for value in with_stride(t)]
        written = *with_stride(out), *with_stride(low)
        self.call("jvp", *tangents, self.case.inputs[3], *self.statistics, *written)
        return out

    @property
    def value(self):
        return [self.forward()[0]]

    @property
    def gradients(self):
        dx, dresidual, dbias, dweight, dshift = self.backward()
        return [dx, dbias, dresidual, dweight, dshift]

    @property
    def tangent(self):
        return [self.jvp()]
