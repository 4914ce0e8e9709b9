"""A split's rows beside what a model says of them: what scores, intervals and files are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import Metric, TaskConfig
from sbrrt_fast.model.heads import class_logits, probabilities
from sbrrt_fast.training.scores.metrics import (
    METRICS,
    UNDEFINED,
    overall,
    why_no_auc,
    why_undefined,
)


@dataclass(frozen=True)
class ScoredTask:
    """The first ``len(predictions)`` rows of a labelled split, on the CPU.

    Attributes:
        task: the split.
        outputs: the head's, float32; see ``evaluate.predict_outputs``.
        predictions: float32 [num_examples]; see ``MultiTaskModel.predictions``.
    """

    task: TokenizedTask
    outputs: Tensor
    predictions: Tensor

    @property
    def config(self) -> TaskConfig:
        return self.task.config

    @property
    def num_examples(self) -> int:
        return len(self.predictions)

    @property
    def labels(self) -> Tensor:
        """float32 [num_examples]."""
        return self.task.labels[: self.num_examples]

    @property
    def probabilities(self) -> Tensor | None:
        """float32 [num_examples, num_classes]; None where values are predicted."""
        return probabilities(self.config, self.outputs)

    @property
    def class_logits(self) -> Tensor:
        """float64 [num_examples, num_classes] of a head that predicts classes."""
        return class_logits(self.config, self.outputs.double())

    @property
    def losses(self) -> Tensor:
        """What each row costs, float64 [num_examples].

        Classes: minus the logarithm of the label's probability, without class weights and label
        smoothing. Values: the squared error in the labels' own unit.
        """
        if self.config.is_regression:
            return (self.predictions.double() - self.labels.double()).square()
        log_probabilities = self.class_logits.log_softmax(dim=-1)
        return -log_probabilities.gather(1, self.labels.long()[:, None]).squeeze(1)

    @property
    def num_tokens(self) -> Tensor:
        """Tokens of each example, both sequences of a siamese pair, int64 [num_examples]."""
        each = self.config.sequences_per_example
        return self.task.lengths.view(-1, each).sum(dim=1)[: self.num_examples]

    @property
    def order_of_errors(self) -> Tensor:
        """Numbers of the rows that are wrong, by falling loss, int64; equal ones as in the file.

        Where values are predicted, a row is right that is met exactly.
        """
        is_wrong = self.predictions.double() != self.labels.double()
        rows = is_wrong.nonzero().squeeze(1)
        return rows[torch.argsort(self.losses[rows], descending=True, stable=True)]

    def values(self, metric: Metric) -> Tensor:
        """What ``METRICS[metric]`` compares with the labels."""
        return self.class_logits if metric == "auc" else self.predictions

    def scores(self) -> dict[str, float | str | None]:
        """The task's metrics by name, the main one first; see ``scores_of``."""
        names = self.config.metric_names
        scores: dict = {name: METRICS[name](self.values(name), self.labels) for name in names}
        if undefined := [name for name in names if scores[name] is None]:
            scores[UNDEFINED] = self._why_undefined(undefined[0])
        return scores

    def _why_undefined(self, metric: Metric) -> str | None:
        if metric == "auc":
            return why_no_auc(self.labels, class_names(self.config))
        return why_undefined(self.predictions, self.labels)


def class_names(config: TaskConfig) -> Sequence[str | int]:
    """The classes of a task in order, as its user writes them."""
    return config.labels or range(config.num_labels)


def scores_of(
    scored: Mapping[str, ScoredTask],
) -> dict[str, dict[str, float | str | None] | float | None]:
    """Each task's scores and the overall one: ``{"sst": {"accuracy": …}, …, "overall": …}``.

    A score that is undefined is None with its reason beside it, ``{"pearson": None, "undefined":
    "all labels are 3"}``; the overall score is None where the main metric of a task is, unless it
    does not count the task.
    """
    scores: dict = {name: one.scores() for name, one in scored.items()}
    return scores | {"overall": overall(scores)}
