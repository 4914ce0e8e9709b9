"""Examples as token ids, a few thousand at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer
from tqdm import tqdm

from sbrrt_fast.data.task import Example, TaskConfig
from sbrrt_fast.data.texts import windows
from sbrrt_fast.errors import ConfigError

ROWS_PER_CHUNK = 4096  # bounds the memory of Encoding objects
_SECONDS_UNSHOWN = 2.0  # a bar for less would only flicker


class TokenChunk(NamedTuple):
    """Some examples and their sequences, end to end.

    Attributes:
        examples: the rows, with their texts.
        tokens: [num_tokens] int32. token_types: [num_tokens] int8. special: [num_tokens] bool.
        lengths: [num_sequences] int64, tokens per sequence.
        num_truncated: sequences that were cut.
    """

    examples: list[Example]
    tokens: np.ndarray
    token_types: np.ndarray
    special: np.ndarray
    lengths: np.ndarray
    num_truncated: int


def tokenised(
    examples: Iterable[Example], config: TaskConfig, tokenizer: Tokenizer, max_length: int
) -> Iterator[TokenChunk]:
    """The examples with their tokens, which are cut to ``max_length``, in their order.

    A cross pair loses tokens from its longer sentence first. The tokenizer's own padding and
    truncation settings are neither used nor changed.

    Raises:
        ConfigError: ``max_length`` leaves no room for text between [CLS] and [SEP].
    """
    is_cross = config.encoding == "cross"
    needed = tokenizer.num_special_tokens_to_add(is_cross) + (2 if is_cross else 1)
    if max_length < needed:
        raise ConfigError(f"model.max_length: {max_length} is too short; use at least {needed}")
    for window in windows(examples, ROWS_PER_CHUNK):
        with _exact_lengths(tokenizer, max_length):
            encodings = tokenizer.encode_batch_fast(_inputs(window, config))
        yield _chunk(window, encodings)


def watched(
    chunks: Iterable[TokenChunk], title: str, tick: Callable[[], object], progress: bool
) -> Iterator[TokenChunk]:
    """The chunks, with a call of ``tick`` for each.

    Args:
        title: of the bar, which is there on a terminal alone, after two seconds.
        progress: whether a bar may be shown.
    """
    hidden = None if progress else True
    with tqdm(desc=title, unit=" rows", delay=_SECONDS_UNSHOWN, disable=hidden) as bar:
        for chunk in chunks:
            tick()
            yield chunk
            bar.update(len(chunk.examples))


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


def _chunk(examples: list[Example], encodings: list[Encoding]) -> TokenChunk:
    lengths = [len(encoding) for encoding in encodings]

    def flat(field: str, dtype: type) -> np.ndarray:
        values = chain.from_iterable(getattr(encoding, field) for encoding in encodings)
        return np.fromiter(values, dtype, sum(lengths))

    return TokenChunk(
        examples,
        flat("ids", np.int32),
        flat("type_ids", np.int8),
        flat("special_tokens_mask", np.bool_),
        np.array(lengths, dtype=np.int64),
        sum(bool(encoding.overflowing) for encoding in encodings),
    )
