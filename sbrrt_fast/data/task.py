"""A task is a record: where its rows are, how they are encoded, and what is predicted."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

from sbrrt_fast.data.task_rules import file_problems, label_problems
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown
from sbrrt_fast.ranges import FLOAT32, Rule, float32, is_float32, problems

Split = Literal["train", "dev", "test"]
SPLITS = get_args(Split)
OVERALL = "overall"  # where scores have their mean
_MOST_CLASSES = 1_000_000
_TASK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True)
class TaskConfig:
    """One sentence or sentence-pair task.

    Attributes:
        files: per split (``train``, ``dev``, ``test``) a path or several, absolute, below ``~`` or
            relative to the data directory; ``*`` stands for any characters in a name. ``dev`` may
            also be a share of the training rows, ``10%``, or a fold of them, ``2/5``. With
            ``dataset``, names of its splits, such as ``validation`` or ``train[:1000]``.
        text_columns: one column (``encoding="single"``) or two (``"siamese"``, ``"cross"``).
        label_column: column of the label; ``test`` files may do without.
        id_column: column of the unique row id; where it is None, ``id`` if there is such a column,
            else rows are numbered from 1.
        encoding: ``single`` sentence; ``siamese`` encodes both sentences as two sequences;
            ``cross`` encodes ``[CLS] a [SEP] b [SEP]`` as one.
        head: ``classes`` (softmax over ``num_classes``), ``binary`` (one logit), ``cosine``
            (``label_range[1] * cos(u, v)``, siamese only) or ``regression`` (one value). The last
            two are trained in units in which a label's own unit does not matter.
        num_classes: number of classes; only for ``head="classes"``. 0 until it is found in the
            training rows.
        labels: the classes as they stand in the files, in order; two for ``binary``, (negative,
            positive). Empty where they are the numbers from 0, or until they are found in the
            training rows.
        label_range: lowest and highest label; only for ``cosine`` and ``regression``.
        loss: ``cross_entropy``, ``binary_cross_entropy`` or ``mse``; follows from the head
            when ``auto``.
        class_weights: factor on the loss of an example by its class, in the classes' order; None is
            1 for all. ``balanced`` is replaced by ``n / (k * n_c)``, of n training rows and k
            classes with n_c each: its mean over the training rows is 1.
        label_smoothing: e below 1; the target of an example is ``1 - e + e / k`` for its class and
            ``e / k`` for each other of the k classes.
        metric: ``accuracy`` or ``pearson``; follows from the head when ``auto``.
        weight: factor on all of this task's loss terms.
        format: ``tsv``, ``csv``, ``jsonl`` or ``parquet``; by the files' endings when ``auto``.
            ``dataset`` follows from the field of that name.
        dataset: a folder or a name on the Hugging Face hub, read by the ``datasets`` library.
        dataset_config: its configuration, such as ``rte`` of ``glue``.
        quoting: ``csv`` (fields may be quoted, ``""`` inside ``"..."``) or ``none`` (a quote is a
            character like any other, as in GLUE's files).
        on_bad_row: ``error`` stops at the first row that cannot be used; ``skip`` leaves such rows
            out and prints how many.
        max_rows: read this many usable rows of a split, the first ones; all when None.
        split_seed: seeds which training rows a share or a fold takes.
        prediction_file: name of the prediction file, with ``{split}``; none is written if empty.
        prediction_header: first line of the prediction file.
    """

    files: dict[str, str | tuple[str, ...]]
    text_columns: tuple[str, ...]
    label_column: str
    head: Literal["classes", "binary", "cosine", "regression"]
    id_column: str | None = None
    encoding: Literal["single", "siamese", "cross"] = "single"
    num_classes: int = 0
    labels: tuple[str, ...] = ()
    label_range: tuple[float, float] = (0.0, 1.0)
    loss: Literal["auto", "cross_entropy", "binary_cross_entropy", "mse"] = "auto"
    class_weights: tuple[float, ...] | Literal["balanced"] | None = None
    label_smoothing: float = 0.0
    metric: Literal["auto", "accuracy", "pearson"] = "auto"
    weight: float = 1.0
    format: Literal["auto", "tsv", "csv", "jsonl", "parquet", "dataset"] = "auto"
    dataset: str = ""
    dataset_config: str = ""
    quoting: Literal["csv", "none"] = "csv"
    on_bad_row: Literal["error", "skip"] = "error"
    max_rows: int | None = None
    split_seed: int = 0
    prediction_file: str = ""
    prediction_header: str = ""

    @property
    def is_pair(self) -> bool:
        return len(self.text_columns) == 2

    @property
    def sequences_per_example(self) -> int:
        return 2 if self.encoding == "siamese" else 1

    @property
    def min_length(self) -> int:
        """Tokens of the shortest sequence with text, ``[CLS] a [SEP]`` or with ``b [SEP]``."""
        return 5 if self.encoding == "cross" else 3

    @property
    def is_regression(self) -> bool:
        return self.head in ("cosine", "regression")

    @property
    def loss_name(self) -> str:
        return _LOSS_OF_HEAD[self.head] if self.loss == "auto" else self.loss

    @property
    def metric_name(self) -> str:
        return _METRIC_OF_HEAD[self.head] if self.metric == "auto" else self.metric

    @property
    def num_labels(self) -> int:
        """Number of classes a label may be: ``num_classes``, 2 for ``binary``, 0 for values."""
        return {"classes": self.num_classes, "binary": 2}.get(self.head, 0)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to be found in the training rows before a model is built."""
        is_known = self.head != "classes" or self.num_classes > 0
        return is_known and self.class_weights != "balanced"

    def label_name(self, label: float) -> str | float:
        """A label or prediction as in the files: the class's name, its number, or the value."""
        if self.is_regression:
            return label
        return self.labels[int(label)] if self.labels else int(label)

    def validate(self, name: str) -> None:
        """Raises ConfigError naming ``tasks.<name>.<field>`` when fields do not fit together."""
        check_task_name(name)
        for reason in self._problems():
            raise ConfigError(f"tasks.{name}.{reason}")

    def _problems(self) -> Iterator[str]:
        columns = shown(self.text_columns)
        if self.encoding == "single" and len(self.text_columns) != 1:
            yield f"text_columns: encoding 'single' needs one column, got {columns}"
        if self.encoding != "single" and len(self.text_columns) != 2:
            yield f"text_columns: encoding '{self.encoding}' needs two, got {columns}"
        if self.head == "cosine" and self.encoding != "siamese":
            yield (
                "encoding: head 'cosine' compares two sentences; "
                f"use 'siamese', not '{self.encoding}'"
            )
        is_for_classes = self.head == "classes" or self.num_classes == 0
        if not is_for_classes or self.num_classes == 1 or self.num_classes < 0:
            yield (
                f"num_classes: head '{self.head}' got {self.num_classes}; "
                "only 'classes' takes it, >= 2"
            )
        if self.is_regression and not self.label_range[0] < self.label_range[1]:
            yield f"label_range: needs low < high, got {self.label_range}"
        if self.head == "cosine" and not self.label_range[1] > 0:
            yield (
                "label_range: head 'cosine' gives its highest label to equal sentences, which must "
                f"be above 0, got {self.label_range}"
            )
        if self.loss_name not in _LOSSES_OF_HEAD[self.head]:
            yield f"loss: '{self.loss}' does not fit head '{self.head}'; use 'auto'"
        if self.metric_name == "pearson" and not self.is_regression:
            yield f"metric: 'pearson' needs a cosine or regression head, not '{self.head}'"
        if self.metric_name == "accuracy" and self.is_regression:
            yield f"metric: 'accuracy' needs a classes or binary head, not '{self.head}'"
        yield from problems(self._rules())
        yield from label_problems(self)
        yield from file_problems(self)

    def _rules(self) -> Iterator[Rule]:
        yield "files", self.files, set(self.files) <= set(SPLITS), f"files of {SPLITS}"
        expected = f"at most {_MOST_CLASSES:,}"
        yield "num_classes", self.num_classes, self.num_classes <= _MOST_CLASSES, expected
        yield "weight", self.weight, 0 <= self.weight < math.inf, "at least 0"
        yield "weight", self.weight, is_float32(self.weight), FLOAT32
        if self.is_regression:
            low, high = labels = self.label_range
            are_held = is_float32(low) and is_float32(high)
            yield "label_range", labels, are_held, f"two numbers {FLOAT32}"
            differ = float32(low) < float32(high)
            yield "label_range", labels, differ, "two numbers that are still different as float32"


def check_task_name(name: str) -> None:
    """Raises ConfigError where a task cannot be called ``name``."""
    if not _TASK_NAME.fullmatch(name):
        raise ConfigError(
            f"tasks: '{shown(name)}' is no task name; use letters, digits, '_' and '-', at most 64"
        )
    if name == OVERALL:
        raise ConfigError(
            f"tasks: a task cannot be called '{OVERALL}', where the mean score stands; choose "
            "another name"
        )


def check_task_names(names: Iterable[str]) -> None:
    """Raises ConfigError where two tasks would have the same flags on the command line."""
    flags: dict[str, str] = {}
    for name in names:
        check_task_name(name)
        other = flags.setdefault(name.replace("_", "-"), name)
        if other != name:
            raise ConfigError(
                f"tasks: '{other}' and '{name}' differ in '-' and '_' alone, which flags do not "
                "tell apart; rename one"
            )


_LOSS_OF_HEAD = {
    "classes": "cross_entropy",
    "binary": "binary_cross_entropy",
    "cosine": "mse",
    "regression": "mse",
}
_LOSSES_OF_HEAD = {head: (loss,) for head, loss in _LOSS_OF_HEAD.items()}
_METRIC_OF_HEAD = {
    "classes": "accuracy",
    "binary": "accuracy",
    "cosine": "pearson",
    "regression": "pearson",
}


def _course_files(train: str, dev: str, test: str) -> dict[str, str | tuple[str, ...]]:
    return {"train": train, "dev": dev, "test": test}


BUILTIN_TASKS: dict[str, TaskConfig] = {
    "sst": TaskConfig(
        files=_course_files("ids-sst-train.csv", "ids-sst-dev.csv", "ids-sst-test-student.csv"),
        text_columns=("sentence",),
        label_column="sentiment",
        id_column="id",
        head="classes",
        num_classes=5,
        prediction_file="sst-{split}-output.csv",
        prediction_header="id \t Predicted_Sentiment ",
    ),
    "para": TaskConfig(
        files=_course_files("quora-train.csv", "quora-dev.csv", "quora-test-student.csv"),
        text_columns=("sentence1", "sentence2"),
        label_column="is_duplicate",
        id_column="id",
        head="binary",
        encoding="siamese",
        on_bad_row="skip",  # quora-dev.csv has two rows without a label
        prediction_file="para-{split}-output.csv",
        prediction_header="id \t Predicted_Is_Paraphrase ",
    ),
    "sts": TaskConfig(
        files=_course_files("sts-train.csv", "sts-dev.csv", "sts-test-student.csv"),
        text_columns=("sentence1", "sentence2"),
        label_column="similarity",
        id_column="id",
        head="cosine",
        encoding="siamese",
        label_range=(0.0, 5.0),
        prediction_file="sts-{split}-output.csv",
        prediction_header="id \t Predicted_Similiary ",
    ),
    "cfimdb": TaskConfig(
        files=_course_files(
            "ids-cfimdb-train.csv", "ids-cfimdb-dev.csv", "ids-cfimdb-test-student.csv"
        ),
        text_columns=("sentence",),
        label_column="sentiment",
        id_column="id",
        head="classes",
        num_classes=2,
        prediction_file="cfimdb-{split}-output.csv",
        prediction_header="id \t Predicted_Sentiment ",
    ),
}


@dataclass(frozen=True)
class Example:
    """One row of a task file: id, one or two texts, label (None in a test split)."""

    id: str
    texts: tuple[str, ...]
    label: float | None = field(default=None)
