"""The arguments of ``sbrrt-fast predict``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from sbrrt_fast.commands.trained_run import RunArguments
from sbrrt_fast.data.task import Split


@dataclass(frozen=True)
class PredictArguments(RunArguments):
    """Write a trained run's predictions.

    Without --input they go to RUN/predictions, a file per task and split. With it they are those of
    one task for the input's rows, in the input's format: of raw text a line per row (two texts of a
    pair have a tab between them), of tables an id and a prediction per row.

    Attributes:
        split: which files to predict; those that are not there are passed over.
        input: a file of texts, CSV, TSV or JSON lines, or - for standard input.
        task: the task to predict with; may be left out where the model has one.
        output: where predictions for --input go; - is standard output.
        format: of the input; by the file's ending, text for standard input, if not given.
        probabilities: also write the probability of each class.
        skip_bad_rows: leave out rows of a table that cannot be used, and count them.
    """

    split: tuple[Split, ...] = ("dev", "test")
    input: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: the task files)")
    ] = None
    task: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    output: Annotated[Path, arg(metavar="FILE")] = Path("-")
    format: Annotated[
        Literal["text", "tsv", "csv", "jsonl"] | None,
        arg(metavar="{text,tsv,csv,jsonl}", help_behavior_hint=""),
    ] = None
    probabilities: bool = False
    skip_bad_rows: bool = False
