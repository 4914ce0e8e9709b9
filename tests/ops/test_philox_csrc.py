"""The C++ Philox ops against published vectors and an independent Philox in numpy."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from sbrrt_fast._extension import extension, extension_error
from tests.ops.op_checks import capabilities

assert extension is not None, extension_error
ops = torch.ops.sbrrt
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

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


def numpy_philox(counter: list, key: list) -> np.ndarray:
    """Four counter words (numbers or arrays) and two key words -> words [..., 4] uint32."""
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    low = np.uint64(0xFFFFFFFF)
    for i in range(10):
        key0 = np.uint64((key[0] + i * 0x9E3779B9) % 2**32)
        key1 = np.uint64((key[1] + i * 0xBB67AE85) % 2**32)
        left, right = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (right >> np.uint64(32)) ^ c1 ^ key0, right & low
        c2, c3 = (left >> np.uint64(32)) ^ c3 ^ key1, left & low
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def numpy_words(offsets: torch.Tensor, width: int, seed: int, step: int, site: int) -> np.ndarray:
    """Words [N, width] uint32 of elements offsets[n] + j, by the contract of dropout_mask."""
    elements = offsets.numpy().astype(np.uint64)[:, None] + np.arange(width, dtype=np.uint64)
    block = elements // np.uint64(4)
    key = [seed % 2**32, (seed >> 32) % 2**32]
    words = numpy_philox([block % np.uint64(2**32), block >> np.uint64(32), site, step], key)
    return np.take_along_axis(words, (elements % np.uint64(4)).astype(int)[..., None], -1)[..., 0]


def numpy_mask(words: np.ndarray, p: float, dtype: torch.dtype) -> torch.Tensor:
    kept = torch.from_numpy(words.astype(np.int64) >= math.floor(p * 2**32))
    scale = torch.tensor(1 / (1 - p), dtype=torch.float64).to(dtype)
    return torch.where(kept, scale, torch.zeros((), dtype=dtype))


# offsets, width, seed, step, site
SAMPLES = {
    "aligned": (torch.arange(9) * 64, 64, 1, 0, 0),
    "unaligned": (torch.tensor([3, 1, 2, 1027, 5]), 37, -1, 2**32 - 1, 2**32 - 1),
    "one element": (torch.tensor([6]), 1, 2**63 - 1, 5, 9),
    "overlapping rows": (torch.tensor([0, 1, 0, 4, 4]), 7, -(2**63), 1, 2),
    "beyond 32 bits": (torch.tensor([2**34 - 5, 2**62 + 3, 2**63 - 1 - 11]), 11, 77, 3, 4),
    "many narrow rows": (torch.randperm(3000) * 3, 5, 12345678901234567, 8, 1),
    "one long row": (torch.tensor([1]), 100_003, 5, 6, 7),
    "no rows": (torch.empty(0, dtype=torch.int64), 5, 1, 2, 3),
    "strided offsets": (torch.arange(40)[::3], 12, 4, 5, 6),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter, key, words):
    assert extension.philox4x32(counter, key) == words
    assert numpy_philox(counter, key).tolist() == words


def test_known_answer_through_the_op():
    words = ops.philox_bits(torch.tensor([0]), 4, torch.tensor([0, 0]), 0)
    assert (words.numpy().view(np.uint32)[0] == KNOWN_ANSWERS[0][2]).all()


@samples
def test_words_equal_numpy(sample):
    offsets, width, seed, step, site = sample
    words = ops.philox_bits(offsets, width, torch.tensor([seed, step]), site)
    assert words.dtype == torch.int32
    expected = numpy_words(offsets, width, seed, step, site)
    np.testing.assert_array_equal(words.numpy().view(np.uint32), expected)


@samples
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1 - 2**-32])
def test_mask_equals_numpy(sample, dtype, p):
    offsets, width, seed, step, site = sample
    mask = ops.dropout_mask(offsets, width, p, torch.tensor([seed, step]), site, dtype)
    expected = numpy_mask(numpy_words(offsets, width, seed, step, site), p, dtype)
    assert mask.dtype == dtype
    assert torch.equal(mask, expected)


def test_threshold_is_inclusive():
    rng, offsets = torch.tensor([3, 1]), torch.tensor([0])
    words = ops.philox_bits(offsets, 64, rng, 2).numpy().view(np.uint32)[0]
    word = int(np.sort(words)[32])
    for p, is_kept in ((word / 2**32, True), ((word + 1) / 2**32, False)):
        mask = ops.dropout_mask(offsets, 64, p, rng, 2, torch.float32)[0]
        assert bool(mask[int(np.flatnonzero(words == word)[0])] > 0) is is_kept


@pytest.mark.parametrize("p", [0.1, 0.9])
def test_kept_fraction_is_binomial(p):
    mask = ops.dropout_mask(
        torch.arange(512) * 512, 512, p, torch.tensor([11, 3]), 1, torch.float32
    )
    kept, count = int((mask > 0).sum()), mask.numel()
    assert abs(kept - count * (1 - p)) < 5 * math.sqrt(count * p * (1 - p))


@pytest.mark.parametrize("changed", ["seed", "high half of the seed", "step", "site"])
def test_every_key_part_changes_the_words(changed):
    seed = {"seed": 1, "high half of the seed": 2**32}.get(changed, 0)
    rng = torch.tensor([seed, int(changed == "step")])
    offsets = torch.arange(8) * 128
    words = ops.philox_bits(offsets, 128, rng, int(changed == "site"))
    agreement = (words == ops.philox_bits(offsets, 128, torch.tensor([0, 0]), 0)).float().mean()
    assert agreement < 0.01


@pytest.mark.parametrize("width", [384, 25])
def test_same_bits_for_any_number_of_threads(width):
    offsets, rng = torch.arange(4096) * 512 + 3, torch.tensor([5, 6])
    before, masks = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            masks.append(ops.dropout_mask(offsets, width, 0.1, rng, 7, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


DIGEST = """
import hashlib, torch
from sbrrt_fast._extension import extension
digest = hashlib.sha256()
for width in (64, 37):
    offsets, rng = torch.arange(300) * 101, torch.tensor([2**40 + 1, 3])
    for dtype in (torch.float32, torch.float64, torch.float16):
        mask = torch.ops.sbrrt.dropout_mask(offsets, width, 0.1, rng, 4, dtype)
        digest.update(mask.numpy().tobytes())
    digest.update(torch.ops.sbrrt.philox_bits(offsets, width, rng, 4).numpy().tobytes())
print(extension.build_info()["cpu_capability"], digest.hexdigest())
"""


def test_same_bits_for_every_instruction_set():
    digests = {}
    for capability in capabilities():
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
        command = [sys.executable, "-c", DIGEST]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        )
        name, digest = result.stdout.split()
        digests[name] = digest
    assert "plain" in digests
    assert len(set(digests.values())) == 1, digests


GOOD = {
    "offsets": torch.tensor([0, 8]),
    "width": 4,
    "p": 0.1,
    "rng": torch.tensor([1, 2]),
    "site": 3,
    "dtype": torch.float32,
}
BAD = [
    ("offsets", torch.tensor([0.0]), TypeError, "offsets must have dtype Long"),
    ("offsets", torch.tensor([0], dtype=torch.int32), TypeError, "offsets must have dtype Long"),
    ("offsets", torch.tensor(0), ValueError, r"offsets must be a dense tensor of shape \[N\]"),
    ("offsets", torch.tensor([[0]]), ValueError, r"offsets must be a dense .*got Long \[1, 1\]"),
    ("offsets", torch.tensor([4, -1]), ValueError, "offsets must not be negative"),
    ("offsets", torch.tensor([2**63 - 4]), ValueError, r"offsets \+ width must be below 2\^63"),
    ("width", 0, ValueError, "width must be at least 1, got 0"),
    ("width", -3, ValueError, "width must be at least 1, got -3"),
    ("p", 1.0, ValueError, r"p must be in \[0, 1\), got 1"),
    ("p", -0.1, ValueError, r"p must be in \[0, 1\), got -0.1"),
    ("p", math.nan, ValueError, r"p must be in \[0, 1\), got nan"),
    ("rng", torch.tensor([1, 2, 3]), ValueError, r"rng must be .*\(seed, step\), got Long \[3\]"),
    ("rng", torch.tensor([1.0, 2.0]), TypeError, "rng must have dtype Long"),
    ("rng", torch.tensor([1, -1]), ValueError, r"step, .*must be in \[0, 2\^32\), got -1"),
    ("rng", torch.tensor([1, 2**32]), ValueError, r"step, .*must be in \[0, 2\^32\)"),
    ("site", -1, ValueError, r"site must be in \[0, 2\^32\), got -1"),
    ("site", 2**32, ValueError, r"site must be in \[0, 2\^32\)"),
    ("dtype", torch.int32, TypeError, "dtype must be float32, float64, bfloat16 or float16"),
    ("dtype", torch.complex64, TypeError, "dtype must be float32"),
]


def call(name: str, arguments: dict) -> torch.Tensor:
    if name == "philox_bits":
        arguments = {key: arguments[key] for key in ("offsets", "width", "rng", "site")}
    return getattr(ops, name)(**arguments)


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    names = ["dropout_mask"] if argument in ("p", "dtype") else ["dropout_mask", "philox_bits"]
    for name in names:
        with pytest.raises(error, match=f"sbrrt::{name}: {message}"):
            call(name, {**GOOD, argument: value})


@pytest.mark.parametrize("argument", ["offsets", "rng"])
def test_mixed_devices_are_refused(argument):
    with pytest.raises(ValueError, match=r"must be on meta, got .*cpu"):
        call("dropout_mask", {**GOOD, argument: GOOD[argument].to("meta")})


@samples
def test_opcheck(sample):
    offsets, width, seed, step, site = sample
    rng = torch.tensor([seed, step])
    torch.library.opcheck(ops.philox_bits.default, (offsets, width, rng, site))
    torch.library.opcheck(
        ops.dropout_mask.default, (offsets, width, 0.1, rng, site, torch.bfloat16)
    )


def test_fake_result_refuses_bad_arguments():
    fake = {**GOOD, "offsets": GOOD["offsets"].to("meta"), "rng": GOOD["rng"].to("meta")}
    assert call("dropout_mask", fake).shape == (2, 4)
    for change in ({"width": 0}, {"p": 1.0}, {"dtype": torch.int8}):
        with pytest.raises((ValueError, TypeError, RuntimeError), match="sbrrt::dropout_mask"):
            call("dropout_mask", {**fake, **change})


def random_arguments(draw: random.Random) -> dict:
    """Arguments each of which is often wrong, in many ways."""
    num_rows = draw.choice([0, 1, 3, 17])
    offsets = [
        torch.tensor([draw.randrange(10**6) for _ in range(num_rows)], dtype=torch.int64),
        torch.full((num_rows,), draw.choice([-1, 2**62, 2**63 - 1, -(2**63)])),
        torch.zeros([draw.randrange(3) for _ in range(draw.randrange(4))], dtype=torch.int64),
        torch.zeros(num_rows, dtype=draw.choice([torch.int32, torch.float32, torch.bool])),
        torch.zeros(1, dtype=torch.int64).expand(5),
        torch.zeros(4, dtype=torch.int64).to_sparse(),
        torch.zeros(2, dtype=torch.int64, device="meta"),
        None,
    ]
    rng = [
        torch.tensor([draw.randrange(-(2**63), 2**63), draw.randrange(2**32)]),
        torch.tensor([1, draw.choice([-1, 2**32, -(2**63)])]),
        torch.zeros(draw.randrange(4), dtype=torch.int64),
        torch.zeros(2, 2, dtype=torch.int64).t(),
        torch.zeros(2),
        torch.zeros(2, dtype=torch.int64, device="meta"),
        "rng",
    ]
    few = [0.7] + [0.3 / (len(offsets) - 1)] * (len(offsets) - 1)
    return {
        "offsets": draw.choices(offsets, few)[0],
        "width": draw.choice([1, 2, 5, 64, 257, 0, -1, -(2**63), 2**62, 2**63 - 1, 1.5]),
        "p": draw.choice([0.0, 0.1, 0.999, 1.0, -1.0, math.inf, math.nan, "p"]),
        "rng": draw.choices(rng, [0.7] + [0.05] * (len(rng) - 1))[0],
        "site": draw.choice([0, 7, 2**32 - 1, 2**32, -1, 2**63 - 1, None]),
        "dtype": draw.choice([*DTYPES, torch.int64, torch.complex64, torch.quint8]),
    }


def test_fuzzed_calls_answer_or_raise():
    draw, num_answers = random.Random(1), 0
    for _ in range(4000):
        name, arguments = draw.choice(["dropout_mask", "philox_bits"]), random_arguments(draw)
        try:
            result = call(name, arguments)
        except (TypeError, ValueError, RuntimeError):
            continue
        assert result.shape == (arguments["offsets"].shape[0], arguments["width"])
        assert (result.device.type == "meta") == (arguments["rng"].device.type == "meta")
        if result.device.type == "meta" or result.numel() == 0:
            continue
        num_answers += 1
        (seed, step), site = arguments["rng"].tolist(), arguments["site"]
        words = numpy_words(arguments["offsets"], arguments["width"], seed, step, site)
        if name == "philox_bits":
            np.testing.assert_array_equal(result.numpy().view(np.uint32), words)
        else:
            assert torch.equal(result, numpy_mask(words, arguments["p"], arguments["dtype"]))
    assert num_answers > 100
