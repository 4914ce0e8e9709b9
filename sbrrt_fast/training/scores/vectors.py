"""Sentence vectors of texts: what the encoder's pooling makes of them, before any head."""

from __future__ import annotations

import torch
from torch import Tensor

from sbrrt_fast import _extension
from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.load_encoder import Encoder
from sbrrt_fast.model.modes import without_dropout
from sbrrt_fast.training.finite import check_loaded
from sbrrt_fast.training.ranks.ranks import ONE_RANK, Ranks
from sbrrt_fast.training.scores.batches import computed_rows
from sbrrt_fast.training.step.autograd_pass import autocast

_ADVICE = "use another model, or train again with a lower optimizer.learning_rate"


@torch.no_grad()
def sentence_vectors(
    encoder: Encoder,
    texts: TokenizedTask,
    *,
    precision: str = "fp32",
    packed: bool = True,
    ranks: Ranks = ONE_RANK,
) -> Tensor:
    """The pooled vectors of single texts, in order, without dropout.

    Args:
        texts: of a task with ``encoding="single"``.
        precision, packed, ranks: see ``predict_outputs``.

    Returns:
        float32 [num_examples, hidden] on the CPU.

    Raises:
        WeightsError: a weight is not finite, or a vector is not.
        SbrrtError: the ranks have read different texts.
    """
    with ranks.together("reading the encoder"):
        check_loaded(encoder.state_dict(), "the encoder", _ADVICE)
    device, width = next(encoder.parameters()).device, encoder.config.hidden_size
    if _extension.emulates_bf16(device):
        precision = "fp32"

    def compute(batch: TokenBatch) -> Tensor:
        tokens = batch.to(device)
        return _pooled(encoder, tokens if packed else tokens.padded())

    with without_dropout(encoder), autocast(device, precision):
        vectors = computed_rows(
            texts, (width,), compute, num_rows=texts.num_examples, width=width, ranks=ranks
        )
    with ranks.together("computing sentence vectors"):
        if not torch.isfinite(vectors).all():
            raise WeightsError(f"a sentence vector is nan or infinite; {_ADVICE}")
    return vectors


def _pooled(encoder: Encoder, batch: TokenBatch) -> Tensor:
    """Float32 [num_sequences, hidden], whatever the encoder computes in."""
    embeddings = encoder.embed(batch)
    hidden = encoder.encode(embeddings, batch)
    with torch.autocast(hidden.device.type, enabled=False):
        return encoder.pool(hidden.to(torch.float32), batch)
