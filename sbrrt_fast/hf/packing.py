"""Padded batches as packed rows: [num_sequences, max_length, ...] <-> [num_tokens, ...]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sbrrt_fast.ops.attention import MAX_LENGTH


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of a padded batch are.

    Attributes:
        num_sequences, padded_length: the first two dimensions of padded tensors.
        cu_seqlens: int32 [num_sequences + 1], cumulative lengths of the real tokens.
        max_length: of the longest sequence.
        slots: int64 [num_tokens], each real token's place among num_sequences * padded_length;
            None where all tokens are real.
    """

    num_sequences: int
    padded_length: int
    cu_seqlens: Tensor
    max_length: int
    slots: Tensor | None

    def pack(self, x: Tensor) -> Tensor:
        """[num_sequences, padded_length, ...] -> [num_tokens, ...]."""
        flat = x.reshape(-1, *x.shape[2:])
        return flat if self.slots is None else flat.index_select(0, self.slots)

    def unpack(self, x: Tensor) -> Tensor:
        """[num_tokens, ...] -> [num_sequences, padded_length, ...], zeros at padding."""
        shape = self.num_sequences, self.padded_length, *x.shape[1:]
        if self.slots is None:
            return x.reshape(shape)
        flat = x.new_zeros(shape[0] * shape[1], *x.shape[1:])
        return flat.index_copy(0, self.slots, x).view(shape)

    @cached_property
    def places(self) -> Tensor:
        """int64 [num_tokens]: ``slots``, also where all tokens are real."""
        if self.slots is not None:
            return self.slots
        num_tokens = self.num_sequences * self.padded_length
        return torch.arange(num_tokens, device=self.cu_seqlens.device)


def packing_of(mask: Tensor) -> Packing | str:
    """The packing of a batch, or why it cannot be packed.

    A row that begins with padding is not packed: models read the first position whatever is there.
    On a GPU the host waits once, for the number of tokens and the longest length.

    Args:
        mask: [num_sequences, padded_length], not 0 where a real token is.
    """
    if mask.numel() == 0:
        return "the batch is empty"
    is_real = mask.to(torch.bool)
    lengths = is_real.sum(dim=1)
    numbers = torch.stack([lengths.sum(), lengths.max(), is_real[:, 0].all()]).tolist()
    num_tokens, max_length, starts_are_real = numbers
    if not starts_are_real:
        return "a row begins with padding; pad on the right"
    if max_length > MAX_LENGTH:
        return f"the longest sequence has {max_length} tokens, above {MAX_LENGTH}"
    slots = None
    if num_tokens < mask.numel():
        slots = is_real.flatten().nonzero_static(size=num_tokens).squeeze(1)
    cu_seqlens = torch.zeros(len(mask) + 1, dtype=torch.int32, device=mask.device)
    torch.cumsum(lengths, 0, dtype=torch.int32, out=cu_seqlens[1:])
    return Packing(len(mask), mask.shape[1], cu_seqlens, max_length, slots)


def full_packing(num_sequences: int, length: int, device: torch.device) -> Packing | str:
    """The packing of a batch without padding, or why it cannot be packed; the host never waits."""
    if num_sequences * length == 0:
        return "the batch is empty"
    if length > MAX_LENGTH:
        return f"the longest sequence has {length} tokens, above {MAX_LENGTH}"
    numbers = torch.arange(num_sequences + 1, dtype=torch.int32, device=device)
    return Packing(num_sequences, length, numbers * length, length, None)


def draw_rng(device: torch.device) -> Tensor:
    """int64 [2], (seed, step) of dropout's masks, from torch's default generator."""
    return torch.randint(2**32, (2,), device=device)


class EncoderPass:
    """One pass through an encoder: its packing, and the random numbers of its dropouts.

    It takes the attention mask's place in the calls of layers, so that gradient checkpointing
    hands the same one to a layer that it runs again.

    Args:
        width: features of hidden states.
        is_padded_between: layers take and give padded hidden states, for those who look at them.
    """

    def __init__(self, packing: Packing, width: int, is_padded_between: bool):
        self.packing, self.width = packing, width
        self.is_padded_between = is_padded_between

    @cached_property
    def rng(self) -> Tensor:
        """Drawn for the first dropout of the pass."""
        return draw_rng(self.packing.cu_seqlens.device)

    @cached_property
    def offsets(self) -> Tensor:
        """int64 [num_tokens], the index of each token's first feature (``ops.dropout``)."""
        return self.packing.places * self.width

    @cached_property
    def rows(self) -> Tensor:
        """int64 [num_sequences], each sequence's row in dropout's index."""
        return torch.arange(self.packing.num_sequences, device=self.packing.cu_seqlens.device)

    def hidden(self, p: float, site: int) -> tuple:
        """(p, rng, site, offsets): what an op on hidden states takes; nothing for p = 0."""
        return (p, self.rng, site, self.offsets) if p else ()

    def attention(self, p: float, site: int) -> tuple:
        """(p, rng, site, rows, max_positions): what attention takes; nothing for p = 0."""
        return (p, self.rng, site, self.rows, self.packing.padded_length) if p else ()
