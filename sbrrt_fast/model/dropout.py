"""Where the model's dropouts are, and the stream of masks one pass over a batch draws from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.smart_noise import smart_noise

EMBEDDING_SITE = 0
ADAPTER_SITE = 0x8000  # of the first adapter, behind those of all layers
HEAD_SITE = 0xFFF0
NOISE_SITE = 0xFFF1
RANDOM_DIRECTION_SITE = 0xFFF2
SURGERY_SITE = 0xFFF3
SITES_PER_LAYER = 3


def attention_site(layer: int) -> int:
    return 1 + SITES_PER_LAYER * layer


def attention_output_site(layer: int) -> int:
    return 2 + SITES_PER_LAYER * layer


def output_site(layer: int) -> int:
    return 3 + SITES_PER_LAYER * layer


def noise_width(width: int) -> int:
    """The multiple of 4 that ``smart_noise`` draws for rows of ``width`` features."""
    return -(-width // 4) * 4


class DropoutStream:
    """The random numbers of one pass over one batch at one training step.

    Masks are functions of (seed, step, site, logical index), so passes that share a stream share
    their masks. Another ``pass_id`` gives independent masks of the same batch and step.

    Args:
        batch: the tokens; their rows and positions index the masks.
        rng: int64 [2], (seed, step), on the batch's device.
        max_positions: the model's maximum length.
        pass_id: 0 for the clean pass.
        backend: implementation of the noise.
        drops: False where every probability counts as 0; noise is drawn all the same.
    """

    def __init__(
        self,
        batch: TokenBatch,
        rng: Tensor,
        max_positions: int,
        pass_id: int = 0,
        backend: str = "auto",
        drops: bool = True,
    ):
        self.batch, self.rng, self.max_positions = batch, rng, max_positions
        self.pass_id, self.backend, self.drops = pass_id, backend, drops
        self._offsets: dict[int, Tensor] = {}

    @classmethod
    def drawn(
        cls, batch: TokenBatch, max_positions: int, backend: str, drops: bool = True
    ) -> DropoutStream:
        """A stream whose key comes from torch's default generator of the batch's device.

        ``torch.manual_seed`` repeats it, and so does whatever replays the generator's state. The
        host does not wait for the key.
        """
        rng = torch.randint(2**32, (2,), device=batch.rows.device)
        return cls(batch, rng, max_positions, backend=backend, drops=drops)

    @cached_property
    def host_key(self) -> int:
        """A number below 2**63 of all that keys the masks, for generators that are not functions.

        The host waits for it, where the batch is on a GPU.
        """
        parts = [*self.rng.tolist(), self.pass_id, *self.batch.rows[:1].tolist()]
        (state,) = np.random.SeedSequence(parts).generate_state(1, np.uint64)
        return int(state) >> 1

    def fork(self, pass_id: int) -> DropoutStream:
        """The stream of another pass over the same batch, with masks of its own."""
        shared = self.backend, self.drops
        return DropoutStream(self.batch, self.rng, self.max_positions, pass_id, *shared)

    def rows(self, width: int) -> StreamRows:
        """What a layer of ``width`` features takes of the batch."""
        batch = self.batch
        offsets = self._hidden_offsets(width)
        return StreamRows(
            batch.cu_seqlens, batch.max_length, batch.rows, offsets,
            self.rng, self.pass_id, self.max_positions, self.drops,
        )  # fmt: skip

    def hidden(self, width: int, p: float, site: int) -> tuple[float, Tensor, int, Tensor]:
        """(p, rng, site, offsets): what an op on rows [num_tokens, width] takes."""
        return self._rate(p), self.rng, self._site(site), self._hidden_offsets(width)

    def drop(self, x: Tensor, p: float, site: int) -> Tensor:
        """Rows [num_tokens, width] with elements dropped, as the ops that take ``hidden`` do it."""
        mask = self._mask(self._hidden_offsets(x.shape[-1]), x.shape[-1], p, site, x.dtype)
        return x if mask is None else x * mask

    def attention(self, p: float, site: int) -> tuple[float, Tensor, int, Tensor, int]:
        """(p, rng, site, rows, max_positions): what attention takes."""
        return self._rate(p), self.rng, self._site(site), self.batch.rows, self.max_positions

    def attention_factors(
        self, num_heads: int, p: float, site: int, dtype: torch.dtype
    ) -> Tensor | None:
        """Factors [num_sequences, num_heads, max_length, max_length], or None for p = 0."""
        size = self.batch.max_length
        offsets = self.batch.attention_offsets(self.max_positions, num_heads)
        mask = self._mask(offsets, size, p, site, dtype)
        return None if mask is None else mask.view(-1, num_heads, size, size)

    def pooled_factors(self, width: int, p: float, dtype: torch.dtype) -> Tensor | None:
        """Factors on pooled sequences [num_sequences, width], or None for p = 0."""
        offsets = self.batch.rows * (self.max_positions * width)
        return self._mask(offsets, width, p, HEAD_SITE, dtype)

    def normal(self, width: int, site: int = NOISE_SITE) -> Tensor:
        """Standard normal noise [num_tokens, width], float32, as a function like the masks.

        Its elements are counted in rows of whole blocks of the generator, ``noise_width`` each.
        """
        whole = noise_width(width)
        offsets, site = self._hidden_offsets(whole), self._site(site)
        noise = smart_noise(offsets, whole, self.rng, site, backend=self.backend)
        return noise if whole == width else noise[:, :width].contiguous()

    def _site(self, site: int) -> int:
        return site_of(self.pass_id, site)

    def _rate(self, p: float) -> float:
        return p if self.drops else 0.0

    def _hidden_offsets(self, width: int) -> Tensor:
        if width not in self._offsets:
            self._offsets[width] = self.batch.hidden_offsets(self.max_positions, width)
        return self._offsets[width]

    def _mask(
        self, offsets: Tensor, width: int, p: float, site: int, dtype: torch.dtype
    ) -> Tensor | None:
        p, site = self._rate(p), self._site(site)
        return dropout_mask(offsets, width, p, self.rng, site, dtype) if p else None


@dataclass(frozen=True)
class StreamRows:
    """Packed sequences and a pass's dropout, as the layers of an encoder take them.

    Attributes:
        cu_seqlens, max_length, rows: see ``TokenBatch``.
        offsets: int64 [num_tokens], of each token's first hidden feature (``ops.dropout``).
        rng, pass_id, max_positions, drops: see ``DropoutStream``.
    """

    cu_seqlens: Tensor
    max_length: int
    rows: Tensor
    offsets: Tensor
    rng: Tensor
    pass_id: int
    max_positions: int
    drops: bool = True

    @property
    def num_tokens(self) -> int:
        return len(self.offsets)

    @property
    def num_sequences(self) -> int:
        return len(self.rows)

    def tail(self, num_sequences: int, num_tokens: int) -> StreamRows:
        """The rows without the first sequences, which have so many tokens."""
        return replace(
            self,
            cu_seqlens=self.cu_seqlens[num_sequences:] - num_tokens,
            rows=self.rows[num_sequences:],
            offsets=self.offsets[num_tokens:],
        )

    def then(self, other: StreamRows) -> StreamRows:
        """These rows, and those of ``other``, of the same pass, behind them."""
        assert (self.pass_id, self.drops) == (other.pass_id, other.drops)
        return replace(
            self,
            cu_seqlens=torch.cat([self.cu_seqlens, other.cu_seqlens[1:] + self.num_tokens]),
            max_length=max(self.max_length, other.max_length),
            rows=torch.cat([self.rows, other.rows]),
            offsets=torch.cat([self.offsets, other.offsets]),
        )

    def hidden(self, p: float, site: int) -> tuple[float, Tensor, int, Tensor]:
        """(p, rng, site, offsets): what an op on hidden states takes."""
        return self._rate(p), self.rng, site_of(self.pass_id, site), self.offsets

    def attention(self, p: float, site: int) -> tuple[float, Tensor, int, Tensor, int]:
        """(p, rng, site, rows, max_positions): what attention takes."""
        return self._rate(p), self.rng, site_of(self.pass_id, site), self.rows, self.max_positions

    def _rate(self, p: float) -> float:
        return p if self.drops else 0.0


def site_of(pass_id: int, site: int) -> int:
    """The site of a pass, where passes have masks of their own."""
    return pass_id << 16 | site
