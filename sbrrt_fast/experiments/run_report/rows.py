"""What a model said of every row of a split, from ``RUN/evaluation/<split>-<task>.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sbrrt_fast.data.task import SPLITS
from sbrrt_fast.errors import DataError

FOLDER = "evaluation"
_KEYS = {"id", "texts", "label", "prediction", "loss", "num_tokens"}
Value = str | float | int  # a label or a prediction, as the user writes it


@dataclass(frozen=True)
class EvaluatedRow:
    """One row of a split and what the model said of it.

    Attributes:
        label, prediction: the class's name or number, or a value in the label's unit.
        probability: the model's, of its own prediction; None for values.
        loss: the row's own, in the units of training.
        num_tokens: as the model read it, both texts of a pair together.
    """

    id: str
    texts: tuple[str, ...]
    label: Value
    prediction: Value
    probability: float | None
    loss: float
    num_tokens: int

    @property
    def is_wrong(self) -> bool:
        return self.label != self.prediction


def evaluation_files(run: Path, tasks: Iterable[str]) -> dict[tuple[str, str], Path]:
    """The files of rows in a run's folder, by task and split; dev comes first."""
    order = sorted(SPLITS, key="dev test train".index)
    paths = {(t, s): run / FOLDER / f"{s}-{t}.jsonl" for t in tasks for s in order}
    return {key: path for key, path in paths.items() if path.is_file()}


def read_rows(path: Path) -> list[EvaluatedRow]:
    """The rows of a file that have a label.

    Raises:
        DataError: a line is not what an evaluation writes; or the file cannot be read.
    """
    rows = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                rows.append(_parse(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {_AGAIN}") from None
    return [row for row in rows if row.label is not None]


_AGAIN = "write it again with `sbrrt-fast evaluate RUN`"


def _parse(line: str, where: str) -> EvaluatedRow:
    try:
        return _row(json.loads(line))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise DataError(f"{where}: is no row of an evaluation ({reason}); {_AGAIN}") from None


def _row(record: Any) -> EvaluatedRow:
    if not isinstance(record, dict):
        raise ValueError("expected an object")
    for name in sorted(_KEYS - record.keys()):
        raise KeyError(name)
    texts = record["texts"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("'texts' must be a list of texts")
    probabilities = record.get("probabilities")
    return EvaluatedRow(
        id=str(record["id"]),
        texts=tuple(texts),
        label=_value(record["label"], "label"),
        prediction=_value(record["prediction"], "prediction"),
        probability=None if probabilities is None else float(max(probabilities)),
        loss=math.nan if record["loss"] is None else float(record["loss"]),
        num_tokens=int(record["num_tokens"]),
    )


def _value(value: Any, name: str) -> Value:
    """Whole numbers as integers, so that class 1 is the same class however it was written."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None and name == "label":
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"'{name}' must be a text or a number")
    return value
