"""Where the rows of a task are: in files, a dataset, or the built-in sample."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sbrrt_fast.data.formats.hub_dataset import DatasetSplit
from sbrrt_fast.data.sample import sample_dir
from sbrrt_fast.data.task import BUILTIN_TASKS, Split, TaskConfig
from sbrrt_fast.data.task_rules import share_of
from sbrrt_fast.errors import ConfigError, DataError
from sbrrt_fast.messages import shown

Source = Path | DatasetSplit

_SAMPLE_FILES = {file for task in BUILTIN_TASKS.values() for file in task.files.values()}


def split_sources(
    name: str, task: TaskConfig, split: Split, data_dir: str | Path | None
) -> tuple[Source, ...]:
    """The files of a split, or the dataset's split, in order; files need not be there.

    Args:
        data_dir: folder of relative files; where it is None, that of the built-in sample.

    Raises:
        DataError: the task names no file for the split.
        ConfigError: there is no folder for a relative file.
    """
    if split not in task.files:
        raise DataError(
            f"task '{name}' has no {split} split; name its file in tasks.{name}.files.{split}"
        )
    assert share_of(task.files[split]) is None, "a share has no file of its own"
    files = _as_tuple(task.files[split])
    if task.dataset:
        dataset = _dataset(task.dataset, data_dir)
        return tuple(DatasetSplit(dataset, task.dataset_config, file) for file in files)
    if data_dir is None:
        _check_absolute(name, task)
    folder = sample_dir() if data_dir is None and has_sample(task) else expanded(data_dir or "/")
    return tuple(path for file in files for path in _matching(folder / expanded(file)))


def missing_files(
    name: str, task: TaskConfig, split: Split, data_dir: str | Path | None
) -> list[Path]:
    """Which of a split's files are not there; raises like ``split_sources``."""
    files = split if share_of(task.files[split]) is None else "train"
    sources = split_sources(name, task, files, data_dir)
    return [s for s in sources if isinstance(s, Path) and not os.path.exists(s)]


def expanded(path: str | Path) -> Path:
    """The path with a home directory for ``~``, where there is such a user."""
    return Path(os.path.expanduser(path))


def portable_task(task: TaskConfig) -> TaskConfig:
    """The task with absolute paths for ``~`` and for the folder of a dataset."""
    if task.dataset:
        is_path = task.dataset.startswith(("~", "./", "../"))
        return replace(task, dataset=_dataset(task.dataset, None)) if is_path else task
    if not any(file.startswith("~") for file in _all_files(task)):
        return task
    files = {
        split: _expanded(files) if isinstance(files, str) else tuple(map(_expanded, files))
        for split, files in task.files.items()
    }
    return replace(task, files=files)


def _expanded(file: str) -> str:
    return str(expanded(file)) if file.startswith("~") else file


def has_sample(task: TaskConfig) -> bool:
    """Whether all files of a task are also in the built-in sample."""
    return not task.dataset and set(_all_files(task)) <= _SAMPLE_FILES


def uses_sample(tasks: Mapping[str, TaskConfig], data_dir: str | Path | None) -> bool:
    """Whether the rows are those of the built-in sample, which is made up."""
    return data_dir is None and all(map(has_sample, tasks.values()))


def check_sources(tasks: Mapping[str, TaskConfig], data_dir: str | Path | None) -> None:
    """Raises ConfigError where it would not be plain which rows are used.

    That is where a relative file has no folder, where some tasks would take the made-up sample and
    others real rows, and where ``data_dir`` is given and no file is in it.
    """
    relative = [(name, f) for name, task in tasks.items() for f in _relative_files(task)]
    if data_dir is not None:
        if not relative and not any(_is_dataset_in(task, data_dir) for task in tasks.values()):
            raise ConfigError(
                f"data_dir: {data_dir} is given, but nothing is read from there: the files of "
                f"{_named(tasks)} are absolute paths or in datasets; leave it out, or name the "
                "files relative to it"
            )
        return
    for name, _ in relative:
        _check_absolute(name, tasks[name])
        if not uses_sample(tasks, None):
            raise ConfigError(
                f"tasks.{name}: without --data-dir it would be trained on the built-in sample, "
                "which is made up, beside tasks that have data of your own; name the folder of its "
                f"files with --data-dir, or leave '{name}' out"
            )


def _check_absolute(name: str, task: TaskConfig) -> None:
    """Raises ConfigError for a relative file that is not in the built-in sample."""
    for setting, file in () if has_sample(task) else _relative_files(task):
        raise ConfigError(
            f"tasks.{name}.{setting}: '{shown(file)}' is a relative path; name the folder of the "
            "task files with --data-dir (data_dir in YAML), or write an absolute path"
        )


def describe_data(tasks: Mapping[str, TaskConfig], data_dir: str | Path | None) -> str:
    """Where the rows come from, for headings; empty for the built-in sample.

    Raises:
        ConfigError: it is not plain (``check_sources``).
    """
    check_sources(tasks, data_dir)
    if uses_sample(tasks, data_dir):
        return ""
    places = [] if data_dir is None else [str(expanded(data_dir))]
    for name, task in tasks.items():
        if task.dataset:
            config = f" ({task.dataset_config})" if task.dataset_config else ""
            places.append(f"the dataset {_dataset(task.dataset, data_dir)}{config} for {name}")
        else:
            folders = {str(expanded(f).parent) for f in _all_files(task) if _is_absolute(f)}
            places += [f"{folder} for {name}" for folder in sorted(folders)]
    return "; ".join(places)


def missing_file(path: Source, task: TaskConfig, name: str) -> str:
    """What to say where a file is not there."""
    folder = os.path.dirname(path) or os.curdir
    problem = "no such file" if os.path.isdir(folder) else f"there is no folder {folder}"
    if "*" in str(path):
        problem = "no file fits"
    files = ", ".join(_all_files(task))
    if any(_is_absolute(file) and expanded(file) == path for file in _all_files(task)):
        advice = f"This is an absolute path: correct it in tasks.{name}.files"
    else:
        advice = "Say where they are with --data-dir"
        if has_sample(task):
            advice += ", or leave --data-dir out to use the built-in sample"
    return f"{path}: {problem}; task '{name}' reads {files}. {advice}"


def _all_files(task: TaskConfig) -> list[str]:
    """Every file that the task names; a share of the training rows is none."""
    splits = [files for files in task.files.values() if share_of(files) is None]
    return [file for files in splits for file in _as_tuple(files)]


def _relative_files(task: TaskConfig) -> list[tuple[str, str]]:
    """(setting, file) of files below the data directory."""
    if task.dataset:
        return []
    return [
        (f"files.{split}", file)
        for split, files in task.files.items()
        if share_of(files) is None
        for file in _as_tuple(files)
        if not _is_absolute(file)
    ]


def _is_absolute(file: str) -> bool:
    return expanded(file).is_absolute()


def _as_tuple(files: str | tuple[str, ...]) -> tuple[str, ...]:
    return (files,) if isinstance(files, str) else tuple(files)


def _matching(path: Path) -> list[Path]:
    """The path, or the files that fit it where it has a ``*`` and is no file itself, in order."""
    if "*" not in str(path) or os.path.exists(path):
        return [path]
    pattern = str(path).replace("[", "[[]").replace("?", "[?]")
    return sorted(map(Path, glob.glob(pattern))) or [path]


def _dataset(dataset: str, data_dir: str | Path | None) -> str:
    """An absolute folder where one is meant, else a name on the hub."""
    if dataset.startswith(("~", "/", "./", "../")):
        return str(expanded(dataset).absolute())
    if data_dir is not None and (folder := expanded(data_dir) / dataset).is_dir():
        return str(folder.absolute())
    return dataset


def _is_dataset_in(task: TaskConfig, data_dir: str | Path) -> bool:
    folder = str(expanded(data_dir).absolute())
    return bool(task.dataset) and _dataset(task.dataset, data_dir).startswith(f"{folder}/")


def _named(tasks: Mapping[str, TaskConfig]) -> str:
    return shown(", ".join(f"'{name}'" for name in tasks), 200)
