"""The losses of a batch and their gradients: of the masked tokens' rows and of the pairs' [CLS].

Only these rows go through the heads. The encoder's passes see their gradients as those of the last
hidden states; the decoder's is that of the whole word table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sbrrt_fast.pretraining.batches import MaskedBatch
from sbrrt_fast.pretraining.model import PretrainingModel
from sbrrt_fast.training.step.written_out_model import DTYPES

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class HeadGradients:
    """What a batch's losses leave.

    Attributes:
        terms: detached scalars: ``masked_words/loss`` and ``/accuracy``, with pairs also
            ``next_sentence/loss`` and ``/accuracy``, and ``pretraining/total``.
        hidden: [num_tokens, hidden], gradient of the last hidden states.
        parameters: gradients by id, of the heads and, dense, of the word table.
    """

    terms: Terms
    hidden: Tensor
    parameters: dict[int, Tensor]


def head_gradients(
    model: PretrainingModel,
    hidden: Tensor,
    batch: MaskedBatch,
    precision: str = "fp32",
    heads_alone: bool = False,
) -> HeadGradients:
    """The losses of a batch and their gradients.

    Args:
        hidden: [num_tokens, hidden], last hidden states; their graph is not followed.
        batch: on the model's device. precision: ``bf16`` has bf16 matrix products.
        heads_alone: without the word table's gradient.
    """
    firsts = batch.tokens.cu_seqlens[batch.pairs].long()
    rows = [hidden.detach().index_select(0, x) for x in (batch.masked, firsts)]
    parameters = model.head_parameters() + ([] if heads_alone else [model.words])
    with torch.enable_grad():
        leaves = [x.requires_grad_() for x in rows]
        losses, terms = row_losses(model, *leaves, batch, precision)
        total = sum(losses)
        grads = torch.autograd.grad(total, [*leaves, *parameters], materialize_grads=True)
    grad_hidden = torch.zeros_like(hidden)
    for place, grad in zip((batch.masked, firsts), grads[:2], strict=True):
        # a [CLS] is never masked, so no row is in both
        grad_hidden.index_copy_(0, place, grad)
    terms = {**terms, "pretraining/total": total}
    pairs = zip(parameters, grads[2:], strict=True)
    return HeadGradients(
        {name: value.detach() for name, value in terms.items()},
        grad_hidden,
        {id(p): grad for p, grad in pairs},
    )


def row_losses(
    model: PretrainingModel,
    masked: Tensor,
    firsts: Tensor,
    batch: MaskedBatch,
    precision: str = "fp32",
) -> tuple[list[Tensor], Terms]:
    """The loss terms, and all of them with accuracies by name.

    Args:
        masked: hidden states of the masked tokens. firsts: of the pairs' [CLS].
    """
    logits = model.cls.predictions(masked, model.words, DTYPES[precision])
    losses, terms = [], {}
    _add("masked_words", logits, batch.targets, losses, terms)
    if model.cls.seq_relationship is not None:
        logits = model.cls.seq_relationship(model.pooler(firsts))
        _add("next_sentence", logits, batch.labels, losses, terms)
    return losses, terms


def _add(name: str, logits: Tensor, targets: Tensor, losses: list[Tensor], terms: Terms) -> None:
    """Means over the rows; 0 without any."""
    count = max(len(targets), 1)
    losses.append(F.cross_entropy(logits, targets, reduction="sum") / count)
    terms[f"{name}/loss"] = losses[-1]
    terms[f"{name}/accuracy"] = (logits.detach().argmax(-1) == targets).sum() / count
