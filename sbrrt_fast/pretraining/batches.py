"""A round's rows as a packed batch with masked tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbrrt_fast.data.batch import Layout, TokenBatch
from sbrrt_fast.data.transfer import to_device
from sbrrt_fast.pretraining.masking import Masking
from sbrrt_fast.pretraining.random_words import RandomRows
from sbrrt_fast.pretraining.sentences import Segments, Sentences


@dataclass(frozen=True)
class MaskedBatch:
    """Sequences as the encoder sees them, and what is to be predicted of them.

    Attributes:
        tokens: packed, masked.
        masked: int64 [num_masked], places of the tokens to predict. targets: their ids.
        pairs: int64 [num_pairs], the sequences of two segments. labels: int64, 1 where the second
            segment is a random one.
    """

    tokens: TokenBatch
    masked: Tensor
    targets: Tensor
    pairs: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> MaskedBatch:
        """The batch with its tensors on ``device``."""
        names = ("masked", "targets", "pairs", "labels")
        moved = {name: to_device(getattr(self, name), device) for name in names}
        return replace(self, tokens=self.tokens.to(device), **moved)


class Batches:
    """Makes batches of a corpus.

    Args:
        sentences: the corpus's rows as segments. masking: what is masked of them.
    """

    def __init__(self, sentences: Sentences, masking: Masking):
        self.sentences, self.masking = sentences, masking

    @property
    def num_rows(self) -> int:
        return self.sentences.corpus.num_rows

    def batch(
        self, rows: NDArray[np.int64], random_rows: RandomRows, first_place: int = 0
    ) -> MaskedBatch:
        """The batch of some rows of the corpus.

        Args:
            rows: int64, their numbers. first_place: of the first one in the round.
        """
        places = range(first_place, first_place + len(rows))
        segments = [
            self.sentences.row(int(row), random_rows, place)
            for row, place in zip(rows, places, strict=True)
        ]
        return self._masked(segments, places, random_rows)

    def _masked(
        self, segments: list[Segments], places: Iterable[int], random_rows: RandomRows
    ) -> MaskedBatch:
        vocabulary = self.masking.vocabulary
        ids = [sequence_ids(s, vocabulary.cls, vocabulary.sep) for s in segments]
        types = [sequence_types(s) for s in segments]
        special = [special_places(s) for s in segments]
        arguments = zip(ids, places, strict=True)
        seen, chosen = zip(*(self.masking(i, random_rows, p) for i, p in arguments), strict=True)
        layout = Layout.of(np.array([len(i) for i in ids], dtype=np.int64))
        arrays = (np.concatenate(x) for x in (seen, types, special))
        rows = np.array(places, dtype=np.int64)
        masked = np.flatnonzero(np.concatenate(chosen))
        targets = np.concatenate(ids)[masked].astype(np.int64)
        labels = [s.label for s in segments]
        pairs = [i for i, label in enumerate(labels) if label is not None]
        return MaskedBatch(
            TokenBatch.from_arrays(*arrays, layout, rows),
            torch.from_numpy(masked),
            torch.from_numpy(targets),
            torch.tensor(pairs, dtype=torch.int64),
            torch.tensor([x for x in labels if x is not None], dtype=torch.int64),
        )


def sequence_ids(segments: Segments, cls: int, sep: int) -> NDArray[np.int32]:
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP]."""
    parts = [[cls], segments.first, [sep]]
    if segments.second is not None:
        parts += [segments.second, [sep]]
    return np.concatenate(parts).astype(np.int32)


def sequence_types(segments: Segments) -> NDArray[np.int8]:
    """0, and 1 from the second segment on."""
    second = 0 if segments.second is None else len(segments.second) + 1
    return np.repeat(np.array([0, 1], dtype=np.int8), [len(segments.first) + 2, second])


def special_places(segments: Segments) -> NDArray[np.bool_]:
    """Where [CLS] and [SEP] are."""
    first = len(segments.first)
    second = [] if segments.second is None else [len(segments.second) + 1]
    is_special = np.zeros(first + 2 + sum(second), dtype=np.bool_)
    is_special[[0, first + 1, *(first + 1 + x for x in second)]] = True
    return is_special
