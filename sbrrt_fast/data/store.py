"""One split of one task, tokenised once and kept as flat tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from sbrrt_fast.data.reader import ReadReport
from sbrrt_fast.data.task import Example, Split, TaskConfig
from sbrrt_fast.data.tokens import TokenChunk, tokenised

MAX_LENGTH = "model.max_length"  # the setting


@dataclass(frozen=True)
class TokenizedTask:
    """All sequences of a split, end to end.

    Sequences of example i are ``i * k .. i * k + k - 1`` with
    ``k = config.sequences_per_example``; sequence s is ``tokens[starts[s]:starts[s + 1]]``.

    Attributes:
        name: name of the task.
        config: its record.
        split: ``train``, ``dev`` or ``test``.
        ids: row id of each example.
        labels: [num_examples] float32, whole numbers for classes; None in a test
            split without labels.
        tokens: [num_tokens] int32 ids, with [CLS] and [SEP].
        token_types: [num_tokens] int8, 1 in the second sentence of a cross pair.
        special: [num_tokens] bool, true at the [CLS] and [SEP] the tokenizer added.
        starts: [num_sequences + 1] int64 offsets into ``tokens``.
        num_truncated: sequences that were longer than ``max_length``.
        texts: one or two texts of each example, whole; None where nobody needs them.
        report: how the file was read; None where the examples came from elsewhere.
    """

    name: str
    config: TaskConfig
    split: Split
    ids: Sequence[str]
    labels: Tensor | None
    tokens: Tensor
    token_types: Tensor
    special: Tensor
    starts: Tensor
    num_truncated: int
    texts: Sequence[tuple[str, ...]] | None = None
    report: ReadReport | None = None

    @classmethod
    def build(
        cls,
        name: str,
        task_config: TaskConfig,
        split: Split,
        examples: Iterable[Example],
        tokenizer: Tokenizer,
        max_length: int,
    ) -> TokenizedTask:
        """Tokenise ``examples``; sequences are cut to ``max_length`` tokens and counted.

        Raises:
            ConfigError: see ``tokens.tokenised``.
        """
        chunks = tokenised(examples, task_config, tokenizer, max_length)
        return cls.from_chunks(name, task_config, split, chunks)

    @classmethod
    def from_chunks(
        cls, name: str, task_config: TaskConfig, split: Split, chunks: Iterable[TokenChunk]
    ) -> TokenizedTask:
        """A split in this process's own memory."""
        parts = list(chunks)
        examples = [example for part in parts for example in part.examples]
        lengths = _joined([part.lengths for part in parts], np.int64)
        labels = [example.label for example in examples]
        return cls(
            name=name,
            config=task_config,
            split=split,
            ids=[example.id for example in examples],
            labels=None if None in labels else torch.tensor(labels, dtype=torch.float32),
            tokens=torch.from_numpy(_joined([part.tokens for part in parts], np.int32)),
            token_types=torch.from_numpy(_joined([part.token_types for part in parts], np.int8)),
            special=torch.from_numpy(_joined([part.special for part in parts], np.bool_)),
            starts=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
            num_truncated=sum(part.num_truncated for part in parts),
            texts=[example.texts for example in examples],
        )

    @property
    def num_examples(self) -> int:
        return len(self.ids)

    @property
    def num_sequences(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The tensors by name, as arrays in the same memory."""
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        return {name: x.numpy() for name, x in tensors.items()}

    @property
    def lengths(self) -> Tensor:
        """[num_sequences] int64, tokens per sequence."""
        return self.starts.diff()

    def sequences(self, example_indices: Iterable[int]) -> list[int]:
        """Indices of the sequences of these examples, in their order."""
        k = self.config.sequences_per_example
        return [int(i) * k + j for i in example_indices for j in range(k)]

    def sequence(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, token_types, special) of one sequence, each [length]; views, not copies."""
        here = slice(int(self.starts[index]), int(self.starts[index + 1]))
        return self.tokens[here], self.token_types[here], self.special[here]

    def message(self, limit_name: str = MAX_LENGTH) -> str:
        """One printable line on truncation, or an empty string if there was none.

        Args:
            limit_name: what set the ``max_length``.
        """
        if not self.num_truncated:
            return ""
        longest = int(self.lengths.max())
        return (
            f"{self.name} {self.split}: cut {self.num_truncated:,} of {self.num_sequences:,} "
            f"sequences to {longest} tokens ({limit_name})"
        )


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *arrays])
