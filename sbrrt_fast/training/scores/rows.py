"""A scored split as JSON lines, a row each: for reports, and to read a model's mistakes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch import Tensor

from sbrrt_fast.files import make_folder, replacing
from sbrrt_fast.training.run_folder import note_predictions
from sbrrt_fast.training.scores.scored import ScoredTask

FOLDER = "evaluation"  # in the folder of a run

# What some readers take for the end of a line; JSON escapes the others itself.
_LINE_ENDS = {ord(c): f"\\u{ord(c):04x}" for c in "\x85\u2028\u2029"}


def rows_file(folder: Path, split: str, task: str) -> Path:
    """Where a split's rows are, below a run's ``evaluation`` or another folder."""
    return folder / f"{split}-{task}.jsonl"


def write_run_rows(run: Path, scored: Iterable[ScoredTask]) -> list[Path]:
    """Writes the rows of some tasks into a run's folder, in the order of their files.

    Raises:
        OutputError: a file cannot be written; what was there before is unchanged.
    """
    paths = []
    for one in scored:
        make_folder(run / FOLDER)
        paths.append(rows_file(run / FOLDER, one.task.split, one.task.name))
        write_rows(paths[-1], one)
        note_predictions(run, paths[-1])
    return paths


def write_errors(folder: Path, scored: Iterable[ScoredTask]) -> list[Path]:
    """Writes each task's wrong rows, those of the highest loss first.

    Where values are predicted, these are all rows but those that are met exactly.

    Raises:
        OutputError: a file cannot be written; what was there before is unchanged.
    """
    make_folder(folder)
    paths = []
    for one in scored:
        paths.append(rows_file(folder, one.task.split, one.task.name))
        write_rows(paths[-1], one, one.order_of_errors)
    return paths


def write_rows(path: Path, scored: ScoredTask, order: Tensor | None = None) -> None:
    """Writes the rows numbered ``order`` (all if None), an object per line; see ``row_records``."""
    records = row_records(scored, order)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
            file.write(line.translate(_LINE_ENDS) + "\n")


def row_records(scored: ScoredTask, order: Tensor | None = None) -> Iterator[dict]:
    """A row as plain values: ``{"id", "texts", "label", "prediction", "probabilities", "loss",
    "num_tokens"}``.

    Labels and predictions are the user's own: names of classes where there are any, else numbers.
    ``probabilities`` are those of the classes in order, None where values are predicted; ``loss``
    is that of ``ScoredTask.losses``.
    """
    task, config = scored.task, scored.config
    assert task.texts is not None, f"task '{task.name}' was loaded without its texts"
    order = np.arange(scored.num_examples) if order is None else order.numpy()
    labels, predictions = scored.labels.numpy(), scored.predictions.numpy()
    losses, num_tokens = scored.losses.numpy(), scored.num_tokens.numpy()
    probabilities = scored.probabilities
    for i in order.tolist():
        row = None if probabilities is None else probabilities[i].numpy()
        yield {
            "id": task.ids[i],
            "texts": list(task.texts[i]),
            "label": config.label_name(_shortest(labels[i])),
            "prediction": config.label_name(_shortest(predictions[i])),
            "probabilities": None if row is None else [_shortest(p) for p in row],
            "loss": float(f"{losses[i]:.7g}"),
            "num_tokens": int(num_tokens[i]),
        }


def _shortest(value: np.float32) -> float:
    """The float of fewest decimals that gives back a float32."""
    return float(str(value))
