"""The embeddings of several columns of sentences as one tensor, example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.smart.model_function import compute_dtype
from sbrrt_fast.smart.transformers import check_calls


class ColumnEmbeddings:
    """[num_examples, the columns' lengths in total, hidden], where an encoder reads each column.

    A hook on the embedding layer adds what these embeddings differ by from the layer's own, in
    every pass: nothing in the clean pass, which so depends on them, and the perturbation in others.

    Args:
        layer: the encoder's embedding layer. columns: with ``input_ids`` [num_examples, length],
            in the order in which they are read.

    Attributes:
        embeddings: of the clean pass, a leaf. dtype: of the model's products there.

    Raises:
        ValueError: a column has no such ids, or another number of examples.
    """

    def __init__(self, layer: nn.Module, columns: Sequence[Mapping[str, Any]]):
        self.layer, self.columns = layer, columns
        shapes = [tuple(getattr(c.get("input_ids"), "shape", ())) for c in columns]
        if not all(len(shape) == 2 and shape[0] == shapes[0][0] for shape in shapes):
            raise ValueError(
                "SmartLoss: each column needs padded input_ids [num_examples, length], got "
                f"{shapes}; set unpad_inputs=False on the transformer"
            )
        self.lengths = [length for _, length in shapes]
        self.embeddings: Tensor | None = None
        self.dtype: torch.dtype | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside is the clean pass, which fills ``embeddings``."""
        with self._hooked(self._fill):
            yield

    @contextmanager
    def replaced(self, embeddings: Tensor) -> Iterator[None]:
        """Inside, the layer's outputs are these embeddings, column by column."""

        def replace(index: int, output: Tensor) -> Tensor:
            return output + (self._column(embeddings, index) - output.detach())

        with self._hooked(replace):
            yield

    def joined(self, mask: Callable[[Tensor, Mapping[str, Any]], Tensor]) -> Tensor:
        """bool, the embeddings' shape without hidden, of a mask(embeddings, column)."""
        parts = [mask(self._column(self.embeddings, i), c) for i, c in enumerate(self.columns)]
        return torch.cat(parts, dim=1)

    def _fill(self, index: int, output: Tensor) -> Tensor:
        if output.shape[:2] != self.columns[index]["input_ids"].shape:
            raise ValueError(
                f"SmartLoss: the encoder reads {tuple(output.shape[:2])} tokens where the column "
                f"has {tuple(self.columns[index]['input_ids'].shape)}; losses that cache, merge "
                "or truncate columns are not supported"
            )
        if self.embeddings is None:
            shape = (len(output), sum(self.lengths), output.shape[-1])
            self.embeddings = output.new_zeros(shape).requires_grad_()
            self.dtype = compute_dtype(output)
        with torch.no_grad():
            self._column(self.embeddings, index).copy_(output)
        return output + (self._column(self.embeddings, index) - output.detach())

    def _column(self, embeddings: Tensor, index: int) -> Tensor:
        begin = sum(self.lengths[:index])
        return embeddings[:, begin : begin + self.lengths[index]]

    @contextmanager
    def _hooked(self, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        num_calls = 0

        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            nonlocal num_calls
            num_calls += 1
            if num_calls > len(self.lengths):
                return output
            return change(num_calls - 1, output)

        handle = self.layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        self._check_calls(num_calls)

    def _check_calls(self, num_calls: int) -> None:
        check_calls(num_calls and 1, self.layer)
        if num_calls != len(self.lengths):
            raise ValueError(
                f"SmartLoss: {num_calls} passes of the encoder for {len(self.lengths)} columns; "
                "losses that cache, merge or truncate are not supported"
            )
