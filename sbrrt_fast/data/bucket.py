"""Batches filled up to one of a few sizes, so that work captured for one of them serves others."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch

# Few sizes, so that each comes often: small batches cost launches more than tokens.
MIN_STEP, MAX_STEP = 64, 256  # tokens
STEPS_PER_OCTAVE = 8  # so at most an eighth of a batch above MIN_STEP * 8 tokens is padding
MIN_LENGTH = 32
FILLER_LENGTH = 32  # no longer than the shortest class of batches: it must not choose the kernels


class Sizes(NamedTuple):
    """Of batches that are filled up to the same sizes.

    Attributes:
        most, least: tokens of the largest and of the smallest. max_length: of all their sequences.
    """

    most: int
    least: int
    max_length: int


def bucket_size(num_tokens: int, max_positions: int) -> int:
    """The number of tokens that a batch is filled up to, at least ``num_tokens``.

    Sizes lie ``MIN_STEP`` apart up to 1,024 tokens, then an eighth of a power of two, at most
    ``MAX_STEP``; never farther than a sequence may be long.
    """
    step = _step(num_tokens, max_positions)
    return max(-(-num_tokens // step), 1) * step


def _step(num_tokens: int, max_positions: int) -> int:
    """The step between sizes at ``num_tokens``; a batch and its size have one step."""
    octave = 1 << max(num_tokens - 1, 0).bit_length() - 1 if num_tokens > 1 else 1
    return min(max(octave // STEPS_PER_OCTAVE, MIN_STEP), MAX_STEP, max_positions)


def bucket_length(length: int, max_positions: int) -> int:
    """The longest sequence that work captured for a batch allows for: a power of two."""
    return min(max(1 << max(length - 1, 0).bit_length(), MIN_LENGTH), max_positions)


def num_fillers(num_tokens: int, max_positions: int) -> int:
    """How many sequences fill a batch up to ``num_tokens``, a size that ``bucket_size`` gave.

    It depends on the size alone, as everything does that work captured for the size relies on.
    """
    return -(-_step(num_tokens, max_positions) // min(FILLER_LENGTH, max_positions))


def _num_fillers_of(sizes: Sizes, num_tokens: int, max_positions: int) -> int:
    """``num_fillers``, or a power of two where the smallest batch needs more."""
    count = num_fillers(num_tokens, max_positions)
    needed = -(-(num_tokens - sizes.least) // min(FILLER_LENGTH, max_positions))
    return count if needed <= count else 1 << (needed - 1).bit_length()


def fill(batch: TokenBatch, max_positions: int, sizes: Sizes | None = None) -> TokenBatch:
    """A packed batch in the host's memory, filled up to its bucket.

    The tokens that are added are last sequences of at most ``FILLER_LENGTH``, some of them empty.
    They are not real: nothing is pooled from them, and they are never perturbed.

    Args:
        max_positions: the model's maximum length.
        sizes: of all batches that shall be alike; the batch's own if None.
    """
    if sizes is None:
        sizes = Sizes(batch.num_tokens, batch.num_tokens, batch.max_length)
    num_tokens = bucket_size(sizes.most, max_positions)
    added, count = num_tokens - batch.num_tokens, _num_fillers_of(sizes, num_tokens, max_positions)
    length = min(FILLER_LENGTH, max_positions)
    longest = max(sizes.max_length, min(num_tokens - sizes.least, length))
    places, zeros = torch.arange(added), torch.zeros(added, dtype=torch.int64)
    ends = ((torch.arange(count) + 1) * length).clamp(max=added) + batch.num_tokens
    return replace(
        batch,
        input_ids=_append(batch.input_ids, zeros),
        token_types=_append(batch.token_types, zeros),
        positions=_append(batch.positions, places % length),
        sequence=_append(batch.sequence, batch.num_sequences + places // length),
        is_real=_append(batch.is_real, zeros.to(torch.bool)),
        is_special=_append(batch.is_special, zeros.to(torch.bool)),
        cu_seqlens=_append(batch.cu_seqlens, ends.to(torch.int32)),
        rows=_append(batch.rows, batch.rows.amax() + 1 + torch.arange(count)),
        max_length=bucket_length(longest, max_positions),
    )


def words_among(ids: Tensor, num_tokens: int, vocab_size: int) -> Tensor:
    """int64, ascending: all words of ``ids``, and some that do not occur.

    Their number depends on sizes alone: as many as there are tokens, or as the model's
    ``vocab_size`` where that is fewer.

    Args:
        num_tokens: of the batches whose words these are, filled up.
    """
    count = min(num_tokens, vocab_size)
    present = torch.unique(ids)
    candidates = torch.arange(count)
    others = candidates[~torch.isin(candidates, present)][: count - len(present)]
    return torch.cat([present, others]).sort().values


def _append(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([a, b])
