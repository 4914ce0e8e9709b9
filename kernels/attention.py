"""Packed attention: host functions with the signatures of ``torch.ops.sbrrt.attention_*``.

Up to 128 tokens one tile holds a whole (sequence, head), in ``attention_tile``; longer batches take
the kernels of ``attention_loop``. ``attention_launch`` chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
import triton
from torch import Tensor

from . import attention_loop, attention_tile
from .attention_launch import TILES, Blocks, choose
from .checks import check_dropout, check_floating, check_tensor, dense_rows
from .launch import launch
from .philox import dropout_numbers

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

    def launch(self, kernel, matrices: list, others: list, blocks: Blocks, block: int) -> None:
        """Launches with a program per (sequence, head) and ``block`` rows of the longest sequence.

        Args:
            matrices: [num_tokens, hidden] with dense rows, whose strides the kernel takes.
            others: the pointers between these and the batch's.
        """
        grid = self.rows.shape[0] * self.num_heads, triton.cdiv(self.max_length, block)
        batch = self.cu_seqlens.contiguous(), self.rows.contiguous(), self.rng.contiguous()
        strides = [matrix.stride(0) for matrix in matrices]
        numbers = self.num_heads, self.max_positions, self.site, *dropout_numbers(self.p)
        constants = {
            "HEAD_DIM": matrices[0].shape[1] // self.num_heads,
            "DROPOUT": self.p > 0,
            "ALIGNED": not self.is_unaligned,
        }
        arguments = *matrices, *others, *batch, *strides, *numbers
        launch(kernel, grid, *arguments, **constants, **blocks.constants())


def forward(query: Tensor, key: Tensor, value: Tensor, *batch) -> tuple[Tensor, Tensor]:
    """Attention [num_tokens, hidden], and logsumexp of the scaled scores, float32 [tokens, heads].

    Raises:
        TypeError, ValueError: an argument does not fit, by its name.
    """
    batch = Batch(*batch)
    _check("attention_forward", {"query": query, "key": key, "value": value}, batch)
    out = _empty_like(query)
    logsumexp = query.new_empty((query.shape[0], batch.num_heads), dtype=torch.float32)
    blocks = batch.blocks("forward", query)
    kernel = attention_loop.forward_loop_kernel
    if blocks.is_tile:
        kernel = attention_tile.forward_tile_kernel
    matrices = [dense_rows(x) for x in (query, key, value)]
    batch.launch(kernel, matrices, [out, logsumexp], blocks, blocks.query)
    return out, logsumexp


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, logsumexp: Tensor, *batch
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, [num_tokens, hidden] each.

    Raises:
        TypeError, ValueError: an argument does not fit, by its name.
    """
    batch = Batch(*batch)
    matrices = {"query": query, "key": key, "value": value, "grad": grad, "out": out}
    _check("attention_backward", matrices, batch)
    _check_logsumexp("attention_backward", logsumexp, query, batch)
    matrices = [dense_rows(x) for x in (grad, query, key, value, out)]
    grads, logsumexp = [_empty_like(query) for _ in range(3)], logsumexp.contiguous()
    if blocks := batch.blocks("backward", query):
        kernel, others = attention_tile.backward_tile_kernel, [logsumexp, *grads]
        batch.launch(kernel, matrices[:4], others, blocks, blocks.query)
    else:
        _backward_loop(matrices, logsumexp, grads, batch)
    return tuple(grads)


def _backward_loop(matrices: list, logsumexp: Tensor, grads: list, batch: Batch) -> None:
    """The gradient of the queries, then that of keys and values; the first leaves its row means."""
    mean, blocks = torch.empty_like(logsumexp), batch.blocks("backward_query", matrices[0])
    kernel = attention_loop.backward_query_loop_kernel
    batch.launch(kernel, matrices, [logsumexp, mean, grads[0]], blocks, blocks.query)
    blocks = batch.blocks("backward_key", matrices[0])
    kernel = attention_loop.backward_key_loop_kernel
    batch.launch(kernel, matrices[:4], [logsumexp, mean, *grads[1:]], blocks, blocks.key)


def jvp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_tangent: Tensor,
    key_tangent: Tensor,
    value_tangent: Tensor,
    logsumexp: Tensor,
    *batch,
) -> Tensor:
    """The tangent of the result, [num_tokens, hidden].

    Raises:
        TypeError, ValueError: an argument does not fit, by its name.
    """
    batch = Batch(*batch)
    matrices = {"query": query, "key": key, "value": value, "query_tangent": query_tangent}
    matrices |= {"key_tangent": key_tangent, "value_tangent": value_tangent}
    _check("attention_jvp", matrices, batch)
    _check_logsumexp("attention_jvp", logsumexp, query, batch)
    out, blocks = _empty_like(query), batch.blocks("jvp", query)
    kernel = attention_tile.jvp_tile_kernel if blocks.is_tile else attention_loop.jvp_loop_kernel
    dense = [dense_rows(x) for x in matrices.values()]
    batch.launch(kernel, dense, [logsumexp.contiguous(), out], blocks, blocks.query)
    return out


def _empty_like(query: Tensor) -> Tensor:
    return query.new_empty(query.shape)


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


def _check_logsumexp(op: str, logsumexp: Tensor, query: Tensor, batch: Batch) -> None:
    shape = query.shape[0], batch.num_heads
    check_tensor(op, "logsumexp", logsumexp, torch.float32, shape, query.device)


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
    """Forward, backward and tangent of four sequences that are views of fused projections."""
    num_heads = 12
    fused = torch.empty(4 * length, 3 * num_heads * head_dim, dtype=dtype, device="meta")
    matrices = fused.split(num_heads * head_dim, dim=1)
    starts = torch.empty(5, dtype=torch.int32, device="meta")
    rows, rng = (torch.empty(n, dtype=torch.int64, device="meta") for n in (4, 2))
    batch = starts, length, num_heads, p, rng, 5, rows, max_positions
    out, logsumexp = forward(*matrices, *batch)
    backward(torch.empty_like(out), *matrices, out, logsumexp, *batch)
    jvp(*matrices, *matrices, logsumexp, *batch)
