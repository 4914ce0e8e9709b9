"""Gradients summed over the parts of a step and over ranks, as a backward completes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sbrrt_fast.model.packed.weights import ModelGradients
from sbrrt_fast.ops.adamw_ema import RowGradient
from sbrrt_fast.training.ranks.ranks import Ranks, Wait

BUCKET_BYTES = 25 * 2**20  # of a message: long enough for a link's rate, short enough to start soon


class GradientSums:
    """The gradients of written-out backwards, whose buffers each backward overwrites.

    They are added up in float32. The last backward says which layer is complete, and the sum over
    ranks of a bucket of layers begins while it goes on.

    Args:
        made: what a backward writes. new_total: makes their like in float32.
        has_encoder: False where it is frozen: only heads have gradients.

    Attributes:
        lowest_layer: at which a backward ends.
    """

    def __init__(
        self,
        made: ModelGradients,
        new_total: Callable[[], ModelGradients],
        ranks: Ranks,
        has_encoder: bool = True,
    ):
        self.made, self._new_total, self.ranks = made, new_total, ranks
        self.has_encoder = has_encoder
        self.lowest_layer = 0
        self.words: RowGradient | None = None
        self._total: ModelGradients | None = None
        self._waits: list[Wait] = []
        self._done = self._num_backwards = self._num_sent = 0

    @property
    def result(self) -> ModelGradients:
        """The summed gradients, but for the words' rows."""
        return self.made if self._num_backwards <= 1 else self._total

    @property
    def num_bytes(self) -> int:
        return self.made.num_bytes + (0 if self._total is None else self._total.num_bytes)

    def start(self, num_backwards: int) -> None:
        """Before the passes of a step."""
        self._done, self._num_backwards, self._num_sent = 0, num_backwards, 0
        if num_backwards > 1 and self._total is None:
            self._total = self._new_total()
        if num_backwards > 1 or self.ranks.size > 1:
            self.made.heads.zero_()  # a backward writes those of its own tasks

    def complete(self, layer: int) -> None:
        """A backward's layer has its matrices' gradients; called on the stream that makes them."""
        if self._done < self._num_backwards - 1:
            return
        row = len(self.made.layers) - 1 - layer  # of the buffer: the last layer comes first
        if self._num_backwards > 1:
            self._total.matrices[row].add_(self.made.matrices[row])
        matrices = self.result.matrices
        bucket = matrices[self._num_sent : row + 1]
        if self.ranks.size > 1 and (layer == self.lowest_layer or bucket.nbytes >= BUCKET_BYTES):
            self._waits.append(self.ranks.start_sum(bucket))
            self._num_sent = row + 1

    def end_group(self, names: Sequence[str], words: RowGradient | None) -> None:
        """After a backward.

        Args:
            names: of its tasks.
            words: gradient of the word table, of the same rows in all backwards of the step; None
                where it does not train.
        """
        is_last = self._done == self._num_backwards - 1
        if self._done == 0:
            self.words = words
        elif words is not None:
            self.words.values.add_(words.values)
        if self._num_backwards > 1:
            self._add(is_last)
            self.made.heads.zero_()
        self._done += 1

    def finish(self, rng: Tensor) -> dict[str, Tensor]:
        """After the last backward: the sums over ranks are there for what the stream gets next."""
        if self.ranks.size > 1:
            flat = self.result.flat if self.has_encoder else self.result.heads
            rest = [flat, *([] if self.words is None else [self.words.values])]
            self._waits += [self.ranks.start_sum(x) for x in rest]
        for wait in self._waits:
            wait()
        self._waits.clear()
        return {}

    def _add(self, is_last: bool) -> None:
        """Takes a backward's gradients into the total; the last's matrices are there already."""
        total, made = self._total, self.made
        pairs = [(total.flat, made.flat)]
        if self.has_encoder and not is_last:
            pairs.append((total.matrices, made.matrices))
        for into, x in pairs:
            into.copy_(x) if self._done == 0 else into.add_(x)


@torch.no_grad()
def sum_over_ranks(tensors: Iterable[Tensor], ranks: Ranks) -> None:
    """Puts the sums over ranks into tensors, in messages of about ``BUCKET_BYTES``."""
    if ranks.size == 1:
        return
    sums = []
    for bucket in _buckets(tensors):
        flat = torch.cat([x.reshape(-1) for x in bucket])
        sums.append((bucket, flat, ranks.start_sum(flat)))
    for bucket, flat, wait in sums:
        wait()
        for x, summed in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
            x.copy_(summed.view_as(x))


def _buckets(tensors: Iterable[Tensor]) -> list[Sequence[Tensor]]:
    """Neighbours of one dtype together."""
    buckets: list[list[Tensor]] = []
    for x in tensors:
        last = buckets[-1] if buckets else []
        if not last or last[0].dtype != x.dtype or sum(y.nbytes for y in last) >= BUCKET_BYTES:
            buckets.append(last := [])
        last.append(x)
    return buckets
