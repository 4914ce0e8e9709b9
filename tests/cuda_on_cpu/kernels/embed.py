"""embed's launchers."""

from __future__ import annotations

from functools import cached_property

import torch

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import (
    column_sums,
    dense_rows,
    num_row_blocks,
    unwritten,
    with_stride,
)
from tests.ops.cases.embed import EPS
from tests.ops.op_checks import F32, RNG, SITE

TOKENS_PER_CHUNK = 32  # of csrc/cuda/embed.h


def sum_tables(ds, lookups, dtype=F32, seed=0, orders=None):
    """Sums rows of ds by the row of a table that their tokens read; lookups: (indices, sums)."""
    num_tokens, width = ds.shape
    partial = unwritten(3, -(-num_tokens // TOKENS_PER_CHUNK), 2, width)
    orders = orders or [index.argsort(stable=True) for index, _ in lookups]
    arguments = [num_tokens, width, dtype, ds, partial]
    for (index, out), order in zip(lookups, orders, strict=True):
        arguments += [index, order, 0 if out is None else len(out), out]
    library("embed").call("tables", *arguments, seed=seed)


class EmbedKernels:
    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    def call(self, function, *others):
        case = self.case
        tables = [dense_rows(table) for table in case.inputs[:3]]
        arguments = [len(case.offsets), tables[0].shape[1], tables[0].dtype]
        for indices, table in zip(case.tokens, tables, strict=True):
            arguments += [indices, *with_stride(table), len(table)]
        arguments += [case.p, RNG, SITE, case.offsets]
        library("embed").call(function, *arguments, *others, seed=self.seed)

    def forward(self):
        word, *_, weight, shift = self.case.inputs
        out = unwritten(len(self.case.offsets), word.shape[1], dtype=word.dtype)
        mean, rstd = unwritten(len(out)), unwritten(len(out))
        self.call("forward", weight, shift, EPS, *with_stride(out), mean, rstd)
        return out, mean, rstd

    @cached_property
    def statistics(self):
        return self.forward()[1:]

    def backward(self, needs=(True,) * 3):
        case, width = self.case, self.case.grad.shape[1]
        blocks = num_row_blocks("embed", len(case.offsets))
        ds, partial = unwritten(*case.grad.shape), unwritten(blocks, 2 * width)
        read = *with_stride(dense_rows(case.grad)), case.inputs[3], *self.statistics
        self.call("backward", *read, ds, partial)
        tables = [
            self.empty_gradient(table, need)
            for table, need in zip(case.inputs, needs, strict=False)
        ]
        lookups = list(zip(case.tokens, tables, strict=True))
        sum_tables(ds, lookups, case.inputs[0].dtype, self.seed)
        return *tables, *column_sums(partial, self.seed).split(width)

    def empty_gradient(self, table, need):
        """Zeros where a kernel leaves rows out that no token reads."""
        if not need:
            return None
        start = 0.0 if len(table) > len(self.case.offsets) else float("nan")
        return torch.full(table.shape, start, dtype=table.dtype)

    @property
    def value(self):
        return [self.forward()[0]]

    @property
    def gradients(self):
        return list(self.backward())
