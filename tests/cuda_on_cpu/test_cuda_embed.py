"""embed's CUDA kernels, executed on the CPU."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property

import pytest
import torch

from sbrrt_fast.ops.dropout import dropout_mask
from tests.cuda_on_cpu import CudaError, library
from tests.cuda_on_cpu.cuda_rows import (
    assert_same_bits_in_any_order,
    column_sums,
    dense_rows,
    num_row_blocks,
    unwritten,
    with_stride,
)
from tests.ops.op_checks import BF16, F32, RNG, SITE, assert_as_good_as_stock, gradients
from tests.ops.test_embed import EPS, SAMPLES, Case

F16 = torch.float16
TOKENS_PER_CHUNK = 32  # of csrc/cuda/embed.h
KERNELS = {
    f"{name}, {dtype}": (43, width, 7, 60, dtype, 0.1, "dense")  # tokens of two chunks
    for dtype in (F32, BF16, F16)
    for name, width in {"narrow": 384, "wide": 1024, "any": 37}.items()
}
MORE = {
    "more tokens than blocks hold": (2053, 4, 90, 40, F32, 0.1, "dense"),
    "widest": (3, 2048, 5, 5, F32, 0.1, "dense"),
}
all_samples = SAMPLES | KERNELS | MORE
samples = pytest.mark.parametrize("sample", all_samples.values(), ids=all_samples.keys())
kernels = pytest.mark.parametrize("sample", KERNELS.values(), ids=KERNELS.keys())


def sum_tables(ds, lookups, dtype=F32, seed=0, orders=None):
    """Sums rows of ds by the row of a table that their tokens read; lookups: (indices, sums)."""
    num_tokens, width = ds.shape
    partial = unwritten(3, -(-num_tokens // TOKENS_PER_CHUNK), 2, width)
    orders = orders or [index.argsort(stable=True) for index, _ in lookups]
    arguments = [num_tokens, width, dtype, ds, partial]
    for (index, out), order in zip(lookups, orders, strict=True):
        arguments += [index, order, 0 if out is None else len(out), out]
    library("embed").call("tables", *arguments, seed=seed)


class CudaCase(Case):
    """A sample of the C++ op's tests, run by the CUDA launchers."""

    def call(self, function, *others, inputs=None, seed=0):
        tables = [dense_rows(table) for table in (inputs or self.inputs)[:3]]
        arguments = [len(self.offsets), tables[0].shape[1], tables[0].dtype]
        for indices, table in zip(self.tokens, tables, strict=True):
            arguments += [indices, *with_stride(table), len(table)]
        arguments += [self.p, RNG, SITE, self.offsets]
        library("embed").call(function, *arguments, *others, seed=seed)

    def forward(self, inputs=None, seed=0):
        inputs = inputs or self.inputs
        out = unwritten(len(self.offsets), inputs[0].shape[1], dtype=inputs[0].dtype)
        mean, rstd = unwritten(len(out)), unwritten(len(out))
        written = *with_stride(out), mean, rstd
        self.call("forward", *inputs[3:], EPS, *written, inputs=inputs, seed=seed)
        return out, mean, rstd

    @cached_property
    def statistics(self):
        return self.forward()[1:]

    def backward(self, seed=0, needs=(True,) * 3):
        width, blocks = self.grad.shape[1], num_row_blocks("embed", len(self.offsets))
        ds, partial = unwritten(*self.grad.shape), unwritten(blocks, 2 * width)
        read = *with_stride(dense_rows(self.grad)), self.inputs[3], *self.statistics
        self.call("backward", *read, ds, partial, seed=seed)
        tables = [
            self.empty_gradient(table, need)
            for table, need in zip(self.inputs, needs, strict=False)
        ]
        sum_tables(ds, list(zip(self.tokens, tables, strict=True)), self.inputs[0].dtype, seed)
        return *tables, *column_sums(partial, seed).split(width)

    def empty_gradient(self, table, need):
        """Zeros where a kernel leaves rows out that no token reads."""
        if not need:
            return None
        start = 0.0 if len(table) > len(self.offsets) else float("nan")
        return torch.full(table.shape, start, dtype=table.dtype)


@samples
def test_values(sample):
    case = CudaCase(sample)
    exact = case.stock(*case.exact_inputs())
    assert_as_good_as_stock(case.forward()[0], case.stock(*case.inputs), exact)


@samples
def test_gradients(sample):
    case = CudaCase(sample)
    exact = gradients(case.stock, case.exact_inputs(), case.grad.double())
    stock = gradients(case.stock, case.inputs, case.grad)
    for triple in zip(case.backward(), stock, exact, strict=True):
        assert_as_good_as_stock(*triple)


@samples
def test_masks_are_those_of_dropout_mask(sample):
    case = CudaCase(sample)
    width = case.grad.shape[1]
    mask = dropout_mask(case.offsets, width, case.p, RNG, SITE)
    tables = [torch.zeros(table.shape) for table in case.inputs[:3]]
    inputs = [*tables, torch.zeros(width), torch.ones(width)]
    assert torch.equal(case.forward(inputs)[0], mask)  # LayerNorm gives 1 everywhere


def test_rows_that_no_token_reads_have_zero_gradient():
    case = CudaCase(SAMPLES["512 tokens"])
    word, position, *_ = case.backward()
    for table, indices in ((word, case.tokens[0]), (position, case.tokens[1])):
        is_read = torch.zeros(len(table), dtype=torch.bool)
        is_read[indices] = True
        assert 0 < int(is_read.sum()) < len(table)
        assert not table[~is_read].any()
        assert table[is_read].any(dim=1).all()


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, True), (False,) * 3])
def test_only_wanted_tables_are_written(needs):
    case = CudaCase(SAMPLES["primes"])
    whole = case.backward()
    for need, mine, other in zip(
        (*needs, True, True), case.backward(needs=needs), whole, strict=True
    ):
        assert mine is None if not need else torch.equal(mine, other)


def test_an_index_outside_its_table_gives_nan_and_touches_nothing_else():
    case = CudaCase(SAMPLES["primes"])
    expected, statistics = case.forward()[0], case.statistics
    before = case.backward()
    for i, bad in enumerate((-1, 10**9, 2)):
        case.tokens[i][3 + i] = bad
    got = case.forward()[0]
    is_bad = torch.zeros(len(got), dtype=torch.bool)
    is_bad[3:6] = True
    assert got[is_bad][case.kept[is_bad]].isnan().all()
    assert torch.equal(got[~is_bad], expected[~is_bad])
    case.statistics = statistics
    assert [g.shape for g in case.backward()] == [g.shape for g in before]


RUNS = [1, 2, 30, 31, 32, 33, 63, 64, 65, 0, 300]  # tokens of a row; chunks have 32


def sums_of_runs(runs, orders=None):
    """Sums where rows are read so often, and the exact ones: ds are whole numbers."""
    torch.manual_seed(0)
    index = torch.repeat_interleave(torch.arange(len(runs)), torch.tensor(runs))
    index = index[torch.randperm(len(index))]
    ds = torch.randint(-99, 100, (len(index), 5)).float()
    lookups = [(index, unwritten(len(runs), 5)), (index * 0, unwritten(2, 5)), (index, None)]
    sum_tables(ds, lookups, orders=orders)
    exact = [torch.zeros(out.shape).index_add(0, i, ds) for i, out in lookups[:2]]
    return [out for _, out in lookups[:2]], exact


@pytest.mark.parametrize("runs", [RUNS, RUNS[::-1], [32] * 9, [1] * 70, [31, 2] * 8, [0, 0, 7]])
def test_rows_that_are_read_any_number_of_times(runs):
    for got, expected in zip(*sums_of_runs(runs), strict=True):
        assert torch.equal(got, expected)


def test_a_table_of_more_rows_than_tokens_keeps_its_zeros():
    index, ds = torch.tensor([70, 3, 70]), torch.ones(3, 5)
    out = torch.zeros(100, 5)
    out[50] = 7.0  # the launcher's: no kernel writes there
    sum_tables(ds, [(index, out), (index * 0, None), (index * 0, None)])
    assert out.sum(dim=1).nonzero().flatten().tolist() == [3, 50, 70]
    assert (out[70] == 2).all()


def test_nan_of_one_token_stays_in_its_row():
    index, ds = torch.arange(40) % 9, torch.ones(40, 5)
    ds[12] = float("nan")
    out = unwritten(9, 5)
    sum_tables(ds, [(index, out), (index * 0, None), (index * 0, None)])
    assert out.isnan().all(dim=1).nonzero().flatten().tolist() == [12 % 9]


@pytest.mark.parametrize("wrong", [-1, 10**12, 0])
def test_a_wrong_order_touches_no_other_memory(wrong):
    index, ds = torch.arange(40) % 9, torch.ones(40, 5)
    order = index.argsort(stable=True)
    order[7] = wrong
    lookups = [(index, unwritten(9, 5)), (index * 0, None), (index * 0, None)]
    with suppress(CudaError):  # two blocks may meet in one row, which the machine tells
        sum_tables(ds, lookups, orders=[order] * 3)


def num_reads(num_tokens):
    """Reads of memory while the gradients of BERT's tables are made, of a tenth of the tokens one
    word, the others drawn."""
    torch.manual_seed(0)
    ids = torch.randint(num_tokens, (num_tokens,))
    ids[::10] = 7
    tables = (ids, num_tokens), (torch.arange(num_tokens) % 32, 512), (ids * 0, 2)
    lookups = [(index, torch.zeros(rows, 128)) for index, rows in tables]
    before = library("embed").num_global_reads
    sum_tables(torch.randn(num_tokens, 128), lookups)
    return library("embed").num_global_reads - before


@pytest.mark.parametrize("num_tokens", [512, 1024, 4096])
def test_the_work_grows_with_the_tokens_alone(num_tokens):
    """Not with their square, and not with how often one row is read.

    A token takes 96 reads of its features, four at once, for the three tables; the others are of
    orders, indices and partial sums.
    """
    assert num_reads(num_tokens) < 300 * num_tokens


def test_rows_that_are_too_wide_are_refused():
    with pytest.raises(CudaError, match="returned error 1"):
        CudaCase((2, 2049, 3, 3, F32, 0.1, "dense")).forward()


@kernels
def test_same_bits_in_any_order_of_threads(sample):
    case = CudaCase(sample)
    assert_same_bits_in_any_order(lambda seed: [*case.forward(seed=seed), *case.backward(seed)])
