"""dropout(LN(word[id] + position[p] + type[t])) and its backward; docs/math/embed.md.

An index outside its table reads NaN and gets no gradient: a device cannot raise, and must not read
what is not the table's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import dense_rows
from .launch import launch
from .layernorm import normalize, project, standardize
from .philox import dropout_numbers, load_stream
from .row_checks import (
    check_epsilon,
    check_floats,
    check_indices,
    check_row_dropout,
    check_rows,
    check_statistics,
)
from .rows import (
    column_sums,
    load_float,
    row_factors,
    row_launch,
    rows_per_program,
)

# Gathered gradients per tile of a table's sum. Most words occur once or twice, but all tokens
# share one or two types: 32 rows at a time keep that longest sum to some twenty steps.
SUM = {"TOKENS": 32, "COLUMNS": 128}


@triton.jit
def _table_row(p_table, p_index, i_token, num_rows, width, o, m):
    """The table's row that a token reads, float32 [BLOCK]; NaN where there is no such row."""
    i_row = tl.load(p_index + i_token)
    num_read = tl.where((i_row >= 0) & (i_row < num_rows), width, 0)
    b_row = load_float(p_table + i_row * width, o, o < num_read)
    return tl.where(m & (o >= num_read), float("nan"), b_row)


@triton.jit
def _embedding_sum(word, position, type_, i_token, width, o, m):
    """word + position + type of a token, float32 [BLOCK].

    Each table is (pointer to it, pointer to the tokens' indices, number of its rows).
    """
    b_s = _table_row(word[0], word[1], i_token, word[2], width, o, m)
    b_s += _table_row(position[0], position[1], i_token, position[2], width, o, m)
    return b_s + _table_row(type_[0], type_[1], i_token, type_[2], width, o, m)


@triton.jit(do_not_specialize=["site", "threshold"])
def _forward_kernel(
    p_word,  # [num_words, width]
    p_ids,  # int64 [num_tokens]
    p_position,  # [num_positions, width]
    p_positions,  # int64 [num_tokens]
    p_type,  # [num_types, width]
    p_types,  # int64 [num_tokens]
    p_weight,  # [width]
    p_shift,  # [width]
    p_offsets,  # int64 [num_tokens]
    p_rng,  # int64 [2]
    p_out,  # [num_tokens, width]
    p_mean,  # float32 [num_tokens]
    p_rstd,  # float32 [num_tokens]
    num_words,
    num_positions,
    num_types,
    width,
    eps,
    site,
    threshold,
    scale,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    i_token = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    m = o < width
    word, position = (p_word, p_ids, num_words), (p_position, p_positions, num_positions)
    b_s = _embedding_sum(word, position, (p_type, p_types, num_types), i_token, width, o, m)
    mean, rstd, b_z = normalize(b_s, m, width, eps)
    b_out = b_z * load_float(p_weight, o, m) + load_float(p_shift, o, m)
    stream = load_stream(p_rng, site)
    b_out *= row_factors(p_offsets + i_token, stream, threshold, scale, BLOCK, DROPS)
    tl.store(p_out + i_token * width + o, b_out, mask=m)
    tl.store(p_mean + i_token, mean)
    tl.store(p_rstd + i_token, rstd)


@triton.jit(do_not_specialize=["num_tokens", "rows_per_program", "site", "threshold"])
def _backward_kernel(
    p_grad,  # [num_tokens, width], rows grad_stride apart
    p_word,  # [num_words, width]
    p_ids,  # int64 [num_tokens]
    p_position,  # [num_positions, width]
    p_positions,  # int64 [num_tokens]
    p_type,  # [num_types, width]
    p_types,  # int64 [num_tokens]
    p_weight,  # [width]
    p_mean,  # float32 [num_tokens]
    p_rstd,  # float32 [num_tokens]
    p_offsets,  # int64 [num_tokens]
    p_rng,  # int64 [2]
    p_ds,  # float32 [num_tokens, width], the gradient of the sum
    p_partial,  # float32 [num_programs, 2, width]: each program's dweight, dshift
    grad_stride,
    num_words,
    num_positions,
    num_types,
    num_tokens,
    rows_per_program,
    width,
    site,
    threshold,
    scale,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    i_program = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)
    m = o < width
    stream = load_stream(p_rng, site)
    word, position = (p_word, p_ids, num_words), (p_position, p_positions, num_positions)
    type_ = (p_type, p_types, num_types)
    b_weight = load_float(p_weight, o, m)
    b_dweight = tl.zeros((BLOCK,), tl.float32)
    b_dshift = tl.zeros((BLOCK,), tl.float32)
    i_first = i_program * rows_per_program
    for i_token in range(i_first, tl.minimum(i_first + rows_per_program, num_tokens)):
        b_grad = load_float(p_grad + i_token * grad_stride, o, m)
        b_grad *= row_factors(p_offsets + i_token, stream, threshold, scale, BLOCK, DROPS)
        rstd = tl.load(p_rstd + i_token)
        b_s = _embedding_sum(word, position, type_, i_token, width, o, m)
        b_z = standardize(b_s, m, tl.load(p_mean + i_token), rstd)
        b_ds = project(b_grad * b_weight, b_z, rstd, width)
        tl.store(p_ds + i_token * width + o, b_ds, mask=m)
        b_dweight += b_grad * b_z
        b_dshift += b_grad
    p_sums = p_partial + i_program * 2 * width + o
    tl.store(p_sums, b_dweight, mask=m)
    tl.store(p_sums + width, b_dshift, mask=m)


@triton.jit(do_not_specialize=["num_tokens"])
def _table_kernel(
    p_ds,  # float32 [num_tokens, width]
    p_sorted,  # int64 [num_tokens], the table's rows that tokens read, ascending
    p_order,  # int64 [num_tokens], the tokens in that order
    p_table,  # [num_rows, width], the table's gradient, zeros
    num_tokens,
    num_rows,
    width,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The first token of each row adds up all of that row's, in their order."""
    i_first = tl.program_id(0)
    i_row = tl.load(p_sorted + i_first)
    i_before = tl.load(p_sorted + i_first - 1, mask=i_first > 0, other=-1)
    if (i_row != i_before) & (i_row >= 0) & (i_row < num_rows):
        o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        m_column = o_column < width
        b_total = tl.zeros((COLUMNS,), tl.float32)
        num_found = TOKENS
        while num_found == TOKENS:
            o_token = i_first + tl.arange(0, TOKENS)
            m_token = o_token < num_tokens
            m_token = m_token & (tl.load(p_sorted + o_token, mask=m_token, other=-1) == i_row)
            i_token = tl.load(p_order + o_token, mask=m_token, other=0)
            p_tile = p_ds + i_token[:, None] * width + o_column[None, :]
            m_tile = m_token[:, None] & m_column[None, :]
            b_total += tl.sum(tl.load(p_tile, mask=m_tile, other=0.0), axis=0)
            num_found = tl.sum(m_token.to(tl.int32), axis=0)
            i_first += TOKENS
        tl.store(p_table + i_row * width + o_column, b_total, mask=m_column)


@dataclass(frozen=True)
class _Tables:
    """The three tables and the rows of them that the tokens read."""

    ids: Tensor
    positions: Tensor
    types: Tensor
    word: Tensor
    position: Tensor
    type_: Tensor

    def check(self, op: str, weight: Tensor) -> tuple[int, int, torch.device]:
        """(tokens, width, device)."""
        _, width = check_rows(op, "word", self.word)
        num_tokens, device = self.ids.numel(), self.word.device
        indices = {"ids": self.ids, "positions": self.positions, "types": self.types}
        check_indices(op, device, num_tokens, **indices)
        tables = {"position": self.position, "type": self.type_}
        shapes = {name: (x, (x.shape[0], width)) for name, x in tables.items()}
        check_floats(op, device, weight=(weight, (width,)), **shapes)
        return num_tokens, width, device

    def pointers(self) -> list[Tensor]:
        pairs = (self.word, self.ids), (self.position, self.positions), (self.type_, self.types)
        return [x.contiguous() for pair in pairs for x in pair]

    def sizes(self) -> list[int]:
        return [x.shape[0] for x in (self.word, self.position, self.type_)]


def forward(
    ids: Tensor, positions: Tensor, types: Tensor, word: Tensor, position: Tensor, type_: Tensor,
    weight: Tensor, shift: Tensor, eps: float, p: float, rng: Tensor, site: int, offsets: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(out [num_tokens, width] of the word table's dtype, mean, rstd)."""
    op, tables = "embed_forward", _Tables(ids, positions, types, word, position, type_)
    num_tokens, width, device = tables.check(op, weight)
    check_floats(op, device, shift=(shift, (width,)))
    check_epsilon(op, eps)
    check_row_dropout(op, p, rng, site, offsets, num_tokens, device)
    out = torch.empty(num_tokens, width, dtype=word.dtype, device=device)
    mean, rstd = (torch.empty(num_tokens, dtype=torch.float32, device=device) for _ in range(2))
    launch(
        _forward_kernel, (num_tokens,),
        *tables.pointers(), weight.contiguous(), shift.contiguous(), offsets.contiguous(),
        rng.contiguous(), out, mean, rstd, *tables.sizes(), width, eps, site,
        *dropout_numbers(p), DROPS=p > 0, **row_launch(width),
    )  # fmt: skip
    return out, mean, rstd


def backward(
    grad: Tensor, ids: Tensor, positions: Tensor, types: Tensor, word: Tensor, position: Tensor,
    type_: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, p: float, rng: Tensor, site: int,
    offsets: Tensor, needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dword, dposition, dtype, dweight, dshift), dense; empty where ``needs`` says no."""
    op, tables = "embed_backward", _Tables(ids, positions, types, word, position, type_)
    num_tokens, width, device = tables.check(op, weight)
    check_floats(op, device, grad=(grad, (num_tokens, width)))
    check_statistics(op, device, num_tokens, mean=mean, rstd=rstd)
    check_row_dropout(op, p, rng, site, offsets, num_tokens, device)
    grad, rows = dense_rows(grad), rows_per_program(num_tokens)
    ds = torch.empty(num_tokens, width, dtype=torch.float32, device=device)
    partial = mean.new_empty(triton.cdiv(num_tokens, rows), 2, width)
    launch(
        _backward_kernel, (partial.shape[0],),
        grad, *tables.pointers(), weight.contiguous(), mean.contiguous(), rstd.contiguous(),
        offsets.contiguous(), rng.contiguous(), ds, partial, grad.stride(0), *tables.sizes(),
        num_tokens, rows, width, site, *dropout_numbers(p), DROPS=p > 0,
        **row_launch(width),
    )  # fmt: skip
    indices = (ids, word), (positions, position), (types, type_)
    found = [
        _table_gradient(ds, *pair, needed) for pair, needed in zip(indices, needs[:3], strict=True)
    ]
    sums = column_sums(partial).to(weight.dtype) if any(needs[3:]) else None
    return (*found, *(sums[i] if needs[3 + i] else weight.new_empty(0) for i in range(2)))


def _table_gradient(ds: Tensor, index: Tensor, table: Tensor, needed: bool) -> Tensor:
    """Sums of the rows of ds by the row of the table that their tokens read."""
    if not needed:
        return table.new_empty(0, table.shape[1])
    gradient = torch.zeros(table.shape, dtype=table.dtype, device=table.device)
    num_tokens, width = ds.shape
    ascending, order = torch.sort(index, stable=True)
    grid = (num_tokens, triton.cdiv(width, SUM["COLUMNS"]))
    launch(_table_kernel, grid, ds, ascending, order, gradient, num_tokens, *table.shape, **SUM)
    return gradient


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    for width, p in itertools.product((384, 768, 1024), (0.0, 0.1)):
        table = torch.empty(512, width, device="meta")
        vector, grad = table[0], table[:8]
        offsets, rng = (table.new_empty(n, dtype=torch.int64) for n in (8, 2))
        indices, dropout = (offsets, offsets, offsets), (p, rng, 5, offsets)
        places, statistics = (*indices, table, table, table, vector), (grad[:, 0], grad[:, 0])
        name, needs = f"{width} p={p}", [True] * 5
        yield f"forward {name}", partial(forward, *places, vector, 1e-12, *dropout)
        yield f"backward {name}", partial(backward, grad, *places, *statistics, *dropout, needs)
