"""What a task's record leaves to be found in its training rows: the classes and their weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sbrrt_fast.data.cells import as_class, is_number, label_text
from sbrrt_fast.data.formats.hub_dataset import DatasetTable
from sbrrt_fast.data.formats.open_table import open_table
from sbrrt_fast.data.formats.table import BadRow
from sbrrt_fast.data.reader import column_problem
from sbrrt_fast.data.sources import (
    Source,
    check_sources,
    missing_file,
    portable_task,
    split_sources,
)
from sbrrt_fast.data.splits import read_examples
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.data.task_rules import validate_task
from sbrrt_fast.errors import DataError
from sbrrt_fast.messages import shown

# What a column of classes hardly has more of: labels, and characters in all of them.
_MOST_FOUND, _MOST_CHARACTERS = 1000, 50_000


def complete_tasks(
    tasks: Mapping[str, TaskConfig],
    data_dir: str | Path | None,
    log: Callable[[str], object] = print,
) -> dict[str, TaskConfig]:
    """The tasks with ``labels``, ``num_classes`` and ``class_weights`` as the training rows have
    them, where the records leave them open, and with absolute paths for ``~``.

    ``log`` hears of what was found.

    Raises:
        ConfigError: it is not plain which rows are meant (``sources.check_sources``).
        DataError: the files cannot be read, or their labels are not those of classes.
    """
    check_sources(tasks, data_dir)
    tasks = {name: portable_task(task) for name, task in tasks.items()}
    return {name: _complete(name, task, data_dir, log) for name, task in tasks.items()}


def _complete(
    name: str, task: TaskConfig, data_dir: str | Path | None, log: Callable[[str], object]
) -> TaskConfig:
    if task.labels and task.head == "classes":
        task = replace(task, num_classes=len(task.labels))
    elif not task.labels and not task.is_regression:
        found = _find_labels(name, task, split_sources(name, task, "train", data_dir))
        if found != task:
            task = found
            log(f"{name}: {_classes(task)}, as found in the training rows")
    if task.class_weights == "balanced":
        task = replace(task, class_weights=_balanced(name, task, data_dir))
        log(f"{name}: class weights {', '.join(f'{w:.3g}' for w in task.class_weights)}")
    validate_task(name, task)
    return task


def _classes(task: TaskConfig) -> str:
    if not task.labels:
        return f"{task.num_classes} classes, numbered from 0"
    names = shown(", ".join(f"'{label}'" for label in task.labels), 300)
    if task.head == "binary":
        return f"classes {names} (negative, positive)"
    return f"{len(task.labels)} classes, {names}"


def _find_labels(name: str, task: TaskConfig, sources: tuple[Source, ...]) -> TaskConfig:
    """The task with the labels in its training files, of which none is left out.

    Where the number of classes is known, and the first label is a number, labels are those from 0.
    """
    counts, column = Counter[str](), task.label_column
    for source in sources:
        try:
            with open_table(source, task, "train", name) as table:
                if table.columns.count(column) != 1:
                    raise DataError(column_problem(table, column, f"tasks.{name}.label_column"))
                if isinstance(table, DatasetTable) and (names := table.class_names(column)):
                    return _with_labels(name, task, source, names)
                for _, cells in table.rows([column]):
                    _count(counts, cells, column)
                    if task.num_labels and len(counts) == 1 and is_number(next(iter(counts))):
                        return task
                    if len(counts) > _MOST_FOUND:
                        raise DataError(_too_many(table.header, task, name))
        except FileNotFoundError:
            raise DataError(missing_file(source, task, name)) from None
    return _with_labels(name, task, sources[0], _in_order(counts))


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


def _balanced(name: str, task: TaskConfig, data_dir: str | Path | None) -> tuple[float, ...]:
    """``n / (k * n_c)`` per class; DataError where a class has no training row."""
    examples, report = read_examples(name, task, "train", data_dir)
    counts = Counter(int(example.label) for example in examples)
    absent = [str(task.label_name(c)) for c in range(task.num_labels) if not counts[c]]
    if absent:
        raise DataError(
            f"{report.name}: no training row of task '{name}' has the label {_named(absent)}, so "
            f"there is no balanced weight for it; list tasks.{name}.class_weights"
        )
    return tuple(len(examples) / (task.num_labels * counts[c]) for c in range(task.num_labels))


def _too_many(place: str, task: TaskConfig, name: str) -> str:
    return (
        f"{place}: more than {_MOST_FOUND:,} different labels in column '{task.label_column}'; is "
        f"it one of values (tasks.{name}.head: regression)? If it is one of classes, list them in "
        f"tasks.{name}.labels"
    )


def _named(labels: Sequence[str]) -> str:
    return shown(", ".join(f"'{label}'" for label in labels), 200)
