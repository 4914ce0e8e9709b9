"""The rows of a split: those of its files, or a part of the training rows."""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from sbrrt_fast.data.reader import ReadReport, SplitReader, nothing, read_split
from sbrrt_fast.data.sources import Source, split_sources
from sbrrt_fast.data.task import Example, Split, TaskConfig
from sbrrt_fast.data.task_rules import Share, share_of
from sbrrt_fast.data.train_part import TrainPart
from sbrrt_fast.errors import DataError


@dataclass(frozen=True)
class SplitRows:
    """Which rows a split of task ``name`` has, in the order of the files.

    Where ``dev`` is a share or a fold of the training rows, ``train`` lacks these. Of what is left,
    ``train_rows`` takes some, and ``label_noise`` gives some of them other labels.

    Attributes:
        data_dir: folder of relative files; the built-in sample's when None.
        tick: called every few thousand rows that are read.
    """

    name: str
    task: TaskConfig
    split: Split
    data_dir: str | Path | None
    tick: Callable[[], object] = nothing

    @property
    def share(self) -> Share | None:
        """The part of the training rows that is dev, where this is dev or what it leaves."""
        return share_of(self.task.files.get("dev", "")) if self.split in ("train", "dev") else None

    @property
    def files_of(self) -> Split:
        """The split whose files are read."""
        return self.split if self.share is None else "train"

    @cached_property
    def sources(self) -> tuple[Source, ...]:
        """The files; raises like ``sources.split_sources``."""
        return split_sources(self.name, self.task, self.files_of, self.data_dir)

    def read(self) -> tuple[list[Example], ReadReport]:
        """All rows.

        Raises:
            DataError: see ``reader.read_split`` and ``sources.split_sources``; also where a part
                has no row.
        """
        examples, report = read_split(self.sources, self.task, self.files_of, self.name, self.tick)
        if self.share is not None:
            is_here = self.is_here(len(examples))
            examples = [e for e, here in zip(examples, is_here, strict=True) if here]
            report = self.part_report(report, len(examples))
        if part := self.train_part([e.label for e in examples]):
            return list(part.of(examples)), part.report(report)
        return examples, report

    def stream(self) -> SplitStream:
        """The same rows one after the other."""
        return SplitStream(self)

    def reader(self) -> SplitReader:
        """Reads the files, whichever part of their rows the split is."""
        return SplitReader(self.sources, self.task, self.files_of, self.name, self.tick)

    def is_here(self, num_rows: int) -> np.ndarray:
        """bool [num_rows]: which of the files' rows are in this part."""
        is_dev = np.zeros(num_rows, dtype=np.bool_)
        is_dev[list(share_indices(num_rows, self.share, self.task.split_seed))] = True
        return is_dev if self.split == "dev" else ~is_dev

    @property
    def has_train_part(self) -> bool:
        """Whether rows are left out, or labels replaced, for training."""
        task = self.task
        return self.split == "train" and (task.train_rows is not None or task.label_noise > 0)

    def train_part(self, labels: Sequence[float]) -> TrainPart | None:
        """What is taken of the rows with these labels; None for all as they are."""
        return TrainPart.draw(self.name, self.task, labels) if self.has_train_part else None

    def part_report(self, report: ReadReport, num_rows: int) -> ReadReport:
        if not num_rows:
            raise DataError(
                f"{report.name}: the {self.split} part of its {report.num_rows:,} rows is empty "
                f"where tasks.{self.name}.files.dev is '{self.task.files['dev']}'; choose another "
                "share"
            )
        return replace(report, num_rows=num_rows)


class SplitStream:
    """The rows of a split, which never are in memory together; they are iterated once.

    Files are read twice where all rows decide which are taken: for a share of them, for
    ``train_rows`` and ``label_noise``, and for a test split, whose rows without labels are left out
    where others have some.

    Attributes:
        report: how they were read; None before the last one.
    """

    report: ReadReport | None = None

    def __init__(self, rows: SplitRows):
        self._rows = rows

    def __iter__(self) -> Iterator[Example]:
        """Raises like ``SplitRows.read``, before the first row or later."""
        rows, (first, labels) = self._rows, self._first_pass()
        is_here = None if rows.share is None else rows.is_here(len(labels))
        part = rows.train_part(labels if is_here is None else labels[is_here])
        reader = rows.reader()
        with closing(iter(reader)) as examples:
            kept = self._kept(examples, first, is_here)
            yield from kept if part is None else part.of(kept)
        report = reader.finish()
        if is_here is not None:
            report = rows.part_report(report, int(is_here.sum()))
        self.report = report if part is None else part.report(report)

    def _first_pass(self) -> tuple[SplitReader | None, np.ndarray]:
        """A reader that has read all files, and the labels of the rows it took, NaN for none;
        None where they need not be read twice."""
        rows = self._rows
        if rows.share is None and rows.split != "test" and not rows.has_train_part:
            return None, np.empty(0)
        reader = rows.reader()
        labels = array("d", (math.nan if e.label is None else e.label for e in reader))
        reader.finish()
        return reader, np.frombuffer(labels)

    @staticmethod
    def _kept(
        examples: Iterator[Example], first: SplitReader | None, is_here: np.ndarray | None
    ) -> Iterator[Example]:
        """Those that count, of all rows of the files."""
        for i, example in enumerate(examples):
            if not (first and first.is_dropped(example)) and (is_here is None or is_here[i]):
                yield example


def share_indices(num_rows: int, share: Share, seed: int) -> set[int]:
    """Which of ``num_rows`` rows are in a share, of a random order that only the seed decides.

    The folds ``1/k`` to ``k/k`` have every row once.
    """
    draw = random.Random(seed)  # Python keeps what random() gives from version to version
    keys = [draw.random() for _ in range(num_rows)]
    order = sorted(range(num_rows), key=keys.__getitem__)
    return set(order[round(share.start * num_rows) : round(share.stop * num_rows)])
