"""Whether a tokenizer, an encoder and tasks belong together, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.json_file import as_json
from sbrrt_fast.model.config import BertConfig


def check_fit(
    tokenizer: Tokenizer, config: BertConfig, tasks: Mapping[str, TaskConfig], folder: Path
) -> None:
    """Refuses what would read past the end of an embedding table.

    Args:
        tokenizer, config: of one checkpoint. tasks: by name. folder: of the checkpoint.

    Raises:
        WeightsError: the tokenizer has an id without a row in the word table, or gives a token type
            without one: of any text, or of the pairs of a ``cross`` task.
    """
    _check_words(tokenizer, config.vocab_size, folder)
    crossing = next((name for name, task in tasks.items() if task.encoding == "cross"), None)
    _check_encoding(tokenizer.encode("a"), config, folder, None)
    if crossing is not None:
        _check_encoding(tokenizer.encode("a", "a"), config, folder, crossing)


def _check_words(tokenizer: Tokenizer, vocab_size: int, folder: Path) -> None:
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", -1))
    if largest >= vocab_size:
        raise WeightsError(
            f"{folder}: the tokenizer's largest id is {largest} ({as_json(token)}), but the word "
            f"table has {vocab_size} rows (config.json, vocab_size); use the tokenizer that was "
            "saved with these weights"
        )


def _check_encoding(encoding: Encoding, config: BertConfig, folder: Path, task: str | None) -> None:
    if (largest := max(encoding.ids)) >= config.vocab_size:
        raise WeightsError(
            f"{folder}: the tokenizer puts id {largest} around a text, but the word table has "
            f"{config.vocab_size} rows; use the tokenizer that was saved with these weights"
        )
    takes_none = config.type_vocab_size == 0
    if takes_none or (kind := max(encoding.type_ids)) < config.type_vocab_size:
        return
    if task is None:
        raise WeightsError(
            f"{folder}: the tokenizer gives token type {kind}, but the encoder has "
            f"{config.type_vocab_size} (config.json, type_vocab_size); use the tokenizer that was "
            "saved with these weights"
        )
    raise WeightsError(
        f"tasks.{task}.encoding: 'cross' needs token types up to {kind}, but the encoder in "
        f"{folder} has {config.type_vocab_size} (config.json, type_vocab_size); use 'siamese' or "
        "another backbone"
    )
