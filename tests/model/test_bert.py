"""The encoder in its two layouts, alone and among batch mates, in forward mode and in bf16."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.ops.attention import attention_reference
from sbrrt_fast.ops.layernorm import layernorm_reference
from tests.model.models import CONFIG, random_batch, random_model, stream_of

LENGTHS = [6, 1, 17, 9, 13, 2]


@pytest.mark.parametrize("pooling", ["mean", "cls", "cls_token"])
@pytest.mark.parametrize("drops", [False, True])
def test_packed_and_padded_agree_in_outputs_and_gradients(pooling, drops):
    model, batch = random_model(torch.float64, pooling), random_batch(LENGTHS)
    outputs, gradients = [], []
    for layout in (batch, batch.padded()):
        stream = stream_of(layout) if drops else None
        result = model("para", layout, stream)
        outputs.append(result)
        gradients.append(torch.autograd.grad(result.square().sum(), model.encoder.parameters()))
    assert torch.allclose(*outputs, rtol=1e-12, atol=1e-14)
    for packed, padded in zip(*gradients, strict=True):
        assert (packed - padded).norm() <= 1e-12 * padded.norm() + 1e-15


def test_a_sequence_does_not_see_its_batch_mates():
    model, batch = random_model(torch.float64), random_batch(LENGTHS)
    hidden = model.encoder.encode(model.embed(batch, stream_of(batch)), batch, stream_of(batch))
    start, stop = batch.cu_seqlens[2:4].tolist()
    alone = TokenBatch.from_packed(
        batch.input_ids[start:stop],
        batch.token_types[start:stop],
        batch.is_special[start:stop],
        torch.tensor([17]),
        batch.rows[2:3],
    )
    stream = stream_of(alone)
    expected = model.encoder.encode(model.embed(alone, stream), alone, stream)
    assert torch.allclose(hidden[start:stop], expected, rtol=1e-12, atol=1e-14)


def test_an_empty_batch_gives_empty_outputs():
    batch = random_batch([3])
    empty = TokenBatch.from_packed(
        batch.input_ids[:0],
        batch.token_types[:0],
        batch.is_special[:0],
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
    )
    assert random_model()("sst", empty).shape == (0, 5)


def test_dropout_drops_and_is_unbiased():
    model, batch = random_model(torch.float64), random_batch([30, 30])
    clean = model.embed(batch)
    kept = model.embed(batch, stream_of(batch))
    p = CONFIG.hidden_dropout_prob
    is_kept = kept != 0
    assert abs(is_kept.double().mean().item() - (1 - p)) < 5 * (p * (1 - p) / kept.numel()) ** 0.5
    assert torch.allclose(kept[is_kept], clean[is_kept] / (1 - p), rtol=1e-12)


def test_attention_by_hand():
    query, key, value = torch.randn(3, 1, 1, 2, 4, dtype=torch.float64)
    mask = torch.tensor([[True, True]])
    got = attention_reference(query, key, value, mask)[0, 0]
    for i in range(2):
        scores = (key[0, 0] @ query[0, 0, i]) / 2.0
        weights = scores.exp() / scores.exp().sum()
        assert torch.allclose(got[i], weights @ value[0, 0], rtol=1e-12)
    alone = attention_reference(query, key, value, torch.tensor([[True, False]]))
    assert torch.allclose(alone[0, 0], value[0, 0, :1].expand(2, 4), rtol=1e-12)


def encode_tangent(model, batch, embeddings, tangent):
    with forward_ad.dual_level():
        dual = model.encoder.encode(forward_ad.make_dual(embeddings, tangent), batch)
        return forward_ad.unpack_dual(dual)


def test_forward_mode_is_the_directional_derivative():
    model, batch = random_model(torch.float64), random_batch(LENGTHS)
    embeddings = model.embed(batch).detach()
    tangent = torch.randn_like(embeddings)
    with torch.no_grad():
        primal, change = encode_tangent(model, batch, embeddings, tangent)
        step = 1e-6
        plus, minus = (
            model.encoder.encode(embeddings + sign * step * tangent, batch) for sign in (1, -1)
        )
    numeric = (plus - minus) / (2 * step)
    assert torch.allclose(primal, model.encoder.encode(embeddings, batch), rtol=1e-12)
    assert (change - numeric).norm() < 1e-8 * numeric.norm()


def test_the_tangent_s_gradient_is_whole():
    """Weight gradients of J t against those of a central difference: nothing is dropped."""
    model, batch = random_model(torch.float64), random_batch(LENGTHS)
    embeddings = model.embed(batch).detach()
    tangent, weights = torch.randn(2, *embeddings.shape, dtype=torch.float64)
    change = encode_tangent(model, batch, embeddings, tangent).tangent
    parameters = list(model.encoder.encoder.parameters())
    exact = torch.autograd.grad((change * weights).sum(), parameters, allow_unused=True)
    step = 1e-5
    plus, minus = (
        model.encoder.encode(embeddings + sign * step * tangent, batch) for sign in (1, -1)
    )
    numeric = torch.autograd.grad(
        ((plus - minus) * weights).sum() / (2 * step), parameters, allow_unused=True
    )
    for a, b in zip(exact, numeric, strict=True):
        a = torch.zeros_like(b) if a is None else a
        assert (a - b).norm() <= 1e-6 * b.norm() + 1e-6


def test_bf16_autocast_keeps_the_residual_stream_in_float32():
    model, batch = random_model(), random_batch(LENGTHS)
    expected = model.double()("sst", batch)
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model.embed(batch, stream_of(batch))
        hidden = model.encoder.encode(embeddings, batch, stream_of(batch))
        outputs = model("sst", batch)
    assert hidden.dtype == outputs.dtype == torch.float32
    error = (outputs - expected).norm() / expected.norm()
    assert 1e-6 < error < 0.05  # bf16 was used, and was enough


def test_layernorm_statistics_are_float32():
    x = (torch.randn(5, 64) * 0.01 + 30).to(torch.bfloat16)
    weight, shift = torch.ones(64), torch.zeros(64)
    got = layernorm_reference(x, weight, shift, 1e-12)
    expected = layernorm_reference(x.double(), weight.double(), shift.double(), 1e-12)
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), expected, atol=1e-3)
