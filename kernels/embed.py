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

from .checks import (
    check_epsilon,
    check_floats,
    check_indices,
    check_rows,
    check_statistics,
    check_tensor,
    check_written,
    check_written_rows,
    check_written_statistics,
    strided,
)
from .column_sums import partial_sums_into
from .embed_tables import CHUNK, table_gradient_into
from .launch import launch
from .layernorm_rows import normalize, project, standardize
from .philox import load_stream
from .previous_kernel import await_previous
from .rows import (
    RowDropout,
    load_float,
    row_factors,
    row_tile,
    store_rows,
    store_sum,
    tile_rows,
    tiles_per_program,
)
from .write_set import check_write_set, count_change


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
    num_words,
    num_positions,
    num_types,
    p_weight,  # [width]
    p_offsets,  # int64 [num_tokens]
    p_rng,  # int64 [2]
    site,
    threshold,
    scale,
    p_shift,  # [width]
    p_out,  # [num_tokens, width], rows out_stride apart
    out_stride,
    p_mean,  # float32 [num_tokens]
    p_rstd,  # float32 [num_tokens]
    num_tokens,
    width,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    await_previous()
    i_tile = tl.program_id(0).to(tl.int64)
    o_token, o, m = tile_rows(i_tile * ROWS, num_tokens, width, ROWS, BLOCK)
    word, position = (p_word, p_ids, num_words), (p_position, p_positions, num_positions)
    tables = (word, position, (p_type, p_types, num_types))
    dropout = (load_stream(p_rng, site), threshold, scale)
    b_factor = row_factors(p_offsets, o_token, num_tokens, dropout, BLOCK, DROPS)
    b_s = _embedding_sum(*tables, o_token, o, m, num_tokens, width)
    mean, rstd, b_z = normalize(b_s, m, width, eps)
    b_out = b_z * load_float(p_weight, o, o < width) + load_float(p_shift, o, o < width)
    store_rows(p_out, out_stride, o_token, o, m, b_out * b_factor)
    tl.store(p_mean + o_token, mean, mask=o_token < num_tokens)
    tl.store(p_rstd + o_token, rstd, mask=o_token < num_tokens)


@triton.jit(do_not_specialize=["num_tokens", "num_tiles", "site", "threshold"])
def _backward_kernel(
    p_word,  # [num_words, width]
    p_ids,  # int64 [num_tokens]
    p_position,  # [num_positions, width]
    p_positions,  # int64 [num_tokens]
    p_type,  # [num_types, width]
    p_types,  # int64 [num_tokens]
    num_words,
    num_positions,
    num_types,
    p_weight,  # [width]
    p_offsets,  # int64 [num_tokens]
    p_rng,  # int64 [2]
    site,
    threshold,
    scale,
    p_grad,  # [num_tokens, width], rows grad_stride apart
    grad_stride,
    p_mean,  # float32 [num_tokens]
    p_rstd,  # float32 [num_tokens]
    p_ds,  # float32 [num_tokens, width], the gradient of the sum, or None
    p_partial,  # float32 [num_programs, 2, width]: each program's dweight, dshift; or None
    num_tokens,
    num_tiles,  # of each program
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    await_previous()
    i_program = tl.program_id(0).to(tl.int64)
    word, position = (p_word, p_ids, num_words), (p_position, p_positions, num_positions)
    tables = (word, position, (p_type, p_types, num_types))
    dropout = (load_stream(p_rng, site), threshold, scale)
    b_dweight = tl.zeros((ROWS, BLOCK), tl.float32)
    b_dshift = tl.zeros((ROWS, BLOCK), tl.float32)
    for i_tile in range(i_program * num_tiles, (i_program + 1) * num_tiles):
        o_token, o, m = tile_rows(i_tile * ROWS, num_tokens, width, ROWS, BLOCK)
        b_factor = row_factors(p_offsets, o_token, num_tokens, dropout, BLOCK, DROPS)
        b_s = _embedding_sum(*tables, o_token, o, m, num_tokens, width)
        b_z, rstd = standardize(b_s, p_mean, p_rstd, o_token, m, num_tokens)
        b_grad = load_float(p_grad, o_token * grad_stride + o, m) * b_factor
        b_ds = project(b_grad * load_float(p_weight, o, o < width), b_z, rstd, width)
        store_rows(p_ds, width, o_token, o, m, b_ds)
        b_dweight += b_grad * b_z
        b_dshift += b_grad
    if p_partial is not None:
        store_sum(p_partial + i_program * 2 * width, b_dweight, width)
        store_sum(p_partial + i_program * 2 * width + width, b_dshift, width)


@dataclass(frozen=True)
class _Embedding:
    """The rows of three tables that tokens read, LayerNorm's weight and dropout: what both read."""

    op: str
    indices: dict[str, Tensor]  # ids, positions, types
    tables: dict[str, Tensor]  # word, position, type
    weight: Tensor
    dropout: RowDropout

    @property
    def shape(self) -> tuple[int, int]:
        """(tokens, width)"""
        return self.indices["ids"].numel(), self.weight.numel()

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def check(self) -> None:
        word, num_tokens = self.tables["word"], self.indices["ids"].numel()
        _, width = check_rows(self.op, "word", word)
        check_indices(self.op, word.device, num_tokens, **self.indices)
        shapes = {name: (x, (x.shape[0], width)) for name, x in self.tables.items()}
        check_floats(self.op, word.device, weight=(self.weight, (width,)), **shapes)
        self.dropout.check(self.op, num_tokens, word.device)

    def read(self) -> dict[str, Tensor]:
        """The tensors by name."""
        others = {"weight": self.weight, **self.dropout.read()}
        return {**self.indices, **self.tables, **others}

    def launch(self, kernel, num_programs: int, *arguments, **constants) -> None:
        """With the kernels' common arguments before the others."""
        pairs = zip(self.tables.values(), self.indices.values(), strict=True)
        tensors = [x.contiguous() for pair in pairs for x in pair]
        sizes = [table.shape[0] for table in self.tables.values()]
        common = *tensors, *sizes, self.weight.contiguous(), *self.dropout.arguments()
        drops = self.dropout.p > 0
        launch(kernel, (num_programs,), *common, *arguments, DROPS=drops, **constants)


def _embedding(
    op: str, ids: Tensor, positions: Tensor, types: Tensor, word: Tensor, position: Tensor,
    type_: Tensor, weight: Tensor, *dropout,
) -> _Embedding:  # fmt: skip
    """From arguments in the schemas' order."""
    indices = {"ids": ids, "positions": positions, "types": types}
    tables = {"word": word, "position": position, "type": type_}
    return _Embedding(op, indices, tables, weight, RowDropout(*dropout))


def forward_into(
    ids: Tensor, positions: Tensor, types: Tensor, word: Tensor, position: Tensor, type_: Tensor,
    weight: Tensor, shift: Tensor, eps: float, p: float, rng: Tensor, site: int, offsets: Tensor,
    out: Tensor, mean: Tensor, rstd: Tensor,
) -> None:  # fmt: skip
    """out [num_tokens, width] of the word table's dtype, mean and rstd float32 [num_tokens]."""
    op, dropout = "embed_forward", (p, rng, site, offsets)
    source = _embedding(op, ids, positions, types, word, position, type_, weight, *dropout)
    source.check()
    (num_tokens, width), device = source.shape, source.device
    check_floats(op, device, shift=(shift, (width,)))
    check_epsilon(op, eps)
    check_written_rows(op, "out", out, word.dtype, source.shape, device)
    check_written_statistics(op, device, num_tokens, mean=mean, rstd=rstd)
    written = {"out": out, "mean": mean, "rstd": rstd}
    check_write_set(op, written, {**source.read(), "shift": shift})
    tile = row_tile("embed forward", width)
    source.launch(
        _forward_kernel, triton.cdiv(num_tokens, tile["ROWS"]), shift.contiguous(), *strided(out),
        mean, rstd, num_tokens, width, eps, **tile,
    )  # fmt: skip
    count_change(written)


def backward_into(
    grad: Tensor, ids: Tensor, positions: Tensor, types: Tensor, word: Tensor, position: Tensor,
    type_: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, p: float, rng: Tensor, site: int,
    offsets: Tensor, order: Tensor | None, dword: Tensor | None, dposition: Tensor | None,
    dtype: Tensor | None, dweight: Tensor | None, dshift: Tensor | None,
) -> None:  # fmt: skip
    """The gradients of tables and parameters, dense, of their dtypes; dshift of the weight's.

    Args:
        order: int64 [3, num_tokens], stable argsorts of ids, positions and types; made if None.
        dword, dposition, dtype, dweight, dshift: None where it is not wanted.
    """
    op, dropout = "embed_backward", (p, rng, site, offsets)
    source = _embedding(op, ids, positions, types, word, position, type_, weight, *dropout)
    source.check()
    (num_tokens, width), device = source.shape, source.device
    check_floats(op, device, grad=(grad, (num_tokens, width)))
    check_statistics(op, device, num_tokens, mean=mean, rstd=rstd)
    if order is not None:
        check_tensor(op, "order", order, torch.int64, (3, num_tokens), device)
    tables = {"dword": dword, "dposition": dposition, "dtype": dtype}
    written = {**tables, "dweight": dweight, "dshift": dshift}
    parameters = word, position, type_, weight, weight
    for (name, gradient), parameter in zip(written.items(), parameters, strict=True):
        if gradient is not None:
            check_written(op, name, gradient, parameter.dtype, parameter.shape, device)
    read = {"grad": grad, **source.read(), "mean": mean, "rstd": rstd, "order": order}
    check_write_set(op, written, read)
    needs_tables = any(gradient is not None for gradient in tables.values())
    needs_sums = dweight is not None or dshift is not None
    ds, partial = _row_gradients(source, grad, mean, rstd, needs_tables, needs_sums)
    orders = (None,) * 3 if order is None else order.unbind()
    for index, tokens, table in zip((ids, positions, types), orders, tables.values(), strict=True):
        if table is not None:
            table_gradient_into(ds, index, tokens, table)
    if needs_sums:
        partial_sums_into(partial, dweight, dshift)
    count_change({"dweight": dweight, "dshift": dshift})  # torch counts that tables are zeroed


def _row_gradients(
    source: _Embedding, grad: Tensor, mean: Tensor, rstd: Tensor, needs_tables: bool,
    needs_sums: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """(each token's gradient of the sum, partial sums of dweight and dshift), where needed."""
    (num_tokens, width), ds, partial = source.shape, None, None
    tile = row_tile("embed backward", width)
    num_tiles = tiles_per_program(num_tokens, tile["ROWS"])
    num_programs = triton.cdiv(num_tokens, num_tiles * tile["ROWS"])
    if needs_tables:
        ds = torch.empty(num_tokens, width, dtype=torch.float32, device=grad.device)
    if needs_sums:
        partial = torch.empty(num_programs, 2, width, dtype=torch.float32, device=grad.device)
    if needs_tables or needs_sums:
        source.launch(
            _backward_kernel, num_programs, *strided(grad), mean.contiguous(), rstd.contiguous(),
            ds, partial, num_tokens, num_tiles, width, **tile,
        )  # fmt: skip
    return ds, partial


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    for width, p in itertools.product((384, 768, 1024), (0.0, 0.1)):
        table = torch.empty(512, width, device="meta")
        vector, grad = table[0], table[: 2 * CHUNK]
        offsets, rng = (table.new_empty(n, dtype=torch.int64) for n in (2 * CHUNK, 2))
        indices, dropout = (offsets, offsets, offsets), (p, rng, 5, offsets)
        places = *indices, table, table, table, vector
        statistics = (table.new_empty(2 * CHUNK),) * 2
        name, results = f"{width} p={p}", (table, table, table, vector, vector)
        saved = *places, *statistics, *dropout, None
        forward = partial(forward_into, *places, vector, 1e-12, *dropout)
        yield f"forward {name}", partial(forward, grad, *statistics)
        yield f"backward {name}", partial(backward_into, grad, *saved, *results)
