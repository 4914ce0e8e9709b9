"""dropout_mask and philox_bits, against an independent Philox in numpy."""

from __future__ import annotations

import math

import numpy as np
import torch

from sbrrt_fast.ops.dropout import dropout_mask, philox_bits
from tests.ops.cases.base import Bad, Case, Op, Reason
from tests.ops.op_checks import BF16, F32, F64, RNG, SITE

F16 = torch.float16


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
PLACES = {
    "aligned": (tuple(range(0, 9 * 64, 64)), 64, 1, 0, 0),
    "unaligned": ((3, 1, 2, 1027, 5), 37, -1, 2**32 - 1, 2**32 - 1),
    "one element": ((6,), 1, 2**63 - 1, 5, 9),
    "overlapping rows": ((0, 1, 0, 4, 4), 7, -(2**63), 1, 2),
    "beyond 32 bits": ((2**34 - 5, 2**62 + 3, 2**63 - 1 - 11), 11, 77, 3, 4),
    "whole blocks": ((0, 1, 2, 3, 1027, 2**34 - 5), 24, 2**63 - 1, 7, 2**32 - 1),
    "no rows": ((), 5, 1, 2, 3),
    "strided offsets": (tuple(range(0, 40, 3)), 12, 4, 5, 6),
}
NATIVE_PLACES = {
    "many narrow rows": (tuple(3 * (7 * i % 3000) for i in range(3000)), 5, 2**53 + 1, 8, 1),
    "one long row": ((1,), 100_003, 5, 6, 7),
    "several threads": (tuple(range(3, 4096 * 512, 512)), 25, 5, 6, 7),
}
TRITON_PLACES = {"a long row": ((2**34 + 1, 5), 1033, -7, 2**31 + 5, 9)}
PROBABILITIES = (0.1, 0.0, 0.5, 1 - 2**-32)
DTYPES = (F32, F64, BF16, F16)


def offsets_of(offsets: tuple[int, ...]) -> torch.Tensor:
    """int64 [N]; every other element of what lies in memory."""
    return torch.tensor(offsets, dtype=torch.int64).repeat_interleave(2)[::2]


class OffsetsCase(Case):
    """Random numbers of elements, without an input that is computed with."""

    inputs: list = []  # noqa: RUF012 - there are none

    def __init__(self, sample: tuple):
        offsets, self.width, self.seed, self.step, self.site = sample[:5]
        self.offsets, self.rng = offsets_of(offsets), torch.tensor([self.seed, self.step])

    @property
    def constants(self):
        return self.offsets, self.rng

    def words(self) -> np.ndarray:
        return numpy_words(self.offsets, self.width, self.seed, self.step, self.site)

    def check(self, ours, stock, exact, approximation):
        for mine, truth in zip(ours, exact, strict=True):
            assert mine.dtype == truth.dtype and torch.equal(mine, truth)


class BitsCase(OffsetsCase):
    def function(self, backend):
        width, site = self.width, self.site
        return lambda offsets, rng: philox_bits(offsets, width, rng, site, backend=backend)

    def stock(self):
        return torch.from_numpy(self.words().view(np.int32))


class MaskCase(OffsetsCase):
    """``settings``: pairs of a probability and a dtype."""

    def __init__(self, sample: tuple):
        super().__init__(sample)
        self.settings = [(p, sample[5]) for p in PROBABILITIES]

    def function(self, backend):
        width, site, settings = self.width, self.site, self.settings
        return lambda offsets, rng: [
            dropout_mask(offsets, width, p, rng, site, dtype, backend=backend)
            for p, dtype in settings
        ]

    def stock(self):
        words = self.words()
        return [numpy_mask(words, p, dtype) for p, dtype in self.settings]


CPP = ("sbrrt",)
BITS_BAD = (
    Bad("offsets", torch.tensor([0.0, 1.0]), TypeError, "offsets must have dtype"),
    Bad("offsets", torch.tensor([0, 1]).int(), TypeError, "offsets must have dtype"),
    Bad("offsets", torch.tensor(0), ValueError, "offsets must be a dense tensor of shape"),
    Bad("offsets", torch.tensor([[0, 1]]), ValueError, "offsets must be a dense"),
    Bad("offsets", torch.tensor([4, -1]), ValueError, "offsets must not be negative", CPP),
    Bad("offsets", torch.tensor([0, 2**63 - 4]), ValueError, r"offsets \+ width must be", CPP),
    Bad("offsets", torch.tensor([0, 8], device="meta"), ValueError, "must be on"),
    Bad("rng", torch.tensor([1, 2, 3]), ValueError, "rng must be a dense"),
    Bad("rng", torch.tensor([1.0, 2.0]), TypeError, "rng must have dtype"),
    Bad("rng", torch.tensor([1, 2], device="meta"), ValueError, "must be on"),
    Bad("rng", torch.tensor([1, -1]), ValueError, r"step, .*must be in \[0, 2\^32\), got -1", CPP),
    Bad("rng", torch.tensor([1, 2**32]), ValueError, r"step, .*must be in \[0, 2\^32\)", CPP),
    Bad("site", -1, ValueError, r"site must be in \[0, 2\^32\), got -1"),
    Bad("site", 2**32, ValueError, r"site must be in \[0, 2\^32\)"),
)  # fmt: skip
MASK_BAD = (
    *BITS_BAD,
    Bad("p", 1.0, ValueError, r"p must be in \[0, 1\), got 1"),
    Bad("p", -0.1, ValueError, r"p must be in \[0, 1\), got -0.1"),
    Bad("p", math.nan, ValueError, r"p must be in \[0, 1\), got nan"),
    Bad("out", torch.zeros(2, 4).int(), TypeError, "out must .*float32"),
    Bad("out", torch.zeros(2, 4, dtype=torch.complex64), TypeError, "out must .*float32"),
    Bad("out", torch.zeros(2, 0), ValueError, "width"),
)


def good(dtype: torch.dtype = F32) -> dict:
    offsets = torch.tensor([0, 8])
    given = {"offsets": offsets, "p": 0.1, "rng": RNG, "site": SITE}
    return given | {"out": torch.zeros(2, 4, dtype=dtype)}


def _in_float64(backend):
    return dropout_mask(torch.arange(3), 4, 0.1, RNG, 0, F64, backend=backend)


BITS = Op(
    "philox_bits", BitsCase, PLACES, native=NATIVE_PLACES, triton=TRITON_PLACES,
    small="unaligned", repeated=("several threads", "unaligned"),
    orders=("unaligned", "whole blocks"),
    sized=lambda rows: (tuple(range(0, 64 * rows, 64)), 64, 1, 2, 3),
    good=lambda: good(torch.int32), bad=BITS_BAD, is_differentiated=False,
)  # fmt: skip
MASK = Op(
    "dropout_mask", MaskCase,
    {f"{name}, {dtype}".replace("torch.", ""): (*place, dtype)
     for name, place in PLACES.items() for dtype in (F32, BF16)},
    native={f"{name}, {dtype}".replace("torch.", ""): (*place, dtype)
            for name, place in NATIVE_PLACES.items() for dtype in DTYPES},
    cpu={f"{name}, {dtype}".replace("torch.", ""): (*place, dtype)
         for name, place in PLACES.items() for dtype in (F64, F16)},
    cuda={f"{name}, {dtype}".replace("torch.", ""): (*place, dtype)
          for name, place in PLACES.items() for dtype in (F64, F16)},
    triton={f"{name}, {F32}": (*place, F32) for name, place in TRITON_PLACES.items()},
    small="unaligned, bfloat16",
    repeated=("several threads, bfloat16", "unaligned, bfloat16"),
    orders=tuple(f"{name}, {dtype}".replace("torch.", "")
                 for name in ("unaligned", "whole blocks") for dtype in DTYPES),
    sized=lambda rows: (tuple(range(0, 64 * rows, 64)), 64, 1, 2, 3, F32),
    good=good, bad=MASK_BAD, is_differentiated=False,
    reasons=(Reason(_in_float64, "float64, which the reference makes", ("triton",)),),
)  # fmt: skip
