"""``sbrrt-fast evaluate``: the scores of a trained run on one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.commands.trained_run import RunArguments, TrainedRun, open_run
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Split
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.files import make_folder, write_json
from sbrrt_fast.messages import printable
from sbrrt_fast.training.scores.evaluate import evaluate
from sbrrt_fast.training.scores.table import exposure_note, score_table


@dataclass(frozen=True)
class EvaluateArguments(RunArguments):
    """Score a trained run on a split of each of its tasks and print a table.

    Attributes:
        split: which files to score; test files have no labels.
        output: also write the scores to this JSON file.
    """

    split: Split = "dev"
    output: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: writes nothing)")
    ] = None


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(EvaluateArguments, argv, "sbrrt-fast evaluate")
    if arguments.split == "test":
        raise ConfigError(
            "--split test: test files have no labels to score; use --split dev or train, or write "
            "predictions with `sbrrt-fast predict`"
        )
    run = open_run(arguments)
    tasks = run.load(arguments.split)
    if arguments.output is not None:
        make_folder(arguments.output.parent)
    scores = evaluate(run.model, tasks, **run.options)
    num_examples = {name: task.num_examples for name, task in tasks.items()}
    print(_heading(arguments, run))
    print(score_table(scores, num_examples))
    for name, task in tasks.items():
        if task.report.num_skipped:
            print(f"{name} is scored without some rows: {task.report.message()}")
    if note := exposure_note(run.config):
        print(note)
    if arguments.output is not None:
        write_json(arguments.output, _record(arguments, run, scores, tasks))
    return 0


def _heading(arguments: EvaluateArguments, run: TrainedRun) -> str:
    return printable(
        f"{arguments.split} scores of the {arguments.model} model of {arguments.run} on "
        f"{run.data}, {run.config.precision}"
    )


def _record(
    arguments: EvaluateArguments, run: TrainedRun, scores: dict, tasks: dict[str, TokenizedTask]
) -> dict:
    """The JSON of ``--output``; the scores are under the split's name as in ``metrics.json``."""
    return {
        arguments.split: scores,
        "num_examples": {name: task.num_examples for name, task in tasks.items()},
        "num_skipped": {name: task.report.num_skipped for name, task in tasks.items()},
        "run": str(arguments.run),
        "model": arguments.model,
        "data_dir": None if run.config.data_dir is None else str(run.config.data_dir),
        "precision": run.config.precision,
        "layout": run.config.layout,
    }
