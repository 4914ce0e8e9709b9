"""embed in Triton: a planted bug in the masks, and the sums of rows that tokens read."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.kernels import embed as kernels
from sbrrt_fast.kernels import embed_tables, rows
from tests.ops.backends import run
from tests.ops.cases import OPS
from tests.ops.cases.embed import EmbedCase
from tests.ops.triton_checks import assert_caught, here, interpreted


def wrong_elements() -> int:
    """Elements that are dropped where the reference keeps them, or the reverse."""
    op = OPS["embed"]
    case = EmbedCase(op.samples["every token the same"])
    hidden = case.grad.shape[1]
    case.inputs[3], case.inputs[4] = torch.zeros(hidden), torch.ones(hidden)
    return int((run(op, "triton", case).value[0].cpu() != case.factors()).sum())


@triton.jit
def _flip_last_of_tile(
    p_offsets, o_row, num_rows, dropout, BLOCK: tl.constexpr, DROPS: tl.constexpr
):
    """A planted bug: the mask is wrong at the last feature of the last row of each tile."""
    b_factor = rows.row_factors(p_offsets, o_row, num_rows, dropout, BLOCK, DROPS)
    num_in_tile = o_row.shape[0]
    is_last = (o_row % num_in_tile == num_in_tile - 1) & (tl.arange(0, BLOCK) == 63)[None, :]
    return tl.where(is_last, dropout[2] - b_factor, b_factor)


@interpreted
def test_a_planted_bug_in_the_masks_is_caught(monkeypatch):
    monkeypatch.setattr(kernels, "row_factors", _flip_last_of_tile)
    assert wrong_elements() == 8
    assert_caught("embed", "every token the same", monkeypatch)


CHUNK = embed_tables.CHUNK
SMALL_CHUNK = 8  # as good for sums of several chunks, and the interpreter is slow
# Runs begin anywhere in a chunk; 32 partial sums are added up at a time.
RUNS = [1, 2, 7, 8, 9, 0, 15, 16, 17, 8 * 40, 3, 31, 33]


def sums_by_row(runs: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A table's gradient where rows are read so often, and the exact one: ds are whole numbers."""
    torch.manual_seed(0)
    index = torch.repeat_interleave(torch.arange(len(runs)) * 2, torch.tensor(runs))
    index = index[torch.randperm(len(index))]
    ds = torch.randint(-99, 100, (len(index), 5)).float()
    return table_sums(ds, index, 2 * len(runs)), torch.zeros(2 * len(runs), 5).index_add(
        0, index, ds
    )


def table_sums(ds, index, num_rows, order=None) -> torch.Tensor:
    ds, index, sums = here([ds, index, torch.full((num_rows, ds.shape[1]), torch.nan)])
    embed_tables.table_gradient_into(ds, index, order, sums)
    return sums.cpu()


@pytest.mark.parametrize("runs", [RUNS, RUNS[::-1], [8] * 5, [1] * 20])
def test_rows_that_are_read_any_number_of_times(runs, monkeypatch):
    monkeypatch.setattr(embed_tables, "CHUNK", SMALL_CHUNK)
    got, expected = sums_by_row(runs)
    assert torch.equal(got, expected)


def test_tiles_of_a_sum_end_with_their_chunk():
    got, expected = sums_by_row([1, 33, CHUNK, 65])
    assert torch.equal(got, expected)


@interpreted
def test_a_sum_that_stops_at_its_chunk_is_caught(monkeypatch):
    """A planted bug: nobody adds up the sums of chunks."""
    monkeypatch.setattr(embed_tables, "CHUNK", SMALL_CHUNK)
    ends = torch.tensor(RUNS).cumsum(0)
    first, last = (ends - torch.tensor(RUNS)) // SMALL_CHUNK, (ends - 1) // SMALL_CHUNK
    monkeypatch.setattr(embed_tables, "_join_kernel", _joins_nothing)
    got, expected = sums_by_row(RUNS)
    wrong = (got != expected).any(dim=1)[::2].tolist()
    assert wrong == [bool(run > 0 and a < b) for run, a, b in zip(RUNS, first, last, strict=True)]


@triton.jit
def _joins_nothing(
    p_partial, p_index, p_order, p_table, num_tokens, num_chunks, num_rows, width,
    CHUNK: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tl.load(p_partial)


def test_nan_of_one_token_stays_in_its_row():
    index, ds = torch.arange(150) % 2, torch.ones(150, 5)
    ds[12] = float("nan")
    got = table_sums(ds, index, 2)
    assert got.isnan().all(dim=1).tolist() == [True, False]
    assert got[1].tolist() == [75.0] * 5


@interpreted
def test_a_wrong_order_touches_no_other_memory():
    index, order = torch.arange(40) % 9, torch.arange(40)
    order[3], order[4] = -1, 10**12
    assert table_sums(torch.ones(40, 5), index, 9, order).shape == (9, 5)
