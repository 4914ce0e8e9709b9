"""The weights of all heads in one piece of memory, as the written-out heads read them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sbrrt_fast.model.heads import COSINE_HIGHEST, CosineHead
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.ops.task_heads import HeadSpec

ALIGNMENT = 4  # elements, 16 bytes: what a vector load takes


class HeadWeights:
    """The heads' weights, moved into one float32 vector that their parameters then view.

    Args:
        model: whose heads.

    Attributes:
        flat: float32 [num_elements].
    """

    def __init__(self, model: MultiTaskModel):
        self.model = model
        self._members = list(model.heads.parameters())
        self._offsets: dict[int, int] = {}
        offset = 0
        for p in self._members:
            self._offsets[id(p)] = offset
            offset += -(-p.numel() // ALIGNMENT) * ALIGNMENT
        self.flat = next(model.parameters()).new_zeros(offset)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over parameters that were given other memory."""
        for p in self._members:
            view = self.part(self.flat, p)
            if p.data_ptr() != view.data_ptr():
                view.copy_(p)
                p.data = view

    def part(self, flat: Tensor, parameter: nn.Parameter) -> Tensor:
        """A parameter's view of a vector that is laid out as the weights are."""
        offset = self.place(parameter)
        return flat[offset : offset + parameter.numel()].view(parameter.shape)

    def place(self, parameter: nn.Parameter) -> int:
        """Of its first element in ``flat``."""
        return self._offsets[id(parameter)]

    def spec(self, name: str, num_sequences: int, first_sequence: int) -> HeadSpec:
        """A task's head and so many of its sequences in a batch."""
        task, head = self.model.tasks[name], self.model.heads[name]
        num_examples = num_sequences // task.sequences_per_example
        if isinstance(head, CosineHead):
            return HeadSpec("cosine", num_examples, first_sequence, 1, -1, -1, COSINE_HIGHEST)
        offsets = [self.place(p) for p in (head.classifier.weight, head.classifier.bias)]
        kind = head.pair_kind if head.is_siamese else "linear"
        return HeadSpec(kind, num_examples, first_sequence, head.num_outputs, *offsets)
