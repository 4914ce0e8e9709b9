"""The text of a run: what is trained on and what is held out, as makers of batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from sbrrt_fast.data.splits import share_indices
from sbrrt_fast.data.task import Split
from sbrrt_fast.data.task_rules import Share
from sbrrt_fast.errors import ConfigError, DataError
from sbrrt_fast.pretraining.batches import Batches
from sbrrt_fast.pretraining.config import PretrainConfig, as_training
from sbrrt_fast.pretraining.corpus import Corpus, CorpusBuilder
from sbrrt_fast.pretraining.masking import Masking
from sbrrt_fast.pretraining.read_text import read_files, read_tasks
from sbrrt_fast.pretraining.sentences import Sentences
from sbrrt_fast.pretraining.vocabulary import Vocabulary, check_pairs

Log = Callable[[str], object]


@dataclass(frozen=True)
class RunText:
    """Batches of the text to train on, and of the text that is held out, if any.

    ``checksums`` are of their tokens, by a name for messages.
    """

    train: Batches
    held_out: Batches | None

    @property
    def checksums(self) -> dict[str, int]:
        parts = {
            "the text to train on, as tokenised,": self.train,
            "the held-out text,": self.held_out,
        }
        return {name: b.sentences.corpus.checksum for name, b in parts.items() if b is not None}


class TextReader:
    """Reads the text of a configuration.

    Args:
        config: the run's. tokenizer: of the checkpoint in ``folder``.
        num_positions, num_types: of the encoder's tables.

    Raises:
        ConfigError: there is no text. WeightsError: the tokenizer cannot mask, or make pairs.
    """

    def __init__(
        self,
        config: PretrainConfig,
        tokenizer: Tokenizer,
        folder: Path,
        num_positions: int,
        num_types: int,
        log: Log = print,
    ):
        if not config.tasks and not config.text:
            raise ConfigError(
                "there is no text to train on; name tasks (--tasks sst para sts) or text files "
                "(--text FILE)"
            )
        self.config, self.tokenizer, self.log = config, tokenizer, log
        self.num_positions = num_positions
        vocabulary = Vocabulary.of(tokenizer, folder)
        if config.next_sentence:
            check_pairs(tokenizer, vocabulary, num_types, folder)
        self.masking = Masking(config.masking, vocabulary)
        self.max_tokens = min(config.max_length, num_positions) - 2 - config.next_sentence

    def read(self) -> RunText:
        """The text, apart into what is trained on and what is held out.

        Raises:
            DataError: a file cannot be read, or there is less text than a batch takes.
        """
        corpus = self._read(self.config.splits)
        self._check_size(corpus)
        train, held_out = self._apart(corpus)
        self._check_size(train)
        self.log(_line(train, held_out))
        return RunText(self._batches(train), held_out and self._held_out_batches(held_out))

    def _read(self, splits: tuple[Split, ...]) -> Corpus:
        as_pairs = self.config.next_sentence
        most = self.max_tokens
        builder = CorpusBuilder(max(most // 2, 1) if as_pairs and self.config.text else most, most)
        if self.config.text:
            return read_files(self.config.text, self.tokenizer, builder)
        run = as_training(self.config)
        arguments = run, splits, self.tokenizer, self.num_positions, builder
        return read_tasks(*arguments, as_pairs=as_pairs, log=self.log)

    def _apart(self, corpus: Corpus) -> tuple[Corpus, Corpus | None]:
        held_out, seed = self.config.held_out, self.config.seed
        source = self.config.held_out_source
        if source == "none":
            return corpus, None
        if source == "dev":
            other = self._read(("dev",))
            return corpus, other.part(_some(other.num_rows, held_out.most, seed))
        chosen = share_indices(corpus.num_rows, Share(0.0, held_out.share), seed)
        if not chosen:
            raise ConfigError(
                f"held_out.share: {held_out.share} of {corpus.num_rows:,} sequences is none; "
                "choose a larger share, or held_out.source none"
            )
        is_held_out = np.zeros(corpus.num_rows, dtype=np.bool_)
        is_held_out[list(chosen)] = True
        other = corpus.part(np.flatnonzero(is_held_out))
        some = other.part(_some(other.num_rows, held_out.most, seed))
        return corpus.part(np.flatnonzero(~is_held_out)), some

    def _batches(self, corpus: Corpus) -> Batches:
        sentences = Sentences(corpus, self.max_tokens, self.config.next_sentence)
        return Batches(sentences, self.masking)

    def _held_out_batches(self, corpus: Corpus) -> Batches:
        try:
            return self._batches(corpus)
        except DataError:  # too few pairs
            self.log("the held-out text is too short for next sentences: words alone are scored")
            return Batches(Sentences(corpus, self.max_tokens, False), self.masking)

    def _check_size(self, corpus: Corpus) -> None:
        if corpus.num_rows < self.config.batch_size:
            raise DataError(
                f"the text is too short: it makes {corpus.num_rows:,} sequences to train on, and a "
                f"round takes {self.config.batch_size} (batch_size); lower it, or take more text"
            )


def _some(num_rows: int, most: int, seed: int) -> np.ndarray:
    """At most so many rows, in their order, chosen by the seed."""
    chosen = share_indices(num_rows, Share(0.0, min(most / max(num_rows, 1), 1.0)), seed)
    return np.array(sorted(chosen), dtype=np.int64)


def _line(train: Corpus, held_out: Corpus | None) -> str:
    lengths = np.diff(train.starts[train.rows], axis=1)
    apart = "none held out" if held_out is None else f"{held_out.num_rows:,} held out"
    return f"{train.num_rows:,} sequences, {int(lengths.sum()):,} tokens of text; {apart}"
