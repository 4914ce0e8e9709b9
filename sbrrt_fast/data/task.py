"""A task is a record: where its rows are, how they are encoded, and what is predicted.

``task_rules`` has the rules that a record must keep.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Metric = Literal["accuracy", "f1", "mcc", "auc", "pearson", "spearman", "mse"]
Split = Literal["train", "dev", "test"]
SPLITS = get_args(Split)
OVERALL = "overall"  # where scores have their mean


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
        metric: the main one, by which the best model is chosen: ``accuracy``, ``f1`` (macro),
            ``mcc`` (Matthews) or ``auc`` of classes, ``pearson``, ``spearman`` or ``mse`` of
            values; follows from the head when ``auto``.
        metrics: further ones.
        weight: factor on all of this task's loss terms.
        dropout: whether this task's texts are trained with the model's dropout; its rates are the
            same for all tasks that are.
        train: whether the task is trained; if not, it is only evaluated, by the head that the run
            starts with, and needs no ``train`` file.
        format: ``tsv``, ``csv``, ``jsonl`` or ``parquet``; by the files' endings when ``auto``.
            ``dataset`` follows from the field of that name.
        dataset: a folder or a name on the Hugging Face hub, read by the ``datasets`` library.
        dataset_config: its configuration, such as ``rte`` of ``glue``.
        quoting: ``csv`` (fields may be quoted, ``""`` inside ``"..."``) or ``none`` (a quote is a
            character like any other, as in GLUE's files).
        on_bad_row: ``error`` stops at the first row that cannot be used; ``skip`` leaves such rows
            out and prints how many.
        max_rows: read this many usable rows of a split, the first ones; all when None.
        train_rows: train on this many of the training rows, drawn so that each class has its share;
            all when None, or where there are no more.
        label_noise: share of the training rows that get another label, drawn: of another class, or
            of another of these rows. Dev and test labels never change.
        split_seed: seeds which training rows a share or a fold takes, and ``train_rows`` and
            ``label_noise``.
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
    metric: Literal["auto"] | Metric = "auto"
    metrics: tuple[Metric, ...] = ()
    weight: float = 1.0
    dropout: bool = True
    train: bool = True
    format: Literal["auto", "tsv", "csv", "jsonl", "parquet", "dataset"] = "auto"
    dataset: str = ""
    dataset_config: str = ""
    quoting: Literal["csv", "none"] = "csv"
    on_bad_row: Literal["error", "skip"] = "error"
    max_rows: int | None = None
    train_rows: int | None = None
    label_noise: float = 0.0
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
    def has_one_output(self) -> bool:
        """Whether losses and divergences depend on one number per example.

        A logit, a cosine or a value; of two classes' logits it is their difference, the log-odds.
        """
        return self.head != "classes" or self.num_classes == 2

    @property
    def loss_name(self) -> str:
        return LOSS_OF_HEAD[self.head] if self.loss == "auto" else self.loss

    @property
    def metric_name(self) -> str:
        return _METRIC_OF_HEAD[self.head] if self.metric == "auto" else self.metric

    @property
    def metric_names(self) -> tuple[Metric, ...]:
        """The main metric, then the further ones."""
        return tuple(dict.fromkeys((self.metric_name, *self.metrics)))

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


def metrics_of(head: str) -> tuple[Metric, ...]:
    """The metrics that fit a head."""
    return METRICS_OF_VALUES if head in ("cosine", "regression") else METRICS_OF_CLASSES


LOSS_OF_HEAD = {
    "classes": "cross_entropy",
    "binary": "binary_cross_entropy",
    "cosine": "mse",
    "regression": "mse",
}
METRICS_OF_CLASSES: tuple[Metric, ...] = ("accuracy", "f1", "mcc", "auc")
METRICS_OF_VALUES: tuple[Metric, ...] = ("pearson", "spearman", "mse")
_METRIC_OF_HEAD: dict[str, Metric] = {
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
