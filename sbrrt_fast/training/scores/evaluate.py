"""Predictions and scores of a whole split."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sbrrt_fast import _extension
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.modes import without_dropout
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.finite import check_loaded
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.scores.batches import computed_rows
from sbrrt_fast.training.scores.scored import ScoredTask, scores_of
from sbrrt_fast.training.step.autograd_pass import autocast

_TRAIN_AGAIN = "train again with a lower optimizer.learning_rate, or from another backbone"


def predict(
    model: MultiTaskModel, task: TokenizedTask, *, ranks: Ranks = ONE_RANK, **options: Any
) -> Tensor:
    """Predictions for some or all examples, in order, without dropout.

    Args:
        ranks, options: keyword arguments of ``predict_outputs``.

    Returns:
        float32 [num_examples] on the CPU; see ``MultiTaskModel.predictions``.

    Raises:
        WeightsError: as of ``predict_outputs``; or a prediction is too large for float32.
        SbrrtError: the ranks have read different rows.
    """
    outputs = predict_outputs(model, task, ranks=ranks, **options)
    return predictions_of(model, task, outputs, ranks)


def predictions_of(
    model: MultiTaskModel, task: TokenizedTask, outputs: Tensor, ranks: Ranks = ONE_RANK
) -> Tensor:
    """Predictions from the outputs of ``predict_outputs``, as ``predict`` returns them."""
    device = next(model.parameters()).device
    predictions = model.predictions(task.name, outputs.to(device)).cpu()
    with ranks.together(f"predicting {task.name}"):
        _check_finite(model, task, predictions)
    return predictions


@torch.no_grad()
def predict_outputs(
    model: MultiTaskModel,
    task: TokenizedTask,
    *,
    precision: str = "fp32",
    packed: bool = True,
    limit: int | None = None,
    progress: bool = False,
    ranks: Ranks = ONE_RANK,
) -> Tensor:
    """The head's outputs for the first ``limit`` examples (all if None), in order, no dropout.

    Args:
        precision: ``fp32``, or ``bf16`` matrix products; a CPU that has no instructions for those
            takes float32 ones, which are several times quicker there.
        packed: whether padding is left out of the computation.
        progress: whether a bar is shown.
        ranks: that share the batches out; each has the same model and gets all outputs.

    Returns:
        float32 on the CPU: logits [num_examples, num_classes] of ``classes``, one logit
        [num_examples] of ``binary``, values in training units [num_examples] of the others.

    Raises:
        WeightsError: the model's outputs are not finite; it names a weight that is not.
        SbrrtError: the ranks have read different rows.
    """
    device = next(model.parameters()).device
    config = model.tasks[task.name]
    if _extension.emulates_bf16(device):
        precision = "fp32"

    def compute(batch: TokenBatch) -> Tensor:
        tokens = batch.to(device)
        return model(task.name, tokens if packed else tokens.padded())

    with without_dropout(model), autocast(device, precision):
        outputs = computed_rows(
            task,
            (config.num_classes,) if config.head == "classes" else (),
            compute,
            num_rows=min(limit or task.num_examples, task.num_examples),
            width=model.config.hidden_size,
            ranks=ranks,
            progress=progress,
        )
    with ranks.together(f"predicting {task.name}"):
        _check_finite(model, task, outputs)
    return outputs


def _check_finite(model: MultiTaskModel, task: TokenizedTask, values: Tensor) -> None:
    is_bad = ~torch.isfinite(values)
    if is_bad.ndim > 1:
        is_bad = is_bad.any(dim=1)
    if num_bad := int(is_bad.sum()):
        check_loaded(model.state_dict(), "the model", _TRAIN_AGAIN)
        first = task.ids[int(is_bad.nonzero()[0])]
        raise WeightsError(
            f"task '{task.name}' {task.split}: {num_bad:,} of {len(values):,} outputs are nan "
            f"or infinite (first: id {first}), although all weights are finite; they are too large "
            f"to compute with: {_TRAIN_AGAIN}"
        )


def evaluate(
    model: MultiTaskModel, tasks: dict[str, TokenizedTask], **kwargs
) -> dict[str, dict[str, float | str | None] | float | None]:
    """Each task's scores and the overall one: ``{"sst": {"accuracy": …}, …, "overall": …}``.

    Keyword arguments are those of ``predict``, as are the errors; see ``scores_of``.
    """
    return scores_of(score_tasks(model, tasks, **kwargs))


def score_tasks(
    model: MultiTaskModel, tasks: dict[str, TokenizedTask], *, ranks: Ranks = ONE_RANK, **kwargs
) -> dict[str, ScoredTask]:
    """What the model says of labelled tasks, by name; arguments and errors as of ``predict``."""
    scored = {}
    for name, task in tasks.items():
        outputs = predict_outputs(model, task, ranks=ranks, **kwargs)
        predictions = predictions_of(model, task, outputs, ranks)
        scored[name] = ScoredTask(task, outputs, predictions)
    return scored
