"""``sbrrt-fast evaluate``: the scores of a trained run on one split."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.commands.trained_run import RunArguments, TrainedRun, open_run, write_atomically
from sbrrt_fast.data.task import Split
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.training.evaluate import evaluate

EXPOSURE = (
    "MiniLM saw Quora's duplicate pairs in its own training: this para score does not compare with "
    "that of an encoder which did not"
)


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
    scores = evaluate(run.model, tasks, **run.options)
    num_examples = {name: task.num_examples for name, task in tasks.items()}
    print(_heading(arguments, run))
    print(_table(scores, num_examples))
    if _is_exposed(run):
        print(EXPOSURE)
    if arguments.output is not None:
        record = _record(arguments, run, scores, num_examples)
        write_atomically(arguments.output, json.dumps(record, indent=2) + "\n")
    return 0


def _heading(arguments: EvaluateArguments, run: TrainedRun) -> str:
    return (
        f"{arguments.split} scores of the {arguments.model} model of {arguments.run} on "
        f"{run.data}, {run.config.precision}"
    )


def _table(scores: dict, num_examples: dict[str, int]) -> str:
    """A row per task, and the overall score."""
    rows = [("task", "metric", "score", "rows")]
    for name, count in num_examples.items():
        rows += [(name, metric, f"{v:.4f}", f"{count:,}") for metric, v in scores[name].items()]
    rows.append(("overall", "", f"{scores['overall']:.4f}", ""))
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        f"  {a:<{wide[0]}}  {b:<{wide[1]}}  {c:>{wide[2]}}  {d:>{wide[3]}}".rstrip()
        for a, b, c, d in rows
    )


def _is_exposed(run: TrainedRun) -> bool:
    """Whether the encoder may have seen the rows of ``para`` before."""
    is_minilm = "minilm" in run.config.model.backbone.lower()
    return is_minilm and "para" in run.config.tasks and run.config.data_dir is not None


def _record(
    arguments: EvaluateArguments, run: TrainedRun, scores: dict, num_examples: dict[str, int]
) -> dict:
    """What ``--output`` writes; the scores are under the split's name as in ``metrics.json``."""
    return {
        arguments.split: scores,
        "num_examples": num_examples,
        "run": str(arguments.run),
        "model": arguments.model,
        "data_dir": None if run.config.data_dir is None else str(run.config.data_dir),
        "precision": run.config.precision,
        "layout": run.config.layout,
    }
