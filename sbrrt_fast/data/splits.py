"""The rows of a split: those of its files, or a part of the training rows."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from sbrrt_fast.data.reader import ReadReport, read_split
from sbrrt_fast.data.sources import split_sources
from sbrrt_fast.data.task import Example, Split, TaskConfig
from sbrrt_fast.data.task_rules import Share, share_of
from sbrrt_fast.errors import DataError


def read_examples(
    name: str, task: TaskConfig, split: Split, data_dir: str | Path | None
) -> tuple[list[Example], ReadReport]:
    """The rows of a split of task ``name``, in the order of the files.

    Where ``dev`` is a share or a fold of the training rows, ``train`` lacks these.

    Raises:
        DataError: see ``reader.read_split`` and ``sources.split_sources``; also where a part has
            no row.
    """
    share = share_of(task.files.get("dev", "")) if split in ("train", "dev") else None
    files = split if share is None else "train"
    examples, report = read_split(split_sources(name, task, files, data_dir), task, files, name)
    if share is None:
        return examples, report
    chosen = share_indices(len(examples), share, task.split_seed)
    part = [e for i, e in enumerate(examples) if (i in chosen) == (split == "dev")]
    if not part:
        raise DataError(
            f"{report.name}: the {split} part of its {len(examples):,} rows is empty where "
            f"tasks.{name}.files.dev is '{task.files['dev']}'; choose another share"
        )
    return part, replace(report, num_rows=len(part))


def share_indices(num_rows: int, share: Share, seed: int) -> set[int]:
    """Which of ``num_rows`` rows are in a share, of a random order that only the seed decides.

    The folds ``1/k`` to ``k/k`` have every row once.
    """
    draw = random.Random(seed)  # Python keeps what random() gives from version to version
    keys = [draw.random() for _ in range(num_rows)]
    order = sorted(range(num_rows), key=keys.__getitem__)
    return set(order[round(share.start * num_rows) : round(share.stop * num_rows)])
