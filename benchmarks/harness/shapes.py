"""The cases that benchmarks run: models, batches, precisions, and forward or backward.

Batches have the lengths of the real task data (``lengths.py``), or all one length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.harness.lengths import TASKS, typical
from benchmarks.harness.settings import Settings
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.model.config import BertConfig

MODELS = {
    "minilm": BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "bert-base": BertConfig(),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORWARD, BACKWARD, BOTH = "forward", "backward", "both"
PARTS = (FORWARD, BACKWARD, BOTH)
SEQUENCES_PER_EXAMPLE = {"sst": 1, "para": 2, "sts": 2}
RNG_SEED = (17, 5)  # (seed, step) of dropout


def lengths_of(batch: str) -> list[int]:
    """Of the sequences of a batch.

    ``task``: 8 Quora pairs; ``round``: 8 examples of every task; ``round-32``: 32 of every task;
    ``128`` and ``512``: about 1024 tokens in sequences of that length.
    """
    if batch == "task":
        return typical("para", 16)
    if batch.startswith("round"):
        return [l for task in TASKS for l in task_lengths(task, examples_of(batch))]
    length = int(batch)
    return [length] * max(1, 1024 // length)


def examples_of(batch: str) -> int:
    """Examples a task of ``round`` or ``round-32``."""
    return int(batch.partition("-")[2] or 8)


def models(settings: Settings) -> list[str]:
    """Those that are timed: a quick run on a CPU has MiniLM alone."""
    return ["minilm"] if settings.quick and not settings.is_gpu else list(MODELS)


def task_lengths(task: str, num_examples: int) -> list[int]:
    """Of the sequences of a batch of one task."""
    return typical(task, num_examples * SEQUENCES_PER_EXAMPLE[task])


@dataclass(frozen=True)
class Case:
    """What one comparison is about; parts that do not apply are empty."""

    model: str
    batch: str
    dtype: str = "fp32"
    part: str = FORWARD
    option: str = ""

    def __str__(self) -> str:
        return " ".join(
            x for x in (self.model, self.batch, self.dtype, self.part, self.option) if x
        )

    @property
    def config(self) -> BertConfig:
        return MODELS[self.model]

    @property
    def lengths(self) -> list[int]:
        return lengths_of(self.batch)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


def cases(
    settings: Settings,
    dtypes: Sequence[str] = tuple(DTYPES),
    parts: Sequence[str] = PARTS,
    batches: Sequence[str] = ("task", "round", "128", "512"),
) -> Iterator[Case]:
    """All combinations on a GPU.

    On a CPU forward and backward are apart alone, bert-base has the joint round alone, and all but
    MiniLM's joint round the last of the dtypes alone. A quick run has joint rounds alone, and no
    bert-base on a CPU.
    """
    if settings.is_gpu and "round" in batches:
        batches = [*batches, "round-32"]
    if settings.quick or not settings.is_gpu:
        parts = [part for part in parts if part != BOTH]
    for model in models(settings):
        is_short = settings.quick or (model == "bert-base" and not settings.is_gpu)
        for batch in [b for b in batches if b == "round" or not is_short]:
            is_main = settings.is_gpu or (model, batch) == ("minilm", "round")
            for dtype in dtypes if is_main else dtypes[-1:]:
                for part in parts:
                    yield Case(model, batch, dtype, part)


def token_batch(
    lengths: Sequence[int], vocabulary: int, generator: torch.Generator, first_row: int = 0
) -> TokenBatch:
    """A packed batch of random words, as frequent as words are: by Zipf's law."""
    sizes = torch.tensor(lengths)
    uniform = torch.rand(int(sizes.sum()), generator=generator, dtype=torch.float64)
    words = (vocabulary**uniform).long().clamp(max=vocabulary - 1)
    ends = sizes.cumsum(0)
    is_special = torch.zeros(len(words), dtype=torch.bool)
    is_special[ends - 1] = is_special[ends - sizes] = True
    rows = torch.arange(first_row, first_row + len(sizes))
    return TokenBatch.from_packed(words, torch.zeros_like(words), is_special, sizes, rows)
