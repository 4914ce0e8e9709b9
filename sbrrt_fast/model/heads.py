"""Task heads: from pooled sentence vectors to outputs, their losses and their divergences.

Outputs are [num_examples, num_classes] logits for ``classes``, one logit [num_examples] for
``binary``, and values in training units [num_examples] for ``cosine`` and ``regression`` (see
``model.label_units``). They are computed in float32 (or float64) whatever the encoder's precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.model.label_units import LabelUnits
from sbrrt_fast.ops.symmetric_kl import bernoulli_logits

# Highest label of a cosine head in training units: that of STS-B, whose labels are 0 to 5. A label
# of another unit then has the same loss beside those of other tasks.
COSINE_HIGHEST = 5.0


def pair_features(u: Tensor, v: Tensor, kind: str) -> Tensor:
    """[u, v, |u - v|] (``concat_difference``, arXiv 1908.10084, section 3) or [u, v]."""
    parts = [u, v, (u - v).abs()] if kind == "concat_difference" else [u, v]
    return torch.cat(parts, dim=-1)


class LinearHead(nn.Module):
    """One linear layer for ``classes``, ``binary`` and ``regression``.

    Attributes:
        units: of ``regression``, else None; the range of labels until they are fitted to the
            training labels.
        class_weights: of the task's record, float32 [num_classes], else None.
    """

    def __init__(self, task: TaskConfig, hidden_size: int, pair_kind: str):
        super().__init__()
        self.is_siamese, self.pair_kind = task.encoding == "siamese", pair_kind
        num_vectors = {False: 1, True: 3 if pair_kind == "concat_difference" else 2}
        self.num_outputs = task.num_classes if task.head == "classes" else 1
        in_features = num_vectors[self.is_siamese] * hidden_size
        self.classifier = nn.Linear(in_features, self.num_outputs)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.is_vector = task.head == "classes"
        self.units: LabelUnits | None = None
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", _class_weights(task), persistent=False)
        if task.head == "regression":
            low, high = task.label_range
            self.units = LabelUnits(low / 2 + high / 2, high / 2 - low / 2, persistent=True)

    def forward(self, pooled: Tensor) -> Tensor:
        """[num_sequences, hidden] -> outputs."""
        if self.is_siamese:
            pooled = pair_features(pooled[0::2], pooled[1::2], self.pair_kind)
        outputs = self.classifier(pooled)
        return outputs if self.is_vector else outputs.squeeze(-1)


class CosineHead(nn.Module):
    """cos(u, v) times the highest label, in training units; it has no parameters."""

    class_weights = None

    def __init__(self, task: TaskConfig):
        super().__init__()
        self.units = LabelUnits(0.0, task.label_range[1] / COSINE_HIGHEST, persistent=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """[2 * num_examples, hidden] -> [num_examples], in training units."""
        return COSINE_HIGHEST * F.cosine_similarity(pooled[0::2], pooled[1::2], dim=-1, eps=1e-6)


def build_head(task: TaskConfig, hidden_size: int, pair_kind: str) -> nn.Module:
    """The head of a task record."""
    if task.head == "cosine":
        return CosineHead(task)
    return LinearHead(task, hidden_size, pair_kind)


def task_loss(
    task: TaskConfig, outputs: Tensor, labels: Tensor, class_weights: Tensor | None = None
) -> Tensor:
    """Mean loss of a batch: of each example's, times the weight of its class.

    Args:
        outputs: the head's.
        labels: float [num_examples], whole numbers for classes, values in training units.
        class_weights: [num_classes] factors on examples, on the device of ``outputs``; 1 if None.

    Returns:
        a scalar.
    """
    reduction = "mean" if class_weights is None else "none"
    if task.loss_name == "cross_entropy":
        targets, smoothing = labels.to(torch.int64), task.label_smoothing
        loss = F.cross_entropy(outputs, targets, reduction=reduction, label_smoothing=smoothing)
    elif task.loss_name == "binary_cross_entropy":
        targets = _smoothed(labels.to(outputs.dtype), task.label_smoothing)
        loss = F.binary_cross_entropy_with_logits(outputs, targets, reduction=reduction)
    else:
        return F.mse_loss(outputs, labels.to(outputs.dtype))
    if class_weights is None:
        return loss
    return (class_weights.to(loss.dtype)[labels.to(torch.int64)] * loss).mean()


def uncertain_loss(task: TaskConfig, loss: Tensor, log_variance: Tensor) -> Tensor:
    """A task's loss L weighed by its homoscedastic uncertainty, with the log variance s.

    ``exp(-s) L + s / 2`` of classes, ``exp(-s) L / 2 + s / 2`` of values: Kendall, Gal and Cipolla,
    "Multi-task learning using uncertainty to weigh losses" (arXiv 1705.07115), equations 7 and 10.
    """
    return uncertainty_scale(task) * torch.exp(-log_variance) * loss + log_variance / 2


def uncertainty_scale(task: TaskConfig) -> float:
    """The factor on ``exp(-s)`` in ``uncertain_loss``."""
    return 0.5 if task.is_regression else 1.0


def _smoothed(labels: Tensor, smoothing: float) -> Tensor:
    """Labels 0 and 1 moved towards a half (arXiv 1512.00567, section 7)."""
    return labels * (1 - smoothing) + smoothing / 2 if smoothing else labels


def _class_weights(task: TaskConfig) -> Tensor | None:
    assert task.class_weights != "balanced", "data.labels.complete_tasks comes first"
    weights = task.class_weights
    return None if weights is None else torch.tensor(weights, dtype=torch.float32)


def class_logits(task: TaskConfig, outputs: Tensor) -> Tensor:
    """Outputs as logits over classes [num_examples, num_classes], for divergences."""
    return bernoulli_logits(outputs) if task.head == "binary" else outputs


def probabilities(task: TaskConfig, outputs: Tensor) -> Tensor | None:
    """Probabilities of the classes, float32 [num_examples, num_classes]; None for other heads.

    A binary head has two classes: 0 and 1, whose probability is the logit's sigmoid.

    Args:
        outputs: the head's.
    """
    if task.is_regression:
        return None
    return class_logits(task, outputs.double()).softmax(dim=-1).to(torch.float32)


def predictions(task: TaskConfig, outputs: Tensor) -> Tensor:
    """What is scored and written, float32: class numbers, or values in the units of outputs."""
    if task.head == "classes":
        return outputs.argmax(dim=-1).to(torch.float32)
    if task.head == "binary":
        return (outputs > 0).to(torch.float32)
    return outputs.to(torch.float32)
