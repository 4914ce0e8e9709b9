"""A batch of token sequences laid side by side, and its padded view.

Hidden states are always [num_tokens, hidden]. In the packed layout the tokens are the real ones;
in the padded layout every sequence has ``max_length`` of them. Only attention, positions and
pooling see the difference, through ``pad``, ``unpad`` and ``is_real``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sbrrt_fast.data.transfer import to_device


class Layout(NamedTuple):
    """Where the tokens of packed sequences are, as arrays; attributes are ``TokenBatch``'s."""

    cu_seqlens: np.ndarray
    sequence: np.ndarray
    positions: np.ndarray
    max_length: int

    @classmethod
    def of(cls, lengths: np.ndarray) -> Layout:
        """The layout of sequences of int64 ``lengths``."""
        cu_seqlens = np.zeros(len(lengths) + 1, dtype=np.int32)
        lengths.cumsum(out=cu_seqlens[1:])
        sequence = np.arange(len(lengths)).repeat(lengths)
        positions = np.arange(len(sequence)) - cu_seqlens[sequence]
        return cls(cu_seqlens, sequence, positions, int(lengths.max(initial=0)))


@dataclass(frozen=True)
class TokenBatch:
    """Sequences of tokens.

    Attributes:
        input_ids, token_types, positions: int64 [num_tokens].
        sequence: int64 [num_tokens], the sequence each token belongs to.
        is_real: bool [num_tokens], False at padding (nowhere in the packed layout).
        is_special: bool [num_tokens], True at [CLS] and [SEP].
        cu_seqlens: int32 [num_sequences + 1], cumulative lengths of the real tokens.
        rows: int64 [num_sequences], each sequence's row in the round's batch, for dropout.
        max_length: longest sequence, known to the host.
        packed: whether the layout is packed.
        words: int64 [num_words], ids in ascending order, each once, all that occur and maybe more;
        word_index: int64 [num_tokens], each token's among them. None where nobody has looked.
        token_order: int64 [3 * num_tokens], the tokens sorted by word, then by position, then by
            type, those that are alike in their order; None like ``words``.
    """

    input_ids: Tensor
    token_types: Tensor
    positions: Tensor
    sequence: Tensor
    is_real: Tensor
    is_special: Tensor
    cu_seqlens: Tensor
    rows: Tensor
    max_length: int
    packed: bool = True
    words: Tensor | None = None
    word_index: Tensor | None = None
    token_order: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        return self.rows.shape[0]

    @classmethod
    def from_packed(
        cls,
        input_ids: Tensor,
        token_types: Tensor,
        is_special: Tensor,
        lengths: Tensor,
        rows: Tensor,
    ) -> TokenBatch:
        """A packed batch from concatenated sequences and their int64 ``lengths``."""
        arrays = (x.numpy() for x in (input_ids, token_types, is_special))
        return cls.from_arrays(*arrays, Layout.of(lengths.numpy()), rows.numpy())

    @classmethod
    def from_arrays(
        cls,
        input_ids: np.ndarray,
        token_types: np.ndarray,
        is_special: np.ndarray,
        layout: Layout,
        rows: np.ndarray,
    ) -> TokenBatch:
        """``from_packed`` of arrays, whose small operations take a fraction of tensors' time."""
        arrays = (
            input_ids.astype(np.int64),
            token_types.astype(np.int64),
            layout.positions,
            layout.sequence,
            np.ones(len(input_ids), dtype=bool),
            is_special,
            layout.cu_seqlens,
            rows,
        )
        return cls(*map(torch.from_numpy, arrays), layout.max_length)

    @classmethod
    def concatenate(cls, batches: list[TokenBatch]) -> TokenBatch:
        """Packed batches one after the other; each sequence keeps its row."""
        if len(batches) == 1:
            return batches[0]
        assert all(batch.packed for batch in batches), "only packed batches can be concatenated"
        joined = {
            name: torch.cat([getattr(batch, name) for batch in batches])
            for name in ("input_ids", "token_types", "positions", "is_real", "is_special", "rows")
        }
        sequence, cu_seqlens, first, token = [], [batches[0].cu_seqlens[:1]], 0, 0
        for batch in batches:
            sequence.append(batch.sequence + first)
            cu_seqlens.append(batch.cu_seqlens[1:] + token)
            first, token = first + batch.num_sequences, token + batch.num_tokens
        return cls(
            **joined,
            sequence=torch.cat(sequence),
            cu_seqlens=torch.cat(cu_seqlens),
            max_length=max(batch.max_length for batch in batches),
        )

    @classmethod
    def from_padded(
        cls, input_ids: Tensor, attention_mask: Tensor, token_types: Tensor
    ) -> TokenBatch:
        """A padded batch from Hugging Face's [num_sequences, max_length] tensors.

        Real tokens must come before padding in every row.
        """
        num_sequences, max_length = input_ids.shape
        device = input_ids.device
        is_real = attention_mask.to(torch.bool)
        cu_seqlens = torch.zeros(num_sequences + 1, dtype=torch.int32, device=device)
        cu_seqlens[1:] = is_real.sum(dim=1).cumsum(0)
        rows = torch.arange(num_sequences, device=device)
        return cls(
            input_ids=input_ids.reshape(-1),
            token_types=token_types.reshape(-1),
            positions=torch.arange(max_length, device=device).repeat(num_sequences),
            sequence=rows.repeat_interleave(max_length),
            is_real=is_real.reshape(-1),
            is_special=torch.zeros_like(is_real).reshape(-1),
            cu_seqlens=cu_seqlens,
            rows=rows,
            max_length=max_length,
            packed=False,
        )

    def padded(self) -> TokenBatch:
        """The same sequences in the padded layout; padding has id 0 and is not real."""
        if not self.packed:
            return self
        grid = torch.arange(self.num_sequences * self.max_length, device=self.rows.device)
        spread = {
            name: self.pad(getattr(self, name)).flatten()
            for name in ("input_ids", "token_types", "is_real", "is_special")
        }
        return replace(
            self,
            **spread,
            positions=grid % max(self.max_length, 1),
            sequence=grid // max(self.max_length, 1),
            packed=False,
            words=None,
            word_index=None,
            token_order=None,
        )

    def with_words(self, words: Tensor | None = None) -> TokenBatch:
        """The batch with ``words``, ``word_index`` and ``token_order``.

        On a GPU the host waits for the number of words.

        Args:
            words: int64, ascending, all that occur and maybe more; those that occur if None.
        """
        if words is not None:
            return self.with_these_words(words, torch.searchsorted(words, self.input_ids))
        if self.words is not None:
            return self
        return self.with_these_words(*torch.unique(self.input_ids, return_inverse=True))

    def with_these_words(self, words: Tensor, index: Tensor) -> TokenBatch:
        """The batch whose ``words`` and ``word_index`` are known."""
        indices = index, self.positions, self.token_types
        order = torch.cat([x.argsort(stable=True) for x in indices])
        return replace(self, words=words, word_index=index, token_order=order)

    @cached_property
    def slots(self) -> Tensor:
        """int64 [num_tokens], each token's place in the padded [num_sequences * max_length]."""
        return self.sequence * self.max_length + self.positions

    @cached_property
    def key_mask(self) -> Tensor:
        """bool [num_sequences, max_length], True at real tokens."""
        return self.pad(self.is_real)

    def pad(self, x: Tensor) -> Tensor:
        """[num_tokens, ...] -> [num_sequences, max_length, ...], zeros at padding."""
        shape = (self.num_sequences, self.max_length, *x.shape[1:])
        if not self.packed:
            return x.reshape(shape)
        flat = x.new_zeros(self.num_sequences * self.max_length, *x.shape[1:])
        return flat.index_copy(0, self.slots, x).reshape(shape)

    def unpad(self, x: Tensor) -> Tensor:
        """[num_sequences, max_length, ...] -> [num_tokens, ...]."""
        flat = x.flatten(0, 1)
        return flat.index_select(0, self.slots) if self.packed else flat

    def hidden_offsets(self, max_positions: int, width: int) -> Tensor:
        """int64 [num_tokens]: index of each token's first feature (see ``ops.dropout``)."""
        return (self.rows[self.sequence] * max_positions + self.positions) * width

    def attention_offsets(self, max_positions: int, num_heads: int) -> Tensor:
        """int64 [num_sequences * num_heads * max_length]: index of each query's first key."""
        device = self.rows.device
        heads = torch.arange(num_heads, device=device)[None, :, None]
        queries = torch.arange(self.max_length, device=device)[None, None, :]
        offsets = (self.rows[:, None, None] * num_heads + heads) * max_positions + queries
        return offsets.flatten() * max_positions

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch with its tensors on ``device``."""
        tensors = {
            f.name: to_device(getattr(self, f.name), device)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return replace(self, **tensors)
