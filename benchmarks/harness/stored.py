"""A task's rows as pre-tokenised storage, with the lengths of the real data and random words."""

from __future__ import annotations

import torch

from benchmarks.harness.lengths import typical
from benchmarks.harness.shapes import SEQUENCES_PER_EXAMPLE, token_batch
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import BUILTIN_TASKS


def stored_task(name: str, num_examples: int, vocabulary: int = 30522) -> TokenizedTask:
    """Examples in random order, of 0 or 1 as labels."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(typical(name, num_examples * SEQUENCES_PER_EXAMPLE[name]))
    lengths = lengths[torch.randperm(len(lengths), generator=generator)]
    batch = token_batch(lengths.tolist(), vocabulary, generator)
    return TokenizedTask(
        name=name,
        config=BUILTIN_TASKS[name],
        split="train",
        ids=[str(i) for i in range(num_examples)],
        labels=torch.randint(2, (num_examples,), generator=generator).float(),
        tokens=batch.input_ids.to(torch.int32),
        token_types=batch.token_types.to(torch.int8),
        special=batch.is_special,
        starts=batch.cu_seqlens.long(),
        num_truncated=0,
    )
