"""Packed attention: host functions with the signatures of ``torch.ops.sbrrt.attention_*_into``.

Up to 128 tokens one tile holds a whole (sequence, head), in ``attention_tile``; longer batches take
the kernels of ``attention_loop``. ``attention_launch`` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
import triton
from torch import Tensor

from . import attention_loop, attention_tile
from .attention_launch import TILES, Blocks, choose
from .checks import (
    check_dropout,
    check_floating,
    check_tensor,
    check_written,
    check_written_rows,
    dense_rows,
)
from .launch import launch
from .philox import dropout_numbers
from .write_set import check_write_set, count_change

MAX_LENGTH = 512
HEAD_DIMS = (32, 64)


@dataclass(frozen=True)
class Batch:
    """What forward, backward and tangent have in common, in the order of their schemas."""

    cu_seqlens: Tensor  # int32 [num_sequences + 1]
    max_length: int
    num_heads: int
    p: float
    rng: Tensor  # int64 [2]
    site: int
    rows: Tensor  # int64 [num_sequences]
    max_positions: int

    @property
    def is_unaligned(self) -> bool:
        return self.p > 0 and self.max_positions % 4 != 0

    def blocks(self, direction: str, query: Tensor) -> Blocks | None:
        return choose(direction, self.max_length, query.dtype, self.is_unaligned)

    def read(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"cu_seqlens": self.cu_seqlens, "rng": self.rng, "rows": self.rows}

    def launch(
        self, kernel, matrices: list, numbers: list, blocks: Blocks, block: int,
        results: Sequence[Tensor] = (), **others: int,
    ) -> None:  # fmt: skip
        """Launches with a program per (sequence, head) and ``block`` rows of the longest sequence.

        Args:
            matrices: [num_tokens, hidden], read and written, whose strides the kernel takes.
            numbers: float32 [num_tokens, num_heads], contiguous.
            results: [num_tokens, hidden], after the matrices, whose strides it does not take.
            others: constants of this kernel alone.
        """
        grid = self.rows.shape[0] * self.num_heads, triton.cdiv(self.max_length, block)
        batch = self.cu_seqlens.contiguous(), self.rows.contiguous(), self.rng.contiguous()
        matrices = [dense_rows(matrix) for matrix in matrices]
        strides = [matrix.stride(0) for matrix in matrices]
        scalars = self.num_heads, self.max_positions, self.site, *dropout_numbers(self.p)
        constants = {
            "HEAD_DIM": matrices[0].shape[1] // self.num_heads,
            "DROPOUT": self.p > 0,
            "ALIGNED": not self.is_unaligned,
        }
        arguments = *matrices, *results, *numbers, *batch, *strides, *scalars
        launch(kernel, grid, *arguments, **constants, **others, **blocks.constants())


def forward_into(query: Tensor, key: Tensor, value: Tensor, *batch_and_results) -> None:
    """Attention, and logsumexp of the scaled scores.

    Args:
        query, key, value: [num_tokens, hidden].
        batch_and_results: ``Batch``; out [num_tokens, hidden], logsumexp float32 [tokens, heads].

    Raises:
        TypeError, ValueError: an argument does not fit, by its name.
    """
    *batch, out, logsumexp = batch_and_results
    op, batch = "attention_forward", Batch(*batch)
    matrices = {"query": query, "key": key, "value": value}
    _check(op, matrices, batch)
    _check_results(op, query, out=out)
    check_written(op, "logsumexp", logsumexp, *_like_logsumexp(query, batch))
    written = {"out": out, "logsumexp": logsumexp}
    check_write_set(op, written, {**matrices, **batch.read()})
    blocks = batch.blocks("forward", query)
    kernel = attention_loop.forward_loop_kernel
    if blocks.is_tile:
        kernel = attention_tile.forward_tile_kernel
    batch.launch(kernel, [*matrices.values(), out], [logsumexp], blocks, blocks.query)
    count_change(written)


def backward_into(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor,
    *batch_and_results,
) -> None:  # fmt: skip
    """The gradients of query, key and value.

    Args:
        grad, query, key, value, out: [num_tokens, hidden].
        logsumexp: of the forward.
        batch_and_results: ``Batch``; dquery, dkey, dvalue [num_tokens, hidden].

    Raises:
        TypeError, ValueError: an argument does not fit, by its name.
    """
    *batch, dquery, dkey, dvalue = batch_and_results
    op, batch = "attention_backward", Batch(*batch)
    matrices = {"query": query, "key": key, "value": value, "grad": grad, "out": out}
    _check(op, matrices, batch)
    check_tensor(op, "logsumexp", logsumexp, *_like_logsumexp(query, batch))
    written = {"dquery": dquery, "dkey": dkey, "dvalue": dvalue}
    _check_results(op, query, **written)
    check_write_set(op, written, {**matrices, "logsumexp": logsumexp, **batch.read()})
    inputs, logsumexp = [grad, query, key, value], logsumexp.contiguous()
    if blocks := batch.blocks("backward", query):
        _backward_tile(inputs, logsumexp, list(written.values()), batch, blocks)
    else:
        _backward_loop(inputs, out, logsumexp, list(written.values()), batch)
    count_change(written)


def _backward_tile(
    inputs: list, logsumexp: Tensor, grads: list, batch: Batch, blocks: Blocks
) -> None:
    """All three gradients at once."""
    kernel, widths = attention_tile.backward_tile_kernel, _widths(grads)
    results = (
        grads
        if widths
        else [torch.empty_like(inputs[1], memory_format=torch.contiguous_format) for _ in grads]
    )
    batch.launch(kernel, inputs, [logsumexp], blocks, blocks.query, results, WIDTHS=max(widths, 1))
    if not widths:
        for grad, result in zip(grads, results, strict=True):
            grad.copy_(result)


def _widths(grads: list) -> int:
    """How many of their widths the rows of all three are apart; 0 where it is no such number."""
    num_tokens, hidden = grads[0].shape
    widths = {divmod(grad.stride(0), hidden) for grad in grads} if num_tokens > 1 else {(1, 0)}
    number, rest = widths.pop()
    return 0 if widths or rest else number


def _backward_loop(inputs: list, out: Tensor, logsumexp: Tensor, grads: list, batch: Batch) -> None:
    """The gradient of the queries, then that of keys and values; the first leaves its row means."""
    numbers = [logsumexp, torch.empty_like(logsumexp)]
    blocks = batch.blocks("backward_query", out)
    kernel = attention_loop.backward_query_loop_kernel
    batch.launch(kernel, [*inputs, out, grads[0]], numbers, blocks, blocks.query)
    blocks = batch.blocks("backward_key", out)
    kernel = attention_loop.backward_key_loop_kernel
    batch.launch(kernel, [*inputs, *grads[1:]], numbers, blocks, blocks.key)


def jvp_into(
    query: Tensor, key: Tensor, value: Tensor, query_tangent: Tensor, key_tangent: Tensor,
    value_tangent: Tensor, logsumexp: Tensor, *batch_and_results,
) -> None:  # fmt: skip
    """The tangent of the result.

    Args:
        query, key, value, query_tangent, key_tangent, value_tangent: [num_tokens, hidden].
        logsumexp: of the forward.
        batch_and_results: ``Batch``; out [num_tokens, hidden].

    Raises:
        TypeError, ValueError: an argument does not fit, by its name.
    """
    *batch, out = batch_and_results
    op, batch = "attention_jvp", Batch(*batch)
    matrices = {"query": query, "key": key, "value": value, "query_tangent": query_tangent}
    matrices |= {"key_tangent": key_tangent, "value_tangent": value_tangent}
    _check(op, matrices, batch)
    check_tensor(op, "logsumexp", logsumexp, *_like_logsumexp(query, batch))
    _check_results(op, query, out=out)
    check_write_set(op, {"out": out}, {**matrices, "logsumexp": logsumexp, **batch.read()})
    blocks = batch.blocks("jvp", query)
    kernel = attention_tile.jvp_tile_kernel if blocks.is_tile else attention_loop.jvp_loop_kernel
    numbers = [logsumexp.contiguous()]
    batch.launch(kernel, [*matrices.values(), out], numbers, blocks, blocks.query)
    count_change({"out": out})


def _check(op: str, matrices: dict[str, Tensor], batch: Batch) -> None:
    query = matrices["query"]
    check_floating(op, "query", query, 2)
    for name, matrix in matrices.items():
        check_tensor(op, name, matrix, query.dtype, tuple(query.shape), query.device)
    num_sequences, hidden, num_heads = batch.rows.numel(), query.shape[1], batch.num_heads
    if not 1 <= num_heads < 2**16:
        raise ValueError(f"{op}: num_heads must be in [1, 2^16), got {num_heads}")
    if hidden not in [num_heads * head_dim for head_dim in HEAD_DIMS]:
        raise ValueError(
            f"{op}: the head dimension, hidden / num_heads, must be 32 or 64, got "
            f"{hidden} / {num_heads}"
        )
    check_tensor(op, "rows", batch.rows, torch.int64, (num_sequences,), query.device)
    starts = batch.cu_seqlens
    check_tensor(op, "cu_seqlens", starts, torch.int32, (num_sequences + 1,), query.device)
    if not 0 <= batch.max_length <= MAX_LENGTH:
        raise ValueError(f"{op}: max_length must be in [0, {MAX_LENGTH}], got {batch.max_length}")
    if not batch.max_length <= batch.max_positions < 2**31:
        raise ValueError(
            f"{op}: max_positions must be at least max_length and below 2^31, got "
            f"{batch.max_positions} and max_length {batch.max_length}"
        )
    check_dropout(op, batch.p, batch.rng, batch.site, query.device)


def _check_results(op: str, query: Tensor, **results: Tensor) -> None:
    for name, x in results.items():
        check_written_rows(op, name, x, query.dtype, query.shape, query.device)


def _like_logsumexp(query: Tensor, batch: Batch) -> tuple:
    """What ``check_tensor`` takes."""
    return torch.float32, (query.shape[0], batch.num_heads), query.device


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring. Every class of length, dtype, head dimension and dropout.

    float16 differs from bfloat16 in the types of instructions alone, and float32 is not what runs
    on a GPU by default: they are compiled with dropout.
    """
    dropouts = {"no dropout": (0.0, 512), "dropout": (0.1, 512), "dropout unaligned": (0.1, 1021)}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        kinds = dropouts if dtype is torch.bfloat16 else ["dropout"]
        for head_dim, length, kind in product(HEAD_DIMS, (*TILES, MAX_LENGTH), kinds):
            name = f"{str(dtype)[6:]} {head_dim} x {length} {kind}"
            yield name, partial(_launch_all, dtype, head_dim, length, *dropouts[kind])


def _launch_all(
    dtype: torch.dtype, head_dim: int, length: int, p: float, max_positions: int
) -> None:
    """Forward, backward and tangent of four sequences; matrices are columns of fused ones."""
    num_heads = 12
    fused = torch.empty(4 * length, 3 * num_heads * head_dim, dtype=dtype, device="meta")
    matrices = fused.split(num_heads * head_dim, dim=1)
    out = torch.empty(matrices[0].shape, dtype=dtype, device="meta")
    logsumexp = torch.empty(4 * length, num_heads, device="meta")
    starts = torch.empty(5, dtype=torch.int32, device="meta")
    rows, rng = (torch.empty(n, dtype=torch.int64, device="meta") for n in (4, 2))
    batch = starts, length, num_heads, p, rng, 5, rows, max_positions
    forward_into(*matrices, *batch, out, logsumexp)
    backward_into(out, *matrices, out, logsumexp, *batch, *matrices)
    if dtype is torch.bfloat16 and length in TILES:
        grads = [torch.empty_like(out) for _ in matrices]
        backward_into(out, *matrices, out, logsumexp, *batch, *grads)
    jvp_into(*matrices, *matrices, logsumexp, *batch, out)
