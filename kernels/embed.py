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

from .checks import check_tensor, dense_rows
from .embed_tables import CHUNK, table_gradient
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
    row_tile,
    store_sum,
    tile_rows,
    tiles_per_program,
)


@triton.jit
def _table_rows(table, o_token, o, m, num_tokens, width):
    """The rows that tokens read, float32 [ROWS, BLOCK]; NaN where the table has no such row.

    table: pointer to it, pointer to the tokens' indices, number of its rows.
    """
    i_row = tl.load(table[1] + o_token, mask=o_token < num_tokens, other=-1)
    num_read = tl.where((i_row >= 0) & (i_row < table[2]), width, 0)
    b_row = load_float(table[0], i_row * width + o, o < num_read)
    return tl.where(m & (o >= num_read), float("nan"), b_row)


@triton.jit
def _embedding_sum(word, position, type_, o_token, o, m, num_tokens, width):
    """word + position + type, float32 [ROWS, BLOCK]."""
    b_s = _table_rows(word, o_token, o, m, num_tokens, width)
    b_s += _table_rows(position, o_token, o, m, num_tokens, width)
    return b_s + _table_rows(type_, o_token, o, m, num_tokens, width)


@triton.jit(do_not_specialize=["num_tokens", "site", "threshold"])
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
    num_tokens,
    width,
    eps,
    site,
    threshold,
    scale,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    i_tile = tl.program_id(0).to(tl.int64)
    o_token, o, m = tile_rows(i_tile, num_tokens, width, ROWS, BLOCK)
    word, position = (p_word, p_ids, num_words), (p_position, p_positions, num_positions)
    tables = (word, position, (p_type, p_types, num_types))
    dropout = (load_stream(p_rng, site), threshold, scale)
    b_factor = row_factors(p_offsets, o_token, num_tokens, dropout, BLOCK, DROPS)
    b_s = _embedding_sum(*tables, o_token, o, m, num_tokens, width)
    mean, rstd, b_z = normalize(b_s, m, width, eps)
    b_out = b_z * load_float(p_weight, o, o < width) + load_float(p_shift, o, o < width)
    tl.store(p_out + o_token * width + o, b_out * b_factor, mask=m)
    tl.store(p_mean + o_token, mean, mask=o_token < num_tokens)
    tl.store(p_rstd + o_token, rstd, mask=o_token < num_tokens)


@triton.jit(do_not_specialize=["num_tokens", "num_tiles", "site", "threshold"])
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
    num_tiles,  # of each program
    width,
    site,
    threshold,
    scale,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    i_program = tl.program_id(0).to(tl.int64)
    word, position = (p_word, p_ids, num_words), (p_position, p_positions, num_positions)
    tables = (word, position, (p_type, p_types, num_types))
    dropout = (load_stream(p_rng, site), threshold, scale)
    b_dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    b_dshift = tl.zeros((ROWS, BLOCK), tl.float32)
    for i_tile in range(i_program * num_tiles, (i_program + 1) * num_tiles):
        o_token, o, m = tile_rows(i_tile, num_tokens, width, ROWS, BLOCK)
        b_factor = row_factors(p_offsets, o_token, num_tokens, dropout, BLOCK, DROPS)
        b_s = _embedding_sum(*tables, o_token, o, m, num_tokens, width)
        b_z, rstd = standardize(b_s, p_mean, p_rstd, o_token, m, num_tokens)
        b_grad = load_float(p_grad, o_token * grad_stride + o, m) * b_factor
        b_ds = project(b_grad * load_float(p_weight, o, o < width), b_z, rstd, width)
        tl.store(p_ds + o_token * width + o, b_ds, mask=m)
        b_dweight += b_grad * b_z
        b_dshift += b_grad
    store_sum(p_partial + i_program * 2 * width, b_dweight, width)
    store_sum(p_partial + i_program * 2 * width + width, b_dshift, width)


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
    tile = row_tile("embed forward", width)
    launch(
        _forward_kernel, (triton.cdiv(num_tokens, tile["ROWS"]),), *tables.pointers(),
        weight.contiguous(), shift.contiguous(), offsets.contiguous(), rng.contiguous(), out, mean,
        rstd, *tables.sizes(), num_tokens, width, eps, site, *dropout_numbers(p), DROPS=p > 0,
        **tile,
    )  # fmt: skip
    return out, mean, rstd


def backward(
    grad: Tensor, ids: Tensor, positions: Tensor, types: Tensor, word: Tensor, position: Tensor,
    type_: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, p: float, rng: Tensor, site: int,
    offsets: Tensor, needs: list[bool], order: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(dword, dposition, dtype, dweight, dshift), dense; empty where ``needs`` says no.

    ``order``: int64 [3, num_tokens], stable argsorts of ids, positions and types; made if None.
    """
    op, tables = "embed_backward", _Tables(ids, positions, types, word, position, type_)
    num_tokens, width, device = tables.check(op, weight)
    check_floats(op, device, grad=(grad, (num_tokens, width)))
    check_statistics(op, device, num_tokens, mean=mean, rstd=rstd)
    check_row_dropout(op, p, rng, site, offsets, num_tokens, device)
    if order is not None:
        check_tensor(op, "order", order, torch.int64, (3, num_tokens), device)
    grad, tile = dense_rows(grad), row_tile("embed backward", width)
    num_tiles = tiles_per_program(num_tokens, tile["ROWS"])
    ds = torch.empty(num_tokens, width, dtype=torch.float32, device=device)
    partial = mean.new_empty(triton.cdiv(num_tokens, num_tiles * tile["ROWS"]), 2, width)
    launch(
        _backward_kernel, (partial.shape[0],), grad, *tables.pointers(), weight.contiguous(),
        mean.contiguous(), rstd.contiguous(), offsets.contiguous(), rng.contiguous(), ds, partial,
        grad.stride(0), *tables.sizes(), num_tokens, num_tiles, width, site, *dropout_numbers(p),
        DROPS=p > 0, **tile,
    )  # fmt: skip
    lookups = (ids, word), (positions, position), (types, type_)
    orders = (None,) * 3 if order is None else order.unbind()
    found = [
        table_gradient(ds, *lookup, needed, tokens)
        for lookup, needed, tokens in zip(lookups, needs[:3], orders, strict=True)
    ]
    sums = column_sums(partial, weight, weight) if any(needs[3:]) else None
    return (*found, *(sums[i] if needs[3 + i] else weight.new_empty(0) for i in range(2)))


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    for width, p in itertools.product((384, 768, 1024), (0.0, 0.1)):
        table = torch.empty(512, width, device="meta")
        vector, grad = table[0], table[: 2 * CHUNK]
        offsets, rng = (table.new_empty(n, dtype=torch.int64) for n in (2 * CHUNK, 2))
        indices, dropout = (offsets, offsets, offsets), (p, rng, 5, offsets)
        places, statistics = (*indices, table, table, table, vector), (grad[:, 0], grad[:, 0])
        name, needs = f"{width} p={p}", [True] * 5
        yield f"forward {name}", partial(forward, *places, vector, 1e-12, *dropout)
        yield f"backward {name}", partial(backward, grad, *places, *statistics, *dropout, needs)
