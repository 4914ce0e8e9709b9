"""Predictions and scores of a whole split."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sbrrt_fast import _extension
from sbrrt_fast.data.assemble import assemble
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.finite import check_loaded
from sbrrt_fast.training.scores.scored import ScoredTask, scores_of
from sbrrt_fast.training.step.autograd_pass import autocast

_TRAIN_AGAIN = "train again with a lower optimizer.learning_rate, or from another backbone"
TOKENS_PER_BATCH = 4096  # bounds the attention probabilities of 512-token sequences


def predict(model: MultiTaskModel, task: TokenizedTask, **options: Any) -> Tensor:
    """Predictions for some or all examples, in order, without dropout.

    Args:
        options: keyword arguments of ``predict_outputs``.

    Returns:
        float32 [num_examples] on the CPU; see ``MultiTaskModel.predictions``.

    Raises:
        WeightsError: see ``predict_outputs``; or a prediction is too large for float32.
    """
    return predictions_of(model, task, predict_outputs(model, task, **options))


def predictions_of(model: MultiTaskModel, task: TokenizedTask, outputs: Tensor) -> Tensor:
    """Predictions from the outputs of ``predict_outputs``, as ``predict`` returns them."""
    device = next(model.parameters()).device
    predictions = model.predictions(task.name, outputs.to(device)).cpu()
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
) -> Tensor:
    """The head's outputs for the first ``limit`` examples (all if None), in order, no dropout.

    Args:
        precision: ``fp32``, or ``bf16`` matrix products; a CPU that has no instructions for those
            takes float32 ones, which are several times quicker there.
        packed: whether padding is left out of the computation.
        progress: whether a bar is shown.

    Returns:
        float32 on the CPU: logits [num_examples, num_classes] of ``classes``, one logit
        [num_examples] of ``binary``, values in training units [num_examples] of the others.

    Raises:
        WeightsError: the model's outputs are not finite; it names a weight that is not.
    """
    device = next(model.parameters()).device
    num_examples = min(limit or task.num_examples, task.num_examples)
    bar = tqdm(total=num_examples, desc=f"{task.name} {task.split}", disable=not progress)
    if _extension.emulates_bf16(device):
        precision = "fp32"
    order, parts = [], []
    with bar, autocast(device, precision):
        for examples in length_batches(task, num_examples):
            tokens = assemble(task, examples).to(device)
            outputs = model(task.name, tokens if packed else tokens.padded())
            order.append(examples)
            parts.append(outputs.to("cpu", torch.float32))
            bar.update(len(examples))
    outputs = torch.cat(parts)[torch.cat(order).argsort()]
    _check_finite(model, task, outputs)
    return outputs


def _check_finite(model: MultiTaskModel, task: TokenizedTask, values: Tensor) -> None:
    is_bad = ~torch.isfinite(values).reshape(len(values), -1).all(dim=1)
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
    model: MultiTaskModel, tasks: dict[str, TokenizedTask], **kwargs
) -> dict[str, ScoredTask]:
    """What the model says of labelled tasks, by name; arguments and errors as of ``predict``."""
    scored = {}
    for name, task in tasks.items():
        outputs = predict_outputs(model, task, **kwargs)
        scored[name] = ScoredTask(task, outputs, predictions_of(model, task, outputs))
    return scored


def length_batches(task: TokenizedTask, num_examples: int) -> Iterator[Tensor]:
    """Examples of similar length together, at most TOKENS_PER_BATCH padded tokens a batch."""
    each = task.config.sequences_per_example
    lengths = task.lengths.view(-1, each).amax(dim=1)[:num_examples]
    order = torch.argsort(lengths, stable=True)
    start = 0
    while start < num_examples:
        stop = start + 1
        while stop < num_examples and (
            (stop + 1 - start) * each * int(lengths[order[stop]]) <= TOKENS_PER_BATCH
        ):
            stop += 1
        yield order[start:stop]
        start = stop
