"""``sbrrt-fast evaluate``: the scores of a trained run on one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from sbrrt_fast.commands.arguments import parse_arguments
from sbrrt_fast.commands.trained_run import RunArguments, TrainedRun, join_ranks, open_run
from sbrrt_fast.data.perturb import RATE, SEED, Perturbation
from sbrrt_fast.data.perturbed import Perturbing
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Metric, Split, TaskConfig, metrics_of
from sbrrt_fast.errors import ConfigError, DataError, OutputError
from sbrrt_fast.files import make_folder, write_json
from sbrrt_fast.messages import printable, shown
from sbrrt_fast.training.ranks.ranks import Ranks, first_alone
from sbrrt_fast.training.run_folder import BEST
from sbrrt_fast.training.scores.confusion import confusion_record, confusion_text
from sbrrt_fast.training.scores.evaluate import score_tasks
from sbrrt_fast.training.scores.intervals import intervals_of
from sbrrt_fast.training.scores.metrics import check_libraries
from sbrrt_fast.training.scores.perturbed import (
    PerturbedScores,
    perturbed_notes,
    perturbed_record,
    perturbed_table,
    score_perturbed,
)
from sbrrt_fast.training.scores.rows import FOLDER, write_errors, write_run_rows
from sbrrt_fast.training.scores.scored import ScoredTask, scores_of
from sbrrt_fast.training.scores.table import exposure_note, score_table, untrained_note


@dataclass(frozen=True)
class EvaluateArguments(RunArguments):
    """Score a trained run on a split of each of its tasks; print a table and confusion matrices.

    Every row of the best model, with its prediction, probabilities and loss, goes to
    RUN/evaluation, a file of JSON lines per task. Processes that torchrun starts share the rows
    out.

    Attributes:
        split: which files to score; tasks whose test file has no labels are passed over.
        metrics: further metrics than those of the run, each for the tasks whose heads it fits.
        output: also write the scores to this JSON file.
        perturb: also score the split with perturbed texts, labels as they are: by typos, in upper
            case, with marks lost or given, spaces lost or put into words, words lost or swapped.
        perturb_rate: the probability that a word, mark or gap is changed.
        perturb_seed: with a row's task, split and id it decides how the row is changed.
        errors: also write the rows that are wrong to this folder, the worst first.
        rows: write RUN/evaluation.
    """

    split: Split = "dev"
    metrics: tuple[Metric, ...] = ()
    perturb: tuple[Perturbation, ...] = ()
    perturb_rate: float = RATE
    perturb_seed: int = SEED
    output: Annotated[
        Path | None, arg(metavar="FILE", help_behavior_hint="(default: writes nothing)")
    ] = None
    errors: Annotated[
        Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: writes nothing)")
    ] = None
    rows: bool = True

    @property
    def perturbing(self) -> Perturbing:
        """Raises ConfigError for a rate that is none."""
        names = tuple(dict.fromkeys(self.perturb))
        return Perturbing(names, self.perturb_rate, self.perturb_seed)

    @property
    def writes_rows(self) -> bool:
        """Whether RUN/evaluation is written: it is of the best model."""
        return self.rows and self.model == BEST


def main(argv: Sequence[str]) -> int:
    arguments = parse_arguments(EvaluateArguments, argv, "sbrrt-fast evaluate")
    ranks = join_ranks(arguments)
    with ranks.watched():
        _evaluate(arguments, ranks)
    return 0


def _evaluate(arguments: EvaluateArguments, ranks: Ranks) -> None:
    run = open_run(arguments, ranks)
    with ranks.together("looking at the arguments"):
        _check_metrics(arguments.metrics, run.config.tasks)
        perturbing = arguments.perturbing
    tasks, unlabelled = _load(run, arguments)
    with first_alone(ranks, "making folders") as is_first:
        if is_first:
            _make_folders(arguments)
    scored = score_tasks(run.model, tasks, **run.options)
    perturbed = _perturbed(run, scored, perturbing)
    with first_alone(ranks, "writing the scores") as is_first, ranks.patient():
        if is_first:
            _write(arguments, run, scored, perturbed)
            notes = perturbed_notes(perturbing, run.tokenizer)
            for line in [*_notes(run, tasks, unlabelled), *notes]:
                print(line)


def _perturbed(
    run: TrainedRun, scored: dict[str, ScoredTask], settings: Perturbing
) -> list[PerturbedScores]:
    """The scores with each perturbation, on every rank."""
    arguments = settings, run.max_length
    return [
        score_perturbed(run.model, run.tokenizer, scored, name, *arguments, **run.options)
        for name in settings.names
    ]


def _write(
    arguments: EvaluateArguments,
    run: TrainedRun,
    scored: dict[str, ScoredTask],
    perturbed: list[PerturbedScores],
) -> None:
    """Prints the scores and writes the files."""
    scores, intervals = scores_of(scored), intervals_of(scored)
    print(_heading(arguments, run))
    print(score_table(scores, {name: s.num_examples for name, s in scored.items()}, intervals))
    for text in filter(None, map(confusion_text, scored.values())):
        print(f"\n{text}")
    values = {arguments.split: scores, "intervals": intervals}
    if perturbed:
        print(f"\n{perturbed_table(scored, perturbed, arguments.perturbing)}")
        values["perturbed"] = perturbed_record(scored, perturbed, arguments.perturbing)
    if arguments.output is not None:
        record = _record(arguments, run, values, scored)
        write_json(arguments.output, record)
    _write_rows(arguments, scored)


def _check_metrics(metrics: Sequence[Metric], tasks: dict[str, TaskConfig]) -> None:
    """ConfigError where a metric of ``--metrics`` fits no task, or one cannot be computed."""
    for metric in metrics:
        if not any(metric in metrics_of(task.head) for task in tasks.values()):
            heads = ", ".join(f"{name}: {task.head}" for name, task in tasks.items())
            raise ConfigError(f"--metrics: '{metric}' fits the head of no task ({shown(heads)})")
    check_libraries({name: _with_metrics(task, metrics) for name, task in tasks.items()})


def _load(
    run: TrainedRun, arguments: EvaluateArguments
) -> tuple[dict[str, TokenizedTask], list[str]]:
    """The labelled tasks of a split with the metrics asked for; the names of the others.

    Raises:
        DataError: no task has labels there.
    """
    tasks = run.load(arguments.split)
    labelled = {
        name: replace(task, config=_with_metrics(task.config, arguments.metrics))
        for name, task in tasks.items()
        if task.labels is not None
    }
    with run.ranks.together("reading the labels"):
        if not labelled:
            raise DataError(
                f"--split {arguments.split}: {run.data} has no labels to score there; use --split "
                "dev or train, or write predictions with `sbrrt-fast predict`"
            )
    return labelled, [name for name in tasks if name not in labelled]


def _with_metrics(task: TaskConfig, metrics: Sequence[Metric]) -> TaskConfig:
    return replace(
        task, metrics=(*task.metrics, *(m for m in metrics if m in metrics_of(task.head)))
    )


def _make_folders(arguments: EvaluateArguments) -> None:
    """Sees to it that results can be written before they are computed."""
    if arguments.output is not None:
        make_folder(arguments.output.parent)
    if arguments.errors is not None:
        make_folder(arguments.errors)
    if arguments.writes_rows:
        try:
            make_folder(arguments.run / FOLDER)
        except OutputError as error:
            raise OutputError(f"{error}; --no-rows leaves that folder alone") from None


def _write_rows(arguments: EvaluateArguments, scored: dict[str, ScoredTask]) -> None:
    """Writes the files of rows, and says where they are."""
    if arguments.writes_rows:
        write_run_rows(arguments.run, scored.values())
        print(f"\nrows: {printable(arguments.run / FOLDER)}")
    if arguments.errors is not None:
        for path in write_errors(arguments.errors, scored.values()):
            print(f"errors: {printable(path)}")


def _notes(run: TrainedRun, tasks: dict[str, TokenizedTask], unlabelled: list[str]) -> list[str]:
    """What must be said beside the scores."""
    lines = [f"{name} is not scored: its rows have no labels" for name in unlabelled]
    for name, task in tasks.items():
        if task.report.num_skipped:
            lines.append(f"{name} is scored without some rows: {task.report.message()}")
    notes = untrained_note(run.config.tasks), exposure_note(run.config)
    return [*lines, *filter(None, notes)]


def _heading(arguments: EvaluateArguments, run: TrainedRun) -> str:
    return printable(
        f"{arguments.split} scores of the {arguments.model} model of {arguments.run} on "
        f"{run.data}, {run.config.precision}"
    )


def _record(
    arguments: EvaluateArguments, run: TrainedRun, scores: dict, scored: dict[str, ScoredTask]
) -> dict:
    """The JSON of ``--output``; the scores are under the split's name as in ``metrics.json``."""
    tasks = {name: one.task for name, one in scored.items()}
    return {
        **scores,
        "confusion": confusion_record(scored),
        "num_examples": {name: task.num_examples for name, task in tasks.items()},
        "num_skipped": {name: task.report.num_skipped for name, task in tasks.items()},
        "run": str(arguments.run),
        "model": arguments.model,
        "data_dir": None if run.config.data_dir is None else str(run.config.data_dir),
        "precision": run.config.precision,
        "layout": run.config.layout,
    }
