"""``sbrrt-fast predict``: for task files in the format of the CS 224N course, or for texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.commands.predict_arguments import PredictArguments
from sbrrt_fast.commands.trained_run import TrainedRun, join_ranks, open_run
from sbrrt_fast.data.reader import ReadReport
from sbrrt_fast.data.sources import missing_files
from sbrrt_fast.data.task import Split, TaskConfig
from sbrrt_fast.errors import ConfigError, DataError
from sbrrt_fast.files import make_folder, write_text
from sbrrt_fast.messages import printable, shown
from sbrrt_fast.training.ranks.agreement import from_first
from sbrrt_fast.training.ranks.ranks import Ranks, first_alone
from sbrrt_fast.training.run_folder import note_predictions
from sbrrt_fast.training.scores.evaluate import predict

FOLDER = "predictions"


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(PredictArguments, argv, "sbrrt-fast predict")
    _check_together(arguments)
    if arguments.input is not None:
        from sbrrt_fast.commands.predict_texts import predict_texts

        ranks = join_ranks(arguments)
        with ranks.watched():
            return predict_texts(arguments.input, arguments, ranks)
    if not arguments.split:
        raise ConfigError("--split: name at least one of train, dev and test")
    ranks = join_ranks(arguments)
    with ranks.watched():
        return _predict_files(arguments, ranks)


def _check_together(arguments: PredictArguments) -> None:
    """Raises ConfigError where flags are given that do nothing together."""
    is_given = {f.name: getattr(arguments, f.name) != f.default for f in fields(arguments)}
    if arguments.input is None:
        names, reason = _OF_TEXTS, "goes with --input FILE"
    else:
        names, reason = ("split", "data_dir"), "names task files; leave it out with --input"
    for name in names:
        if is_given[name]:
            raise ConfigError(f"--{name.replace('_', '-')}: {reason}")


_OF_TEXTS = ("task", "output", "format", "probabilities", "skip_bad_rows")


def _predict_files(arguments: PredictArguments, ranks: Ranks) -> int:
    run = open_run(arguments, ranks)
    with ranks.together("naming the prediction files"):
        files = prediction_files(run.config.tasks, arguments.split)
    run.say(
        f"predictions of the {arguments.model} model of {printable(arguments.run)} on "
        f"{printable(run.data)}"
    )
    reports = _write_all(run, files, arguments.run / FOLDER)
    with ranks.together("looking for files"):
        if not reports:
            raise DataError(
                f"{run.data}: nothing to predict, no task has a file there and a prediction_file; "
                "name the folder of the task files with --data-dir"
            )
    return _report_skipped_rows(reports) if ranks.is_first else 0


def _write_all(
    run: TrainedRun, files: dict[tuple[str, Split], str], folder: Path
) -> dict[Path, ReadReport]:
    """Writes the files of the splits that are there; returns how each was read."""
    reports = {}
    for (name, split), file in files.items():
        why = partial(_why_passed_over, run, name, split)
        if reason := from_first(run.ranks, "looking for files", why):
            run.say(f"{name} {split}: passed over, {printable(reason)}")
            continue
        path = folder / file
        reports[path] = _write(run, name, split, path)
        run.say(f"{printable(path)}: {reports[path].num_rows:,} rows")
    return reports


def _report_skipped_rows(reports: dict[Path, ReadReport]) -> int:
    """Says last, on stderr, which prediction files lack rows; returns the exit status."""
    sys.stdout.flush()  # so that it is last where both go to one file
    lacking = {path: report for path, report in reports.items() if report.num_skipped}
    for path, report in lacking.items():
        rows = "1 row" if report.num_skipped == 1 else f"{report.num_skipped:,} rows"
        line = (
            f"sbrrt-fast predict: {path}: lacks {rows} that could not be used, the first is "
            f"{report.first_skipped}; correct the file and predict again"
        )
        print(printable(line), file=sys.stderr)
    return int(bool(lacking))


def prediction_files(
    tasks: dict[str, TaskConfig], splits: Sequence[Split]
) -> dict[tuple[str, Split], str]:
    """File name by task and split; empty for a task without ``prediction_file``.

    Raises:
        ConfigError: a name has a folder in it, or two predictions have the same name, apart from
            case: some file systems do not tell it apart.
    """
    files: dict[tuple[str, Split], str] = {}
    taken: set[str] = set()
    for split in dict.fromkeys(splits):
        for name, task in tasks.items():
            file = task.prediction_file.replace("{split}", split)
            where = f"tasks.{name}.prediction_file: '{shown(task.prediction_file)}'"
            if Path(file).name != file or file == "..":
                raise ConfigError(f"{where} must be the name of a file, without a folder")
            if file and file.casefold() in taken:
                raise ConfigError(
                    f"{where} is also another prediction's file; use a name per task, with "
                    "'{split}' in it, that differs not only in case"
                )
            taken.add(file.casefold())
            files[name, split] = file
    return files


def format_predictions(task: TaskConfig, ids: Sequence[str], values: Tensor) -> str:
    """The text of a prediction file: the task's header, then ``ID , VALUE `` per row.

    As in the course's own files, classes are whole numbers and binary values ``0.0`` and ``1.0``,
    unless classes have names (``task.labels``); other values are the shortest decimals that give
    back the float32.

    Args:
        ids: row ids in the order of the file.
        values: float32 [num_examples], see ``model.heads.predictions``.
    """
    if task.head == "classes":
        values = values.to(torch.int64)
    header = [f"{task.prediction_header}\n"] if task.prediction_header else []
    texts = [str(task.label_name(v) if task.labels else v) for v in values.numpy()]
    rows = [f"{id} , {text} \n" for id, text in zip(ids, texts, strict=True)]
    return "".join(header + rows)


def _why_passed_over(run: TrainedRun, name: str, split: Split) -> str | None:
    task = run.config.tasks[name]
    if not task.prediction_file:
        return f"it has no prediction file (tasks.{name}.prediction_file)"
    if split not in task.files:
        return f"it has no {split} file (tasks.{name}.files.{split})"
    missing = missing_files(name, task, split, run.config.data_dir)
    return f"{missing[0]} is not there" if missing else None


def _write(run: TrainedRun, name: str, split: Split, path: Path) -> ReadReport:
    """Predicts one split and writes its file; returns how the split was read."""
    task = run.load(split, [name])[name]
    values = predict(run.model, task, **run.options)
    with first_alone(run.ranks, "writing predictions") as is_first, run.ranks.patient():
        if is_first:
            make_folder(path.parent)
            write_text(path, format_predictions(task.config, task.ids, values))
            note_predictions(path.parents[1], path)
    return task.report
