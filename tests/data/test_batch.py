"""Packed batches one after the other, and pooling as a matrix."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.model.pooling import mean_pool, pooling_matrix
from tests.model.models import CONFIG, random_batch, random_model, stream_of

LENGTHS = ([5, 1, 9], [3], [12, 2])


def batches() -> list[TokenBatch]:
    torch.manual_seed(0)
    first, found = 0, []
    for lengths in LENGTHS:
        found.append(random_batch(lengths, first))
        first += len(lengths)
    return found


def test_joined_batches_are_the_batch_of_all_sequences():
    joined = TokenBatch.concatenate(batches())
    assert joined.cu_seqlens.tolist() == [0, 5, 6, 15, 18, 30, 32]
    assert joined.cu_seqlens.dtype == torch.int32
    assert joined.rows.tolist() == list(range(6))
    assert joined.max_length == 12
    lengths = torch.tensor([n for part in LENGTHS for n in part])
    assert torch.equal(joined.sequence, torch.repeat_interleave(torch.arange(6), lengths))
    expected = TokenBatch.from_packed(
        joined.input_ids, joined.token_types, joined.is_special, lengths, joined.rows
    )
    assert torch.equal(joined.positions, expected.positions)


@torch.no_grad()
def test_sequences_are_encoded_alike_alone_and_joined():
    """With dropout on: masks follow the rows, not the place in the batch."""
    model, parts = random_model(), batches()
    joined = TokenBatch.concatenate(parts)
    alone = [model.encoder.embed(part, stream_of(part)) for part in parts]
    alone = [
        model.encoder.encode(x, part, stream_of(part)) for x, part in zip(alone, parts, strict=True)
    ]
    stream = stream_of(joined)
    together = model.encoder.encode(model.encoder.embed(joined, stream), joined, stream)
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_words_are_each_once_and_tokens_sorted():
    batch = TokenBatch.concatenate(batches()).with_words()
    assert torch.equal(batch.words[batch.word_index], batch.input_ids)
    indices = batch.word_index, batch.positions, batch.token_types
    for order, index in zip(batch.token_order.view(3, -1), indices, strict=True):
        assert torch.equal(order, index.argsort(stable=True))
    assert batch.with_words() is batch
    assert batch.padded().token_order is None


def test_padded_batches_cannot_be_joined():
    with pytest.raises(AssertionError, match="packed"):
        TokenBatch.concatenate([part.padded() for part in batches()])


def test_the_pooling_matrix_pools():
    batch = TokenBatch.concatenate(batches())
    hidden = torch.randn(batch.num_tokens, CONFIG.hidden_size)
    assert torch.allclose(
        pooling_matrix(batch, "mean") @ hidden, mean_pool(hidden, batch), atol=1e-6
    )
    first = hidden[batch.cu_seqlens[:-1].long()]
    for pooling in ("cls", "cls_token"):
        assert torch.equal(pooling_matrix(batch, pooling) @ hidden, first)
