"""Sentence vectors of texts: what the encoder's pooling makes of them, before any head."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast import _extension
from sbrrt_fast.data.assemble import assemble
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.training.finite import check_loaded
from sbrrt_fast.training.scores.evaluate import length_batches
from sbrrt_fast.training.step.autograd_pass import autocast

_ADVICE = "use another model, or train again with a lower optimizer.learning_rate"


@torch.no_grad()
def sentence_vectors(
    encoder: MiniBert, texts: TokenizedTask, *, precision: str = "fp32", packed: bool = True
) -> Tensor:
    """The pooled vectors of single texts, in order, without dropout.

    Args:
        texts: of a task with ``encoding="single"``. precision, packed: see ``predict_outputs``.

    Returns:
        float32 [num_examples, hidden] on the CPU.

    Raises:
        WeightsError: a weight is not finite, or a vector is not.
    """
    check_loaded(encoder.state_dict(), "the encoder", _ADVICE)
    device = next(encoder.parameters()).device
    vectors = torch.empty(texts.num_examples, encoder.config.hidden_size)
    if _extension.emulates_bf16(device):
        precision = "fp32"
    with autocast(device, precision):
        for examples in length_batches(texts, texts.num_examples):
            batch = assemble(texts, examples).to(device)
            vectors[examples] = _pooled(encoder, batch if packed else batch.padded()).cpu()
    if not torch.isfinite(vectors).all():
        raise WeightsError(f"a sentence vector is nan or infinite; {_ADVICE}")
    return vectors


def _pooled(encoder: MiniBert, batch: TokenBatch) -> Tensor:
    """Float32 [num_sequences, hidden], whatever the encoder computes in."""
    embeddings = encoder.embed(batch)
    hidden = encoder.encode(embeddings, batch)
    with torch.autocast(hidden.device.type, enabled=False):
        return encoder.pool(hidden.to(torch.float32), batch)
