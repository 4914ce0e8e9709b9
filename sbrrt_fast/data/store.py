"""One split of one task, tokenised once and kept as flat tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from sbrrt_fast.data.reader import ReadReport
from sbrrt_fast.data.splits import read_examples
from sbrrt_fast.data.task import Example, Split, TaskConfig
from sbrrt_fast.errors import ConfigError

MAX_LENGTH = "model.max_length"  # the setting
_TEXTS_PER_CALL = 4096  # bounds the memory of Encoding objects


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
        report: how the file was read; None where the examples came from elsewhere.
    """

    name: str
    config: TaskConfig
    split: Split
    ids: list[str]
    labels: Tensor | None
    tokens: Tensor
    token_types: Tensor
    special: Tensor
    starts: Tensor
    num_truncated: int
    report: ReadReport | None = None

    @classmethod
    def build(
        cls,
        name: str,
        task_config: TaskConfig,
        split: Split,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
        max_length: int,
    ) -> TokenizedTask:
        """Tokenise ``examples``; sequences are cut to ``max_length`` tokens and counted.

        A cross pair loses tokens from its longer sentence first. The tokenizer's own padding and
        truncation settings are neither used nor changed.

        Raises:
            ConfigError: ``max_length`` leaves no room for text between [CLS] and [SEP].
        """
        texts = _inputs(examples, task_config)
        if max_length < (needed := task_config.min_length):
            raise ConfigError(f"model.max_length: {max_length} is too short; use at least {needed}")
        with _exact_lengths(tokenizer, max_length):
            parts = [_flatten(encodings) for encodings in _encoded(tokenizer, texts)]
        tokens, types, special, lengths, num_truncated = zip(*parts, strict=True)
        starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        labels = [example.label for example in examples]
        return cls(
            name=name,
            config=task_config,
            split=split,
            ids=[example.id for example in examples],
            labels=None if None in labels else torch.tensor(labels, dtype=torch.float32),
            tokens=torch.from_numpy(np.concatenate(tokens)),
            token_types=torch.from_numpy(np.concatenate(types)),
            special=torch.from_numpy(np.concatenate(special)),
            starts=torch.from_numpy(starts),
            num_truncated=sum(num_truncated),
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


def load_task(
    name: str,
    task_config: TaskConfig,
    split: Split,
    data_dir: str | Path | None,
    tokenizer: Tokenizer,
    max_length: int,
    log: Callable[[str], object] = print,
    limit_name: str = MAX_LENGTH,
) -> TokenizedTask:
    """Read and tokenise one split; ``log`` hears of skipped rows, labels that are not
    there, and truncation.

    Args:
        data_dir: folder of the task files; the built-in sample when None.
        limit_name: what set ``max_length``, for messages.

    Raises:
        DataError: see ``splits.read_examples``.
        ConfigError: ``max_length`` is too small.
    """
    examples, report = read_examples(name, task_config, split, data_dir)
    if report.num_skipped:
        log(report.message())
    if report.note:
        log(report.note)
    task = TokenizedTask.build(name, task_config, split, examples, tokenizer, max_length)
    if task.num_truncated:
        log(task.message(limit_name))
    return replace(task, report=report)


def _inputs(examples: Sequence[Example], config: TaskConfig) -> list[str] | list[tuple[str, ...]]:
    """One tokenizer input per sequence: a text, or both texts of a cross pair."""
    if config.encoding == "cross":
        return [example.texts for example in examples]
    return [text for example in examples for text in example.texts]


@contextmanager
def _exact_lengths(tokenizer: Tokenizer, max_length: int) -> Iterator[None]:
    """Truncate to ``max_length`` without padding inside the block; restore both afterwards."""
    truncation, padding = tokenizer.truncation, tokenizer.padding
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    try:
        yield
    finally:
        tokenizer.no_truncation()
        if truncation:
            tokenizer.enable_truncation(**truncation)
        if padding:
            tokenizer.enable_padding(**padding)


def _encoded(tokenizer: Tokenizer, texts: Sequence) -> Iterator[list[Encoding]]:
    for first in range(0, max(len(texts), 1), _TEXTS_PER_CALL):
        yield tokenizer.encode_batch_fast(texts[first : first + _TEXTS_PER_CALL])


def _flatten(encodings: list[Encoding]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list, int]:
    """(tokens, token types, special, lengths, number truncated) of some sequences end to end."""
    lengths = [len(encoding) for encoding in encodings]

    def flat(field: str, dtype: type) -> np.ndarray:
        values = chain.from_iterable(getattr(encoding, field) for encoding in encodings)
        return np.fromiter(values, dtype, sum(lengths))

    num_truncated = sum(bool(encoding.overflowing) for encoding in encodings)
    return (
        flat("ids", np.int32),
        flat("type_ids", np.int8),
        flat("special_tokens_mask", np.bool_),
        lengths,
        num_truncated,
    )
