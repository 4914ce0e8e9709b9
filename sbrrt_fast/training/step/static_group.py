"""A group's tensors at fixed addresses on the device."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.training.step.cuda_graph import StaticInput
from sbrrt_fast.training.step.group import Group

TOKENS = (
    "input_ids", "token_types", "positions", "sequence", "is_real", "is_special", "word_index",
    "token_order", "words", "rows", "cu_seqlens",
)  # fmt: skip
STORED = {"is_real": torch.bool, "is_special": torch.bool, "cu_seqlens": torch.int32}


class StaticGroup:
    """Groups of one shape, one after the other in the same memory.

    Everything that changes from step to step goes to the device in two copies: whole numbers
    (tokens, seed and round) and others (labels, the update's numbers).

    Args:
        group: one of them, filled up to its bucket, in the host's memory.
        num_numbers: how many the update takes.
    """

    def __init__(self, group: Group, num_numbers: int, device: torch.device):
        self._like = group
        self._int_sizes = [*(len(getattr(group.tokens, name)) for name in TOKENS), 2]
        self._float_sizes = [len(group.labels), num_numbers]
        self._ints = StaticInput(sum(self._int_sizes), torch.int64, device)
        self._floats = StaticInput(sum(self._float_sizes), torch.float64, device)

    def load(self, group: Group, rng: tuple[int, int], numbers: list[float]) -> None:
        """Brings a group of the same shape to the device.

        Args:
            group: in the host's memory. rng: seed and round. numbers: the update's.
        """
        tokens = (getattr(group.tokens, name) for name in TOKENS)
        self._ints.load([*tokens, torch.tensor(rng)])
        self._floats.load([group.labels, torch.tensor(numbers, dtype=torch.float64)])

    def read(self) -> tuple[Group, Tensor, Tensor]:
        """The group, (seed, round) int64 [2] and the update's numbers float64, on the device."""
        *parts, rng = self._ints.tensor.split(self._int_sizes)
        labels, numbers = self._floats.tensor.split(self._float_sizes)
        named = zip(TOKENS, parts, strict=True)
        tensors = {name: part.to(STORED.get(name, torch.int64)) for name, part in named}
        tokens = TokenBatch(**tensors, max_length=self._like.tokens.max_length)
        group = replace(self._like, labels=labels.to(torch.float32), tokens=tokens)
        return group, rng, numbers
