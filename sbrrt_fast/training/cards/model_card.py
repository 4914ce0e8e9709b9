"""``README.md`` of a saved model: a model card as the Hugging Face hub shows it.

Nothing in it depends on the machine or the time: no folders, no dates, so that a run that was
resumed ends with the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sbrrt_fast.config import RunConfig
from sbrrt_fast.config_fields import config_to_dict
from sbrrt_fast.config_io import CALL_FIELDS, MINILM
from sbrrt_fast.config_yaml import to_yaml
from sbrrt_fast.data.sources import uses_sample
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import OVERALL, TaskConfig
from sbrrt_fast.messages import printable
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.cards.usage import usage
from sbrrt_fast.training.scores.metrics import UNDEFINED
from sbrrt_fast.training.scores.table import exposure_note, undefined_notes, untrained_note

SAMPLE_WARNING = (
    "**Trained on the built-in sample, which is made up.** The scores say that training works and "
    "nothing else; the model is of no use."
)
_TAGS = ("sbrrt_fast", "sentence-transformers", "feature-extraction", "multi-task")
_HUB_METRICS = {
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "mcc": "matthews_correlation",
    "auc": "roc_auc",
}
_MACHINE_FIELDS = (*CALL_FIELDS, "data_dir", "device", "graphs", "profile", "report_to")

_INPUTS = {
    "single": "a text",
    "siamese": "two texts, encoded one by one",
    "cross": "two texts, encoded together",
}


@dataclass(frozen=True)
class DevScores:
    """An evaluation of the model that is saved.

    Attributes:
        scores: see ``evaluate``; without tasks where the model was not scored.
        round: rounds of training after which the model was.
        num_rows: dev rows of each task that were scored, the first ones; all if None.
        note: on the weights, in brackets, see ``averaging.note_of``.
    """

    scores: Mapping[str, Any]
    round: int
    num_rows: int | None = None
    note: str = ""


def model_card(
    config: RunConfig,
    model: MultiTaskModel,
    splits: Mapping[str, Mapping[str, TokenizedTask]],
    dev: DevScores,
) -> str:
    """The text of the card.

    Args:
        splits: the run's tasks by split, ``train`` and ``dev``, and name.
    """
    metadata = ModelCardData(
        model_name=config.recipe,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*_TAGS, model.config.model_type],
        base_model=_hub_name(config.model.backbone),
        eval_results=list(_results(model.tasks, dev.scores)) or None,
    )
    longest = min(config.model.max_length, model.config.max_position_embeddings)
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {config.recipe}: {', '.join(model.tasks)}",
        _summary(config, model),
        *([SAMPLE_WARNING] if uses_sample(config.tasks, config.data_dir) else []),
        "## Tasks\n\n" + tasks_table(model.tasks),
        "## Scores\n\n" + _scores(config, splits["dev"], dev),
        "## Data\n\n" + _data(splits),
        "## How to load it\n\n" + usage(model, longest),
        "## Recipe\n\n" + _recipe(config),
    ]
    return "\n\n".join(sections) + "\n"


def tasks_table(tasks: Mapping[str, TaskConfig]) -> str:
    """A row per task: its name, input, head and labels."""
    rows = [(n, _INPUTS[t.encoding], t.head, labels_text(t)) for n, t in tasks.items()]
    return _table(("task", "input", "head", "labels"), rows)


def labels_text(task: TaskConfig) -> str:
    """What a task's labels are."""
    if task.is_regression:
        return "{:g} to {:g}".format(*task.label_range)
    if task.labels:
        return ", ".join(map(_cell, task.labels))
    return f"0 to {task.num_classes - 1}" if task.head == "classes" else "0, 1"


def _hub_name(backbone: str) -> str | None:
    """The hub's name of a backbone; None for a folder."""
    if backbone == MINILM:
        return "sentence-transformers/all-MiniLM-L6-v2"
    return None if Path(backbone).expanduser().is_dir() else backbone


def _results(tasks: Mapping[str, TaskConfig], scores: Mapping[str, Any]) -> Iterator[EvalResult]:
    for name, task in tasks.items():
        kind = "sentence-similarity" if task.head == "cosine" else "text-classification"
        for metric, score in _metrics(scores.get(name)).items():
            if score is not None:
                yield EvalResult(
                    task_type=kind,
                    dataset_type=name,
                    dataset_name=name,
                    dataset_split="dev",
                    metric_type=_HUB_METRICS.get(metric, metric),
                    metric_value=score,
                )


def _summary(config: RunConfig, model: MultiTaskModel) -> str:
    shape, num_tasks = model.config, len(model.tasks)
    heads = f"a head for each of {num_tasks} tasks" if num_tasks > 1 else "a head for one task"
    backbone = _hub_name(config.model.backbone) or Path(config.model.backbone).name
    kept = ", whose weights were kept: the heads alone were trained"
    return (
        f"A {shape.architecture} with {heads}, trained with `sbrrt_fast`: "
        f"{shape.num_hidden_layers} layers, {shape.hidden_size} features, pooling "
        f"`{model.encoder.pooling}`. Training started from `{_cell(backbone)}`"
        f"{kept * (config.mode == 'pretrain')}."
    )


def _scores(config: RunConfig, tasks: Mapping[str, TokenizedTask], dev: DevScores) -> str:
    if not any(name in dev.scores for name in tasks):
        return f"The model after round {dev.round:,}{dev.note}, which was not scored."
    rows = []
    for name, task in tasks.items():
        count = min(dev.num_rows or task.num_examples, task.num_examples)
        rows += [
            (name, m, _number(x), f"{count:,}") for m, x in _metrics(dev.scores.get(name)).items()
        ]
    rows.append((OVERALL, "", _number(dev.scores[OVERALL]), ""))
    notes = [
        SAMPLE_WARNING if uses_sample(config.tasks, config.data_dir) else exposure_note(config)
    ]
    if dev.num_rows is not None:
        notes.append(f"Scored on the first {dev.num_rows:,} rows of each task.")
    notes += [
        *(untrained_note(config.tasks), *undefined_notes(dict(dev.scores))),
        f"The model after round {dev.round:,}{dev.note}, on dev.",
    ]
    table = _table(("task", "metric", "score", "rows"), rows)
    return "\n\n".join([table, *(printable(note) for note in notes if note)])


def _data(splits: Mapping[str, Mapping[str, TokenizedTask]]) -> str:
    rows, remarks = [], []
    for name in splits["dev"]:
        for split, task in ((split, t[name]) for split, t in splits.items() if name in t):
            skipped = task.report.num_skipped if task.report else 0
            files = _source(task.config, split)
            counts = (task.num_examples, skipped, task.num_truncated)
            rows.append((name, split, files, *(f"{count:,}" for count in counts)))
            if skipped:
                remarks.append(f"- {name} {split}: {_cell(task.report.message())}")
            if task.report and task.report.note:
                remarks.append(f"- {_cell(task.report.note)}")
    table = _table(("task", "split", "file", "rows", "left out", "texts cut"), rows)
    return "\n\n".join([table, *(["\n".join(remarks)] if remarks else [])])


def _recipe(config: RunConfig) -> str:
    settings = _without_folders(config_to_dict(_with_names(config)))
    return (
        f"{_in_short(config)}\n\n<details><summary>All settings, for `sbrrt-fast train --config` "
        f"with `--data-dir` and `--backbone`</summary>\n\n```yaml\n{to_yaml(settings)}```\n\n"
        "</details>"
    )


def _in_short(config: RunConfig) -> str:
    length = f"{config.rounds:,} rounds" if config.rounds else f"epochs: {config.epochs}"
    parts = [
        f"{length} of {config.round.batch_size} examples of each task",
        f"updates: `{config.round.update}`",
        f"learning rate {config.optimizer.learning_rate:g}",
        f"SMART weight {config.smart.weight:g} (`{config.smart.preset}`)",
        f"Bregman weight {config.bregman.weight:g}",
        f"seed {config.seed}",
        config.precision,
    ]
    return "; ".join(parts) + "."


def _with_names(config: RunConfig) -> RunConfig:
    """The configuration with names of files and folders instead of their places."""
    backbone = config.model.backbone
    if _hub_name(backbone) is None:
        backbone = Path(backbone).name
    tasks = {
        name: replace(
            task,
            files={split: _base_names(files) for split, files in task.files.items()},
            dataset=_dataset_name(task) if task.dataset else "",
        )
        for name, task in config.tasks.items()
    }
    return replace(config, model=replace(config.model, backbone=backbone), tasks=tasks)


def _without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in _MACHINE_FIELDS}


def _base_names(files: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Names of absolute files; others are as they are, for a share or fold has a slash too."""
    if isinstance(files, str):
        return Path(files).name if Path(files).expanduser().is_absolute() else files
    return tuple(map(_base_names, files))


def _source(task: TaskConfig, split: str) -> str:
    """Names of a split's files, or of its dataset and the part of it."""
    names = _base_names(task.files.get(split, ""))
    text = names if isinstance(names, str) else ", ".join(names)
    if task.dataset:
        text = " ".join(filter(None, (_dataset_name(task), task.dataset_config, text)))
    return _cell(text)


def _dataset_name(task: TaskConfig) -> str:
    """A hub's name, or the last part of a folder's."""
    folder = Path(task.dataset).expanduser()
    return folder.name if folder.is_absolute() or folder.is_dir() else task.dataset


def _metrics(scores: Mapping[str, Any] | None) -> dict[str, float | None]:
    """A task's metrics; none where it was not scored."""
    return {metric: score for metric, score in (scores or {}).items() if metric != UNDEFINED}


def _number(score: float | None) -> str:
    return "—" if score is None else f"{score:.4f}"


def _cell(text: object) -> str:
    """A text within a table's cell or a line of Markdown."""
    return printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("`", "'")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
