"""What a task's record leaves to be found in its training rows: the classes and their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sbrrt_fast.data.cells import as_class, is_number, label_text
from sbrrt_fast.data.formats.hub_dataset import DatasetTable
from sbrrt_fast.data.formats.open_table import open_table
from sbrrt_fast.data.formats.table import BadRow
from sbrrt_fast.data.reader import column_problem, nothing
from sbrrt_fast.data.sources import (
    Source,
    check_sources,
    missing_file,
    portable_task,
)
from sbrrt_fast.data.splits import SplitRows
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.task_rules import validate_task
from sbrrt_fast.data.token_cache.cache import TokenCache
from sbrrt_fast.errors import DataError
from sbrrt_fast.messages import shown

# What a column of classes hardly has more of: labels, and characters in all of them.
_MOST_FOUND, _MOST_CHARACTERS = 1000, 50_000
_ROWS_PER_TICK = 4096


def complete_tasks(
    tasks: Mapping[str, TaskConfig],
    data_dir: str | Path | None,
    log: Callable[[str], object] = print,
    cache: TokenCache | None = None,
    tick: Callable[[], object] = nothing,
) -> dict[str, TaskConfig]:
    """The tasks with ``labels``, ``num_classes`` and ``class_weights`` as the training rows have
    them, where the records leave them open, and with absolute paths for ``~``.

    ``log`` hears of what was found.

    Args:
        cache: where it is noted what was found, so that the files need not be read again for it.
        tick: called every few thousand rows.

    Raises:
        ConfigError: it is not plain which rows are meant (``sources.check_sources``).
        DataError: the files cannot be read, or their labels are not those of classes.
        OutputError: the cache cannot be written, and is required.
    """
    check_sources(tasks, data_dir)
    tasks = {name: portable_task(task) for name, task in tasks.items()}
    rows = {name: _rows_to_look_at(name, t, data_dir, tick) for name, t in tasks.items()}
    return {name: _complete(one, log, cache) for name, one in rows.items()}


def _rows_to_look_at(
    name: str, task: TaskConfig, data_dir: str | Path | None, tick: Callable[[], object]
) -> SplitRows:
    """The training rows; of a task that is only evaluated the dev rows, and no class weights."""
    if task.train:
        return SplitRows(name, task, "train", data_dir, tick)
    return SplitRows(name, replace(task, class_weights=None), "dev", data_dir, tick)


def _complete(
    rows: SplitRows, log: Callable[[str], object], cache: TokenCache | None
) -> TaskConfig:
    task = rows.task
    if task.labels and task.head == "classes":
        task = replace(task, num_classes=len(task.labels))
    if _lacks_labels(task) or task.class_weights == "balanced":
        rows = replace(rows, task=task)
        is_kept = cache is not None and cache.takes(rows)
        found = cache.found(rows, lambda: _found(rows), log) if is_kept else _found(rows)
        weights = found["class_weights"]
        task = replace(
            task,
            labels=tuple(found["labels"]),
            num_classes=found["num_classes"],
            class_weights=weights and tuple(weights),
        )
        for line in found["lines"]:
            log(line)
    validate_task(rows.name, task)
    return task


def _found(rows: SplitRows) -> dict[str, Any]:
    """What the training rows say of a task, as JSON values, and lines that tell it."""
    name, task, lines = rows.name, rows.task, []
    if _lacks_labels(task):
        task = _find_labels(rows)
        if task != rows.task:
            where = "training" if task.train else "dev"
            lines.append(f"{name}: {_classes(task)}, as found in the {where} rows")
    weights = task.class_weights
    if weights == "balanced":
        weights = _balanced(replace(rows, task=task))
        lines.append(f"{name}: class weights {', '.join(f'{w:.3g}' for w in weights)}")
    return {
        "labels": list(task.labels),
        "num_classes": task.num_classes,
        "class_weights": weights and list(weights),
        "lines": lines,
    }


def _lacks_labels(task: TaskConfig) -> bool:
    return not task.labels and not task.is_regression


def _classes(task: TaskConfig) -> str:
    if not task.labels:
        return f"{task.num_classes} classes, numbered from 0"
    names = shown(", ".join(f"'{label}'" for label in task.labels), 300)
    if task.head == "binary":
        return f"classes {names} (negative, positive)"
    return f"{len(task.labels)} classes, {names}"


def _find_labels(rows: SplitRows) -> TaskConfig:
    """The task with the labels in the files of its rows, of which none is left out.

    Where the number of classes is known, and the first label is a number, labels are those from 0.
    """
    name, task = rows.name, rows.task
    counts, column = Counter[str](), task.label_column
    for source in rows.sources:
        try:
            with open_table(source, task, rows.files_of, name) as table:
                if table.columns.count(column) != 1:
                    raise DataError(column_problem(table, column, f"tasks.{name}.label_column"))
                if isinstance(table, DatasetTable) and (names := table.class_names(column)):
                    return _with_labels(name, task, source, names)
                for number, (_, cells) in enumerate(table.rows([column])):
                    _count(counts, cells, column)
                    if task.num_labels and len(counts) == 1 and is_number(next(iter(counts))):
                        return task
                    if len(counts) > _MOST_FOUND:
                        raise DataError(_too_many(table.header, task, name))
                    if number % _ROWS_PER_TICK == 0:
                        rows.tick()
        except FileNotFoundError:
            raise DataError(missing_file(source, task, name)) from None
    return _with_labels(name, task, rows.sources[0], _in_order(counts))


def _count(counts: Counter[str], cells: object, column: str) -> None:
    """Counts the label of a row; what cannot be used is left to the reader."""
    if isinstance(cells, list):
        try:
            counts[as_class(label_text(cells[0], column))] += 1
        except BadRow:
            return


def _with_labels(name: str, task: TaskConfig, source: Source, labels: Sequence[str]) -> TaskConfig:
    if not labels:
        column = f"{task.label_column}' (tasks.{name}.label_column)"
        raise DataError(f"{source}: no row has a label in column '{column}")
    if sum(map(len, labels)) > _MOST_CHARACTERS:
        longest = shown(max(labels, key=len), 40)
        raise DataError(
            f"{source}: labels as long as '{longest}'; is column '{task.label_column}' the one of "
            f"the labels (tasks.{name}.label_column)?"
        )
    expected = task.num_labels or max(len(labels), 2)
    if len(labels) != expected:
        raise DataError(
            f"{source}: {len(labels)} different labels ({_named(labels)}) for task '{name}' with "
            f"{expected} classes; correct them, or list the classes in tasks.{name}.labels"
        )
    is_counted = list(labels) == [str(number) for number in range(len(labels))]
    num_classes = len(labels) if task.head == "classes" else 0
    return replace(task, labels=() if is_counted else tuple(labels), num_classes=num_classes)


def _in_order(counts: Counter[str]) -> list[str]:
    """Numbers by size, words by their characters."""
    if all(map(is_number, counts)):
        return sorted(counts, key=float)
    return sorted(counts)


def _balanced(rows: SplitRows) -> tuple[float, ...]:
    """``n / (k * n_c)`` per class; DataError where a class has no training row."""
    name, task, stream = rows.name, rows.task, rows.stream()
    counts = Counter(int(example.label) for example in stream)
    absent = [str(task.label_name(c)) for c in range(task.num_labels) if not counts[c]]
    if absent:
        raise DataError(
            f"{stream.report.name}: no training row of task '{name}' has the label "
            f"{_named(absent)}, so there is no balanced weight for it; list "
            f"tasks.{name}.class_weights"
        )
    return tuple(counts.total() / (task.num_labels * counts[c]) for c in range(task.num_labels))


def _too_many(place: str, task: TaskConfig, name: str) -> str:
    return (
        f"{place}: more than {_MOST_FOUND:,} different labels in column '{task.label_column}'; is "
        f"it one of values (tasks.{name}.head: regression)? If it is one of classes, list them in "
        f"tasks.{name}.labels"
    )


def _named(labels: Sequence[str]) -> str:
    return shown(", ".join(f"'{label}'" for label in labels), 200)
