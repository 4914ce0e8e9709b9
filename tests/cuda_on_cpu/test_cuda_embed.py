"""embed's CUDA kernels on the CPU: sums of runs of tokens, wrong orders, the work they are."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from tests.cuda_on_cpu import CudaError, library
from tests.cuda_on_cpu.cuda_rows import unwritten
from tests.cuda_on_cpu.kernels.embed import EmbedKernels, sum_tables
from tests.ops.cases import OPS
from tests.ops.cases.embed import EmbedCase
from tests.ops.op_checks import F32


@pytest.mark.parametrize("needs", [(True, False, False), (False, True, True), (False,) * 3])
def test_only_wanted_tables_are_written(needs):
    case = EmbedKernels(EmbedCase(OPS["embed"].samples["primes"]))
    whole = case.backward()
    for need, mine, other in zip(
        (*needs, True, True), case.backward(needs=needs), whole, strict=True
    ):
        assert mine is None if not need else torch.equal(mine, other)


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
        EmbedKernels(EmbedCase((2, 2049, 3, 3, F32, 0.1, "dense"))).forward()
