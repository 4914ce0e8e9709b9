"""Batches filled up to one of a few sizes, so that work captured for one of them serves others."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch

# Few sizes, so that each comes often: small batches cost launches more than tokens.
MIN_STEP, MAX_STEP = 64, 256  # tokens
STEPS_PER_OCTAVE = 8  # so at most an eighth of a batch above MIN_STEP * 8 tokens is padding
MIN_LENGTH = 32


def bucket_size(num_tokens: int, max_positions: int) -> int:
    """The number of tokens that a batch is filled up to, at least ``num_tokens``.

    Sizes lie ``MIN_STEP`` apart up to 1,024 tokens, then an eighth of a power of two, at most
    ``MAX_STEP``; never farther than a sequence may be long.
    """
    octave = 1 << max(num_tokens - 1, 0).bit_length() - 1 if num_tokens > 1 else 1
    step = min(max(octave // STEPS_PER_OCTAVE, MIN_STEP), MAX_STEP, max_positions)
    return max(-(-num_tokens // step), 1) * step


def bucket_length(length: int, max_positions: int) -> int:
    """The longest sequence that work captured for a batch allows for: a power of two."""
    return min(max(1 << max(length - 1, 0).bit_length(), MIN_LENGTH), max_positions)


def fill(batch: TokenBatch, max_positions: int, vocab_size: int) -> TokenBatch:
    """A packed batch in the host's memory, filled up to its bucket.

    The tokens that are added are a last sequence, empty where the batch fits exactly. They are not
    real: nothing is pooled from them, and they are never perturbed. ``words`` is filled up with
    words that do not occur, to as many as there are tokens.

    Args:
        max_positions: the model's maximum length. vocab_size: the number of its words.
    """
    num_tokens = bucket_size(batch.num_tokens, max_positions)
    added = num_tokens - batch.num_tokens
    ids = _append(batch.input_ids, torch.zeros(added, dtype=torch.int64))
    words, index = _words(ids, min(num_tokens, vocab_size))
    return replace(
        batch,
        input_ids=ids,
        token_types=_append(batch.token_types, torch.zeros(added, dtype=torch.int64)),
        positions=_append(batch.positions, torch.arange(added)),
        sequence=_append(batch.sequence, torch.full((added,), batch.num_sequences)),
        is_real=_append(batch.is_real, torch.zeros(added, dtype=torch.bool)),
        is_special=_append(batch.is_special, torch.zeros(added, dtype=torch.bool)),
        cu_seqlens=_append(batch.cu_seqlens, torch.tensor([num_tokens], dtype=torch.int32)),
        rows=_append(batch.rows, batch.rows.amax(keepdim=True) + 1),
        max_length=bucket_length(max(batch.max_length, added), max_positions),
        words=words,
        word_index=index,
    )


def _append(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b])


def _words(ids: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``count`` words, among them all of ``ids``, and the place of each of ``ids``."""
    found = torch.unique(ids)
    candidates = torch.arange(count)
    others = candidates[~torch.isin(candidates, found)][: count - len(found)]
    words = torch.cat([found, others]).sort().values
    return words, torch.searchsorted(words, ids)
