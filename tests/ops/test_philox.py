"""Philox: published vectors, the contract of dropout_mask, the independence of its keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.ops.dropout import dropout_mask, philox_bits
from tests.ops.backends import DEVICES, backends_of
from tests.ops.cases.dropout import numpy_philox

assert extension is not None, extension_error
every_backend = backends_of("philox_bits", "reference")

# counter, key -> words: Random123's known answers for philox4x32-10
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def words(backend, offsets, width, seed=0, step=0, site=0):
    """uint32 [N, width]."""
    device = DEVICES.get(backend, "cpu")
    place, rng = (torch.tensor(x, device=device) for x in (offsets, [seed, step]))
    found = philox_bits(place, width, rng, site, backend=backend)
    return found.cpu().numpy().view(np.uint32)


def mask(backend, offsets, width, p, seed=0, step=0, site=0):
    device = DEVICES.get(backend, "cpu")
    place, rng = (torch.tensor(x, device=device) for x in (offsets, [seed, step]))
    return dropout_mask(place, width, p, rng, site, backend=backend).cpu()


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    assert extension.philox4x32(counter, key) == words
    assert numpy_philox(counter, key).tolist() == words


@every_backend
def test_known_answer_through_the_op(backend):
    assert words(backend, [0], 4)[0].tolist() == KNOWN_ANSWERS[0][2]


@every_backend
def test_threshold_is_inclusive(backend):
    found = words(backend, [0], 64, 3, 1, 2)[0]
    word = int(np.sort(found)[32])
    place = int(np.flatnonzero(found == word)[0])
    for p, is_kept in ((word / 2**32, True), ((word + 1) / 2**32, False)):
        assert bool(mask(backend, [0], 64, p, 3, 1, 2)[0, place] > 0) is is_kept


@pytest.mark.parametrize("p", [0.1, 0.9])
@every_backend
def test_kept_fraction_is_binomial(backend, p):
    kept = mask(backend, list(range(0, 512 * 512, 512)), 512, p, 11, 3, 1) > 0
    assert abs(int(kept.sum()) - kept.numel() * (1 - p)) < 5 * math.sqrt(kept.numel() * p * (1 - p))


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"seed": 2**32}, {"step": 1}, {"site": 1}], ids=str
)
@every_backend
def test_every_key_part_changes_the_words(backend, change):
    offsets = list(range(0, 8 * 128, 128))
    agreement = words(backend, offsets, 128, **change) == words(backend, offsets, 128)
    assert agreement.mean() < 0.01


@backends_of("philox_bits")
def test_a_width_of_0(backend):
    with pytest.raises(ValueError, match=r"philox_bits: .*(width|feature)"):
        words(backend, [0], 0)
