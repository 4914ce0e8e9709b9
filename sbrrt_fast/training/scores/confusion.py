"""Which classes a model takes for which: matrices, and the commonest mistakes of many classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sbrrt_fast.messages import shown
from sbrrt_fast.training.scores.scored import ScoredTask, class_names

LARGEST = 100  # classes of a matrix in JSON
_LARGEST_SHOWN = 12  # of one in text
_NUM_MISTAKES = 10
_WIDEST = 16  # characters of a name above its column


def confusion_matrix(scored: ScoredTask) -> Tensor:
    """int64 [num_classes, num_classes]: rows of each label (first) and prediction (second)."""
    size = scored.config.num_labels
    pairs = scored.labels.long() * size + scored.predictions.long()
    return torch.bincount(pairs, minlength=size * size).view(size, size)


def confusion_record(scored: Mapping[str, ScoredTask]) -> dict[str, dict]:
    """``{"sst": {"classes": […], "matrix": [[…], …]}, …}`` of the tasks that have classes.

    A matrix has a row per label and a column per prediction. Tasks of more than 100 classes are
    left out.
    """
    return {
        name: {
            "classes": list(class_names(one.config)),
            "matrix": confusion_matrix(one).tolist(),
        }
        for name, one in scored.items()
        if 0 < one.config.num_labels <= LARGEST
    }


def confusion_text(scored: ScoredTask) -> str:
    """The matrix as lines, or the commonest mistakes of more than 12 classes; empty for values."""
    num_classes = scored.config.num_labels
    if num_classes > _LARGEST_SHOWN:
        return _mistakes(scored)
    return _matrix(scored) if num_classes else ""


def _matrix(scored: ScoredTask) -> str:
    names = [shown(name, _WIDEST) for name in class_names(scored.config)]
    rows = [[f"{count:,}" for count in row] for row in confusion_matrix(scored).tolist()]
    first = max(map(len, names))
    wide = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = [[" " * first, *names], *([name, *row] for name, row in zip(names, rows, strict=True))]
    return "\n".join(
        [f"{scored.task.name}: rows by label (downwards) and prediction (across)"]
        + [
            "  ".join(
                [f"  {name:<{first}}", *(f"{c:>{w}}" for c, w in zip(cells, wide, strict=True))]
            )
            for name, *cells in lines
        ]
    )


def _mistakes(scored: ScoredTask) -> str:
    """The commonest pairs of label and wrong prediction."""
    names, wrong = class_names(scored.config), scored.order_of_errors
    pairs = torch.stack([scored.labels[wrong], scored.predictions[wrong]]).long()
    kinds, counts = pairs.unique(dim=1, return_counts=True)
    commonest = counts.argsort(descending=True, stable=True)[:_NUM_MISTAKES].tolist()
    lines = [f"{scored.task.name}: the commonest mistakes, label and prediction"]
    for i in commonest:
        label, prediction = (shown(names[number], 40) for number in kinds[:, i].tolist())
        lines.append(f"  {int(counts[i]):>7,}  {label} -> {prediction}")
    return "\n".join(lines)
