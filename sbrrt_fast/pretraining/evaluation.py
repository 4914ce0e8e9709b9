"""Losses and accuracies on held-out text, whose masks are the same every time."""

from __future__ import annotations

import math

import numpy as np
import torch

from sbrrt_fast._extension import emulates_bf16
from sbrrt_fast.model.modes import without_dropout
from sbrrt_fast.pretraining.batches import Batches
from sbrrt_fast.pretraining.losses import row_losses
from sbrrt_fast.pretraining.model import PretrainingModel
from sbrrt_fast.pretraining.random_words import HELD_OUT, RandomRows
from sbrrt_fast.training.step.autograd_pass import autocast

_LARGEST = 700.0  # of a loss, whose exponential float64 holds


@torch.no_grad()
def evaluate(
    model: PretrainingModel, batches: Batches, seed: int, batch_size: int, precision: str = "fp32"
) -> dict[str, float]:
    """The model's ``masked_words/loss``, ``/accuracy`` and ``/perplexity`` on all rows, without
    dropout; with next sentences also ``next_sentence/loss`` and ``/accuracy``.

    Perplexity is e to the mean loss of a masked token. All are NaN where none is masked.

    Args:
        batches: of the held-out text. seed: of the masks. batch_size: sequences at once.
    """
    sums: dict[str, float] = {}
    counts = {"masked_words": 0, "next_sentence": 0}
    random_rows, device = RandomRows(seed, kind=HELD_OUT), model.encoder.device
    if emulates_bf16(device):
        precision = "fp32"
    with without_dropout(model):
        for first in range(0, batches.num_rows, batch_size):
            rows = np.arange(first, min(first + batch_size, batches.num_rows))
            batch = batches.batch(rows, random_rows, first).to(device)
            with autocast(device, precision):
                embeddings = model.encoder.embed(batch.tokens)
                hidden = model.encoder.encode(embeddings, batch.tokens).float()
            firsts = batch.tokens.cu_seqlens[batch.pairs].long()
            _, terms = row_losses(model, hidden[batch.masked], hidden[firsts], batch, precision)
            here = {"masked_words": len(batch.targets), "next_sentence": len(batch.labels)}
            for name, value in terms.items():
                head = name.partition("/")[0]
                sums[name] = sums.get(name, 0.0) + float(value) * here[head]
            counts = {head: count + here[head] for head, count in counts.items()}
    if not counts["next_sentence"]:
        sums = {name: x for name, x in sums.items() if name.startswith("masked_words/")}
    counts = {head: count or math.nan for head, count in counts.items()}
    scores = {name: total / counts[name.partition("/")[0]] for name, total in sums.items()}
    loss = scores["masked_words/loss"]
    return scores | {"masked_words/perplexity": math.exp(min(loss, _LARGEST))}
