"""``sbrrt-fast predict RUN --input``: predictions for texts that belong to no task's files."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

import numpy as np
from tqdm import tqdm

from sbrrt_fast.api import Label, Prediction, TaskModel, load
from sbrrt_fast.commands.predict_arguments import PredictArguments
from sbrrt_fast.data.inputs import STDIN, STDIN_NAME, Inputs, open_inputs
from sbrrt_fast.data.task import Example
from sbrrt_fast.data.texts import Text
from sbrrt_fast.errors import ConfigError, DataError
from sbrrt_fast.files import make_folder, replacing
from sbrrt_fast.messages import printable, shown
from sbrrt_fast.training.ranks.ranks import Ranks

PROG = "sbrrt-fast predict"
Write = Callable[[str, Prediction], object]  # a row's id, and what is predicted for it


def predict_texts(input: Path, arguments: PredictArguments, ranks: Ranks) -> int:
    """Writes a prediction per row of ``input``; returns the exit status, 1 if rows were left out.

    Messages go to stderr, since predictions may go to stdout. Of several ranks the first writes.

    Raises:
        SbrrtError: the run, the task or the input cannot be used; ``--output`` is as it was then.
    """
    with ranks.together("opening the input"):
        _check_input(input, ranks)
        _check_output(input, arguments.output)
    model = load(
        arguments.run,
        which=arguments.model,
        device=arguments.device,
        precision=arguments.precision,
        log=_say,
        ranks=ranks,
    )
    with contextlib.ExitStack() as files:
        with ranks.together("opening the input"):
            name = _task_of(model, arguments)
            inputs = files.enter_context(_inputs(input, arguments, model, name))
            file = files.enter_context(_opened(arguments.output, ranks))
        classes = model.classes(name) if arguments.probabilities else ()
        write = _writer(inputs.format, file, classes)
        num_sequences, num_truncated = _predict(model, name, inputs, write, ranks)
        with ranks.together("reading texts"):
            if inputs.num_rows == inputs.num_skipped:
                where = STDIN_NAME if input == STDIN else input
                raise DataError(f"{where}: there is no row to predict")
    if not ranks.is_first:
        return 0
    if num_truncated:
        _say(
            f"cut {num_truncated:,} of {num_sequences:,} sequences to {model.max_length} tokens "
            "(model.max_length, or the encoder's positions)"
        )
    return _report(arguments, inputs)


def _inputs(
    input: Path, arguments: PredictArguments, model: TaskModel, name: str
) -> AbstractContextManager[Inputs]:
    task = model.tasks[name]
    skips = arguments.skip_bad_rows or task.on_bad_row == "skip"
    return open_inputs(input, task, name, format=arguments.format, skips_bad_rows=skips)


def _predict(
    model: TaskModel, name: str, inputs: Inputs, write: Write, ranks: Ranks
) -> tuple[int, int]:
    """Writes all rows; returns how many sequences they made, and how many of them were cut."""
    num_sequences = num_truncated = 0
    examples, again = itertools.tee(inputs)  # one is ahead of the other by a window at most
    with tqdm(unit=" rows", disable=None if ranks.is_first else True) as bar:
        for window in model.predict_windows(name, map(_text_of, examples)):
            for example, prediction in zip(
                itertools.islice(again, len(window)), window, strict=True
            ):
                write(example.id, prediction)
            num_sequences += window.num_sequences
            num_truncated += window.num_truncated
            bar.update(len(window))
    return num_sequences, num_truncated


def _text_of(example: Example) -> Text:
    return example.texts[0] if len(example.texts) == 1 else example.texts


def _task_of(model: TaskModel, arguments: PredictArguments) -> str:
    name = arguments.task
    if name is None and len(model.tasks) > 1:
        raise ConfigError(f"--task: name one of {shown(', '.join(model.tasks), 200)}")
    name = name or next(iter(model.tasks))
    if not model.classes(name) and arguments.probabilities:
        raise ConfigError(f"--probabilities: task '{name}' predicts values, which have none")
    return name


def _check_input(input: Path, ranks: Ranks) -> None:
    if input == STDIN and ranks.size > 1:
        raise ConfigError(
            f"--input -: {ranks.size} processes cannot share standard input; give a file, or run "
            "one process without torchrun"
        )


def _check_output(input: Path, output: Path) -> None:
    if STDIN in (output, input) or not (os.path.exists(output) and os.path.exists(input)):
        return
    if os.path.samefile(output, input):
        raise ConfigError(f"--output: {output} is the input; name another file")


@contextlib.contextmanager
def _opened(output: Path, ranks: Ranks) -> Iterator[TextIO]:
    """Standard output, or a file that is there as a whole or not at all; of the first rank alone.

    What the others write goes nowhere.
    """
    if not ranks.is_first:
        with open(os.devnull, "w", encoding="utf-8") as file:
            yield file
        return
    if output == STDIN:
        yield sys.stdout
        sys.stdout.flush()
        return
    make_folder(output.parent)
    with (
        replacing(output) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        yield file


def _report(arguments: PredictArguments, inputs: Inputs) -> int:
    num_written = inputs.num_rows - inputs.num_skipped
    if arguments.output != STDIN:
        _say(f"{arguments.output}: {num_written:,} rows")
    if inputs.num_skipped:
        rows = "1 row" if inputs.num_skipped == 1 else f"{inputs.num_skipped:,} rows"
        _say(f"{PROG}: left out {rows} that could not be used, the first is {inputs.first_skipped}")
    return int(inputs.num_skipped > 0)


def _say(line: str) -> None:
    print(printable(line), file=sys.stderr)


# What a row looks like


def _writer(format: str, file: TextIO, classes: tuple[Label, ...]) -> Write:
    """Writes rows in the input's format, JSON lines for Parquet.

    Args:
        classes: those whose probabilities are asked for, in their order.
    """
    if format == "text":
        return lambda id, row: file.write("\t".join(map(str, _cells(row, classes))) + "\n")
    if format in ("jsonl", "parquet"):
        return lambda id, row: file.write(_json(id, row, classes) + "\n")
    writer = csv.writer(file, delimiter=_SEPARATORS[format], lineterminator="\n")
    writer.writerow(["id", "prediction", *(f"probability_{label}" for label in classes)])
    return lambda id, row: writer.writerow([id, *_cells(row, classes)])


_SEPARATORS = {"tsv": "\t", "csv": ","}


def _json(id: str, row: Prediction, classes: tuple[Label, ...]) -> str:
    label, *probabilities = _cells(row, classes)
    record: dict[str, object] = {"id": id, "prediction": label}
    if classes:
        record["probabilities"] = dict(zip(map(str, classes), probabilities, strict=True))
    return json.dumps(record, ensure_ascii=False)


def _cells(row: Prediction, classes: tuple[Label, ...]) -> list[Label]:
    """The prediction, and the probabilities of the classes."""
    probabilities = row.probabilities or {}
    return [_short(row.label), *(_short(probabilities[label]) for label in classes)]


def _short(value: Label) -> Label:
    """A float32 as the float of the fewest digits that gives it back."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
