"""Where the model's dropouts are, and the stream of masks one pass over a batch draws from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.ops.dropout import dropout_mask, philox_normal

EMBEDDING_SITE = 0
HEAD_SITE = 0xFFF0
NOISE_SITE = 0xFFF1
RANDOM_DIRECTION_SITE = 0xFFF2
SITES_PER_LAYER = 3


def attention_site(layer: int) -> int:
    return 1 + SITES_PER_LAYER * layer


def attention_output_site(layer: int) -> int:
    return 2 + SITES_PER_LAYER * layer


def output_site(layer: int) -> int:
    return 3 + SITES_PER_LAYER * layer


class DropoutStream:
    """Dropout factors of one batch at one training step.

    Passes that share a stream share their masks, and each mask is computed once. Another
    ``pass_id`` gives independent masks of the same batch and step.

    Args:
        batch: the tokens; their rows and positions index the masks.
        rng: int64 [2], (seed, step), on the batch's device.
        max_positions: the model's maximum length.
        pass_id: 0 for the clean pass.
        backend: implementation of the masks.
    """

    def __init__(
        self,
        batch: TokenBatch,
        rng: Tensor,
        max_positions: int,
        pass_id: int = 0,
        backend: str = "auto",
    ):
        self.batch, self.rng, self.max_positions = batch, rng, max_positions
        self.pass_id, self.backend = pass_id, backend
        self._masks: dict[tuple, Tensor] = {}

    def fork(self, pass_id: int) -> DropoutStream:
        """The stream of another pass over the same batch, with masks of its own."""
        return DropoutStream(self.batch, self.rng, self.max_positions, pass_id, self.backend)

    def hidden(self, width: int, p: float, site: int, dtype: torch.dtype) -> Tensor | None:
        """Factors [num_tokens, width], or None for p = 0."""
        return self._mask(self._hidden_offsets, width, p, site, dtype)

    def attention(self, num_heads: int, p: float, site: int, dtype: torch.dtype) -> Tensor | None:
        """Factors [num_sequences, num_heads, max_length, max_length], or None for p = 0."""
        size = self.batch.max_length
        mask = self._mask(
            lambda _: self.batch.attention_offsets(self.max_positions, num_heads),
            size,
            p,
            site,
            dtype,
        )
        return None if mask is None else mask.view(-1, num_heads, size, size)

    def pooled(self, width: int, p: float, dtype: torch.dtype) -> Tensor | None:
        """Factors on pooled sequences [num_sequences, width], or None for p = 0."""
        stride = self.max_positions
        return self._mask(lambda w: self.batch.rows * (stride * w), width, p, HEAD_SITE, dtype)

    def normal(self, width: int, site: int = NOISE_SITE) -> Tensor:
        """Standard normal noise [num_tokens, width], float32, as a function like the masks."""
        offsets = self._hidden_offsets(width)
        return philox_normal(offsets, width, self.rng, self._site(site), backend=self.backend)

    def _hidden_offsets(self, width: int) -> Tensor:
        return self.batch.hidden_offsets(self.max_positions, width)

    def _site(self, site: int) -> int:
        return self.pass_id << 16 | site

    def _mask(
        self,
        offsets_of: Callable[[int], Tensor],
        width: int,
        p: float,
        site: int,
        dtype: torch.dtype,
    ) -> Tensor | None:
        if p == 0.0:
            return None
        key = (site, width, p, dtype)
        if key not in self._masks:
            self._masks[key] = dropout_mask(
                offsets_of(width), width, p, self.rng, self._site(site), dtype, backend=self.backend
            )
        return self._masks[key]
