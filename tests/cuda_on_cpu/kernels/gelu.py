"""bias_gelu's launchers."""

from __future__ import annotations

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import (
    column_sums,
    dense_rows,
    num_row_blocks,
    unwritten,
    with_stride,
)


class GeluKernels:
    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    def call(self, function, *arguments):
        library("gelu").call(function, *arguments, seed=self.seed)

    @property
    def value(self):
        return [self.forward()[0]]

    def forward(self, num_tangents=0):
        """The value, and the tangents of the last rows."""
        x, bias = self.case.inputs
        out, x = unwritten(*x.shape, dtype=x.dtype), dense_rows(x)
        tangent = dense_rows(self.case.tangents[0])[len(x) - num_tangents :]
        out_tangent = unwritten(*tangent.shape, dtype=x.dtype)
        pair = (tangent, out_tangent) if num_tangents else (None, None)
        tangents = num_tangents, *with_stride(pair[0]), *with_stride(pair[1])
        rows = *with_stride(x), bias, *with_stride(out)
        self.call("forward", *x.shape, x.dtype, *rows, *tangents)
        return out, out_tangent

    @property
    def gradients(self):
        x = self.case.inputs[0]
        partial = unwritten(num_row_blocks("gelu", len(x)), x.shape[1])
        return [self.grad_of(self.case.grad, partial), column_sums(partial, self.seed)]

    @property
    def tangent(self):
        return [self.grad_of(self.case.tangents[0], None)]

    def grad_of(self, grad, partial):
        """Backward, or with the tangent for the gradient and no sums the tangent."""
        x, bias = self.case.inputs
        out, x, grad = unwritten(*x.shape, dtype=x.dtype), dense_rows(x), dense_rows(grad)
        rows = *with_stride(x), *with_stride(grad), bias, *with_stride(out)
        self.call("grad", *x.shape, x.dtype, *rows, partial)
        return out
