"""Training and predicting from Python: ``train`` and ``load``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbrrt_fast.config import Device, Precision, RunConfig
from sbrrt_fast.config_fields import did_you_mean
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Example, TaskConfig
from sbrrt_fast.data.texts import WINDOW, Text, text_examples, windows
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.messages import shown
from sbrrt_fast.model.heads import probabilities
from sbrrt_fast.training.callbacks import Callback
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.ranks.start import prepare
from sbrrt_fast.training.saved_run import SavedModel, Which, read_saved
from sbrrt_fast.training.scores.evaluate import predict_outputs, predictions_of
from sbrrt_fast.training.scores.vectors import sentence_vectors
from sbrrt_fast.training.step.op_choice import log_evaluation_choice
from sbrrt_fast.training.trainer import Trainer

Label = str | int | float

_SINGLE = TaskConfig(files={}, text_columns=("text",), label_column="label", head="regression")


def load(
    path: str | PathLike[str],
    *,
    device: Device = "auto",
    precision: Precision | None = None,
    which: Which = "best",
    log: Callable[[str], object] | None = None,
    ranks: Ranks = ONE_RANK,
) -> TaskModel:
    """A trained model, ready to predict.

    Args:
        path: folder of a run, or of one of its models (``best``, ``last``, or a copy of one).
        device: ``auto`` takes a GPU if there is one.
        precision: of the matrix products; as the run was trained if None.
        which: of a run's folder, the best model by dev score or the latest one.
        log: hears, once each, which ops take less than their first choice, and why.
        ranks: processes that share predictions out; see ``TaskModel``.

    Raises:
        WeightsError: the folder is not that of a run or model, or its model cannot be used.
        ConfigError: the run's configuration cannot be used.
        BackendError: there is no such device.
    """
    folder = Path(path).expanduser()
    with ranks.together("reading the model"), ranks.patient():
        saved = read_saved(folder, which=which, device=device, precision=precision)
    return TaskModel(saved, log, ranks)


def train(
    config: RunConfig,
    callbacks: Sequence[Callback] = (),
    *,
    log: Callable[[str], object] = print,
) -> TrainResult:
    """Trains a run to its end, in the folder ``config.output``.

    Where torchrun started several processes, all of them call this and train one run together; the
    first alone logs and calls the callbacks.

    Args:
        config: the run; with ``resume`` it goes on from its last state.
        callbacks: what follows the run, besides those of ``config.report_to``.
        log: where lines for the user go.

    Raises:
        SbrrtError: anything in the configuration, data or weights that cannot be used, or a run
            that cannot go on.
        Interrupted: Ctrl-C or SIGTERM came in the main thread; the state was saved.
    """
    _, config, metrics = prepare(config)
    if metrics is None:
        metrics = Trainer(config, log, callbacks).run()
    return TrainResult(config.output, metrics)


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        folder: of the run.
        metrics: the contents of its ``metrics.json``.
    """

    folder: Path
    metrics: Mapping[str, Any]

    def model(self, *, device: Device = "auto", which: Which = "best") -> TaskModel:
        """The trained model; see ``load``."""
        return load(self.folder, device=device, which=which)


class Prediction(NamedTuple):
    """What is predicted for one text or pair; see ``Predictions``.

    Attributes:
        label: the predicted one.
        probabilities: of each class; None for values.
    """

    label: Label
    probabilities: dict[Label, float] | None


@dataclass(frozen=True, eq=False)
class Predictions:
    """What is predicted for some texts or pairs, in their order. Iterating gives ``Prediction``s.

    Attributes:
        task: name of the task.
        values: float32 [num_rows]: numbers of classes, or values in the unit of the labels.
        probabilities: float32 [num_rows, num_classes], two classes for ``binary``; None for values.
        classes: labels in the order of ``probabilities``: their names, or numbers from 0 where they
            have none; empty for values.
        num_sequences: sequences that the texts made, two of each siamese pair.
        num_truncated: those that were longer than the model takes, and cut.
    """

    task: str
    values: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None
    classes: tuple[Label, ...]
    num_sequences: int
    num_truncated: int

    @property
    def labels(self) -> list[Label]:
        """The predicted labels: names of classes, their numbers, or the values as floats."""
        if self.probabilities is None:
            return [float(value) for value in self.values]
        return [self.classes[number] for number in self.values.astype(np.int64)]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Prediction]:
        rows = [None] * len(self) if self.probabilities is None else self.probabilities.tolist()
        for label, row in zip(self.labels, rows, strict=True):
            yield Prediction(label, row and dict(zip(self.classes, row, strict=True)))


class TaskModel:
    """A trained encoder with its task heads; ``load`` makes it. It is used without dropout.

    Texts are taken a window at a time, put together by length and computed without padding (unless
    the run was trained with ``layout: padded``), so that their number and order do not matter for
    memory. Those longer than ``max_length`` tokens are cut, and counted.

    Where several ``ranks`` share the work out, each has the same model, makes the same calls with
    the same texts, takes every window of them, and gets all predictions.

    Attributes:
        tasks: records by name.
    """

    def __init__(
        self,
        saved: SavedModel,
        log: Callable[[str], object] | None = None,
        ranks: Ranks = ONE_RANK,
    ):
        self._log, self._logged, self._ranks = log, set[str](), ranks
        self._model, self._tokenizer, self._config = saved.model, saved.tokenizer, saved.config
        self.tasks: Mapping[str, TaskConfig] = dict(saved.model.tasks)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self._model.parameters()).device

    @property
    def precision(self) -> str:
        """``fp32`` or ``bf16``; a CPU without instructions for bf16 computes in fp32."""
        return self._config.precision

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence, with [CLS] and [SEP]; longer ones are cut."""
        num_positions: int = self._model.config.max_position_embeddings
        return min(self._config.model.max_length, num_positions)

    def classes(self, task: str) -> tuple[Label, ...]:
        """The labels of a task in the order of its probabilities; empty where it has values.

        Raises:
            ConfigError: there is no such task.
        """
        record = self._task(task)
        return tuple(record.label_name(number) for number in range(record.num_labels))

    def predict(self, task: str, texts: Iterable[Text]) -> Predictions:
        """Predictions for texts, or for pairs of texts where the task has two text columns.

        Args:
            task: name of the task. texts: any number of them, from a list or a generator.

        Raises:
            ConfigError: there is no such task.
            DataError: a row is no text or no pair, as the task needs it, or is empty.
            WeightsError: the model's outputs are not finite.
        """
        return _joined([self._none(task), *self.predict_windows(task, texts)])

    def predict_windows(
        self, task: str, texts: Iterable[Text], *, num_rows: int = WINDOW
    ) -> Iterator[Predictions]:
        """Like ``predict``, a window of texts at a time, so that memory stays bounded.

        Args:
            num_rows: the most texts or pairs of a window; fewer where they are very long.
        """
        examples = text_examples(texts, self._task(task), task)
        rows = self._row_windows(task, self.tasks[task], examples, num_rows)
        return (self._predict(task, window) for window in rows)

    def embed(self, texts: Iterable[str], *, normalize: bool = False) -> NDArray[np.float32]:
        """Sentence vectors: what the encoder's pooling makes of texts, before any head.

        Args:
            normalize: divide each by its length, so that products are cosines.

        Returns:
            float32 [num_texts, hidden], in order.

        Raises:
            DataError: a row is no text, or is empty. WeightsError: a vector is not finite.
        """
        parts = [torch.empty(0, self._model.config.hidden_size)]
        examples = text_examples(texts, _SINGLE, "embed")
        for rows in self._row_windows("embed", _SINGLE, examples, WINDOW):
            parts.append(sentence_vectors(self._model.encoder, rows, **self._options))
        vectors = torch.cat(parts)
        return (torch.nn.functional.normalize(vectors) if normalize else vectors).numpy()

    def _task(self, name: str) -> TaskConfig:
        if name not in self.tasks:
            hint = did_you_mean(name, self.tasks)
            known = shown(", ".join(self.tasks), 200)
            raise ConfigError(f"the model has no task '{shown(name)}'{hint or f'; it has {known}'}")
        return self.tasks[name]

    def _row_windows(
        self, name: str, task: TaskConfig, examples: Iterable[Example], num_rows: int
    ) -> Iterator[TokenizedTask]:
        remaining = windows(examples, num_rows)
        while True:
            with self._ranks.together("reading texts"), self._ranks.patient():
                window = next(remaining, None)
                rows = None if window is None else self._rows(name, task, window)
            if rows is None:
                return
            yield rows

    def _rows(self, name: str, task: TaskConfig, examples: list[Example]) -> TokenizedTask:
        rows = TokenizedTask.build(name, task, "test", examples, self._tokenizer, self.max_length)
        if self._log is not None:
            log_evaluation_choice(self._model, [rows], self._log_once, **self._how)
        return rows

    def _log_once(self, line: str) -> None:
        if self._log is not None and self._ranks.is_first and line not in self._logged:
            self._logged.add(line)
            self._log(line)

    @property
    def _options(self) -> dict[str, Any]:
        return {**self._how, "ranks": self._ranks}

    @property
    def _how(self) -> dict[str, Any]:
        return {"precision": self.precision, "packed": self._config.layout == "packed"}

    def _predict(self, name: str, rows: TokenizedTask) -> Predictions:
        outputs = predict_outputs(self._model, rows, **self._options)
        return self._predictions(
            name,
            predictions_of(self._model, rows, outputs, self._ranks),
            probabilities(rows.config, outputs),
            rows.num_sequences,
            rows.num_truncated,
        )

    def _none(self, name: str) -> Predictions:
        """Predictions for no text."""
        num_classes = len(self.classes(name))
        return self._predictions(
            name, torch.empty(0), torch.empty(0, num_classes) if num_classes else None, 0, 0
        )

    def _predictions(
        self, name: str, values: Tensor, of_classes: Tensor | None, *counts: int
    ) -> Predictions:
        arrays = values.numpy(), None if of_classes is None else of_classes.numpy()
        return Predictions(name, *arrays, self.classes(name), *counts)


def _joined(parts: Sequence[Predictions]) -> Predictions:
    first = parts[0]
    rows = [part.probabilities for part in parts if part.probabilities is not None]
    return Predictions(
        first.task,
        np.concatenate([part.values for part in parts]),
        np.concatenate(rows) if rows else None,
        first.classes,
        sum(part.num_sequences for part in parts),
        sum(part.num_truncated for part in parts),
    )
