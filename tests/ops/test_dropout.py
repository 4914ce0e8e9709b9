"""Dropout as a function: bits, packing and order do not matter."""

from __future__ import annotations

import math

import pytest
import torch

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.model.dropout import NOISE_SITE, DropoutStream, attention_site
from sbrrt_fast.ops.dropout import dropout_mask, philox_bits, philox_normal

RNG = torch.tensor([0x1234_5678_9ABC_DEF0, 77])
MAX_POSITIONS, HEADS = 64, 3


def hidden_mask(stream: DropoutStream, width: int, p: float, site: int) -> torch.Tensor:
    p, rng, site, offsets = stream.hidden(width, p, site)
    return dropout_mask(offsets, width, p, rng, site)


def make_batch(lengths: list[int], rows: list[int]) -> TokenBatch:
    num_tokens = sum(lengths)
    return TokenBatch.from_packed(
        torch.arange(num_tokens) + 1,
        torch.zeros(num_tokens),
        torch.zeros(num_tokens, dtype=torch.bool),
        torch.tensor(lengths),
        torch.tensor(rows),
    )


# widths and offsets around the block of 4; offsets past 32 bits
@pytest.mark.parametrize(
    ("offsets", "width"),
    [([0], 4), ([0, 4, 8], 8), ([1, 6, 1000003], 7), ([2**34 + 1, 5], 33), ([3], 1)],
)
@pytest.mark.parametrize("seed", [0, 1, -1, 2**40 + 3])
def test_reference_and_cpu_draw_the_same_bits(offsets, width, seed):
    rng = torch.tensor([seed, 2**31 + 5])
    place = torch.tensor(offsets), width
    for backend in ("reference", "cpu"):
        got = philox_bits(*place, rng, 9, backend=backend)
        assert torch.equal(got, philox_bits(*place, rng, 9))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        masks = [
            dropout_mask(*place, 0.3, rng, 9, dtype, backend=backend)
            for backend in ("reference", "cpu")
        ]
        assert masks[0].dtype == dtype and torch.equal(*masks)


def test_mask_values_and_kept_fraction():
    p, count = 0.1, 400_000
    mask = dropout_mask(torch.arange(0, count, 400), 400, p, RNG, 3)
    kept = mask != 0
    assert torch.equal(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))
    deviation = math.sqrt(p * (1 - p) / count)
    assert abs(kept.double().mean().item() - (1 - p)) < 5 * deviation


def test_seed_step_and_site_each_change_the_mask():
    offsets = torch.arange(0, 4096, 64)
    base = dropout_mask(offsets, 64, 0.5, RNG, 3)
    others = [
        dropout_mask(offsets, 64, 0.5, RNG + torch.tensor([1, 0]), 3),
        dropout_mask(offsets, 64, 0.5, RNG + torch.tensor([2**32, 0]), 3),
        dropout_mask(offsets, 64, 0.5, RNG + torch.tensor([0, 1]), 3),
        dropout_mask(offsets, 64, 0.5, RNG, 4),
        dropout_mask(offsets + 4096, 64, 0.5, RNG, 3),
    ]
    for other in others:  # independent masks at p = .5 agree at half the places
        agreement = (base == other).double().mean().item()
        assert abs(agreement - 0.5) < 5 * math.sqrt(0.25 / base.numel())


@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_probability_outside_its_range(p):
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\)"):
        dropout_mask(torch.zeros(1, dtype=torch.int64), 4, p, RNG, 0)


def test_masks_do_not_depend_on_packing_or_batch_mates():
    batch, alone = make_batch([5, 11, 2], [4, 9, 6]), make_batch([11], [9])
    padded = batch.padded()
    streams = [DropoutStream(b, RNG, MAX_POSITIONS) for b in (batch, padded, alone)]
    hidden = [hidden_mask(s, 32, 0.4, 5) for s in streams]
    assert torch.equal(batch.pad(hidden[0])[batch.key_mask], padded.pad(hidden[1])[batch.key_mask])
    assert torch.equal(hidden[0][5:16], hidden[2])
    attention = [s.attention_factors(HEADS, 0.4, attention_site(1), torch.float32) for s in streams]
    assert torch.equal(attention[0], attention[1])
    assert torch.equal(attention[0][1], attention[2][0])
    noise = [s.normal(32) for s in streams]
    assert torch.equal(noise[0][5:16], noise[2])


def test_masks_do_not_depend_on_the_longest_batch_mate():
    short, long = make_batch([5, 7], [0, 1]), make_batch([5, 7, 20], [0, 1, 2])
    masks = [
        DropoutStream(b, RNG, MAX_POSITIONS).attention_factors(HEADS, 0.4, 1, torch.float32)
        for b in (short, long)
    ]
    assert torch.equal(masks[0], masks[1][:2, :, :7, :7])


def test_a_fork_is_independent_and_a_stream_repeats_itself():
    stream = DropoutStream(make_batch([30], [0]), RNG, MAX_POSITIONS)
    first = hidden_mask(stream, 64, 0.5, 2)
    assert torch.equal(first, hidden_mask(stream, 64, 0.5, 2))
    forked = hidden_mask(stream.fork(1), 64, 0.5, 2)
    assert abs((first == forked).double().mean().item() - 0.5) < 0.06
    assert stream.attention_factors(HEADS, 0.0, 1, torch.float32) is None


def test_normal_noise_is_standard_normal():
    noise = philox_normal(torch.arange(0, 400_000, 400), 400, RNG, NOISE_SITE).double()
    count = noise.numel()
    assert abs(noise.mean().item()) < 5 / math.sqrt(count)
    assert abs(noise.square().mean().item() - 1) < 5 * math.sqrt(2 / count)
    assert abs(noise.pow(4).mean().item() - 3) < 5 * math.sqrt(96 / count)
    pairs = noise.view(-1, 2)
    assert abs((pairs[:, 0] * pairs[:, 1]).mean().item()) < 5 / math.sqrt(count / 2)
    with pytest.raises(ValueError, match="multiple of 4"):
        philox_normal(torch.tensor([0]), 6, RNG, NOISE_SITE)
