"""embed."""

from __future__ import annotations

import torch

from sbrrt_fast.ops.dropout import dropout_mask_reference
from sbrrt_fast.ops.embed import embed, embed_reference
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason, vector_dtype, writing
from tests.ops.op_checks import BF16, F32, F64, RNG, SITE, float_tangent
from tests.ops.triton_only import NORM

EPS = 1e-12
F16 = torch.float16

# tokens, hidden, rows of the word and the position table, dtype of the tables, p, layout
SAMPLES = {
    "one token": (1, 384, 50, 8, F32, 0.1, "dense"),
    "every token the same": (65, 64, 1, 1, F32, 0.1, "dense"),
    "primes": (37, 131, 31, 17, F32, 0.5, "dense"),
    "primes in a half": (37, 37, 31, 17, BF16, 0.1, "dense"),
    "no dropout": (9, 384, 40, 20, F32, 0.0, "dense"),
    "no tokens": (0, 64, 5, 5, F32, 0.1, "dense"),
    "gaps between rows": (20, 96, 30, 9, F32, 0.1, "strided"),
    "transposed": (19, 33, 7, 11, F32, 0.1, "transposed"),
    "one feature": (5, 1, 3, 3, F32, 0.1, "dense"),
}
NATIVE = {
    "512 tokens": (512, 384, 1000, 512, F32, 0.1, "dense"),
    "bert-base": (33, 768, 100, 64, F32, 0.1, "dense"),
    "200 tokens the same": (200, 64, 1, 1, F32, 0.1, "dense"),
}
TRITON = {
    "bert-base": (9, 768, 100, 64, F32, 0.1, "dense"),
    "bert-base in a half": (5, 768, 100, 64, BF16, 0.1, "dense"),
}
KERNELS = {
    f"{name}, {dtype}": (43, width, 7, 60, dtype, 0.1, "dense")  # tokens of two chunks
    for dtype in (F32, BF16, F16)
    for name, width in {"narrow": 384, "wide": 1024, "any": 37}.items()
}
CUDA = KERNELS | {
    "more tokens than blocks hold": (2053, 4, 90, 40, F32, 0.1, "dense"),
    "widest": (3, 2048, 5, 5, F32, 0.1, "dense"),
}


class EmbedCase(Case):
    def __init__(self, sample: tuple):
        tokens, hidden, num_words, num_positions, dtype, self.p, layout = sample
        draw, vector = Drawn(tokens * hidden, layout), vector_dtype(dtype)
        sizes = (num_words, num_positions, 2)
        self.tokens = [draw.indices(n, tokens) for n in sizes]
        self.inputs = [
            *(draw.rows(n, hidden, dtype=dtype) for n in sizes),
            draw(hidden, dtype=vector, scale=0.2, shift=1),
            draw(hidden, dtype=vector),
        ]
        self.grad = draw.rows(tokens, hidden, dtype=dtype)
        self.offsets = torch.arange(tokens) * (2 * hidden) + hidden % 4

    @property
    def constants(self):
        return *self.tokens, RNG, self.offsets

    def factors(self, dtype=F32):
        """Dropout's, [tokens, hidden]."""
        width = self.grad.shape[1]
        return dropout_mask_reference(self.offsets, width, self.p, RNG, SITE, dtype)

    def function(self, backend):
        p = self.p
        return lambda word, position, type_, weight, shift, ids, places, types, rng, offsets: embed(
            ids, places, types, word, position, type_, weight, shift, EPS, p, rng, SITE, offsets,
            backend=backend,
        )  # fmt: skip

    def stock(self, *inputs):
        dtype = inputs[0].dtype
        kept = (self.factors() != 0).to(dtype) * (1 / (1 - self.p))
        weight, shift = (v.to(torch.promote_types(dtype, F32)) for v in inputs[3:])
        out = embed_reference(*self.tokens, *inputs[:3], weight, shift, EPS, kept)
        return out.to(dtype)


def good() -> dict:
    tables = {"word": (3, 8), "position": (4, 8), "type": (2, 8)}
    order = torch.tensor([[0, 1], [1, 0], [0, 1]])
    return (
        {"ids": torch.tensor([0, 2]), "positions": torch.tensor([3, 1])}
        | {"types": torch.tensor([0, 1]), "order": order}
        | {name: torch.zeros(size) for name, size in tables.items()}
        | {f"d{name}": torch.zeros(size) for name, size in tables.items()}
        | {name: torch.zeros(8) for name in ("weight", "shift", "dweight", "dshift")}
        | {"grad": torch.zeros(2, 8), "out": torch.zeros(2, 8)}
        | {"mean": torch.zeros(2), "rstd": torch.ones(2)}
        | {"eps": EPS, "p": 0.1, "rng": RNG, "site": SITE, "offsets": torch.tensor([0, 8])}
    )


CPP = ("sbrrt",)
FORWARD = ("forward",)
BAD = (
    Bad("ids", torch.tensor([0, 3]), ValueError, r"ids\[1\] = 3 is not a row of its table", CPP),
    Bad("ids", torch.tensor([-1, 0]), ValueError, r"ids\[0\] = -1 is not a row of its table", CPP),
    Bad("ids", torch.tensor([0.0, 1.0]), TypeError, "ids must have dtype"),
    Bad("ids", torch.tensor([[0, 1]]), ValueError, r"ids must be a dense .* \[num_tokens\]", CPP),
    Bad("positions", torch.tensor([0, 4]), ValueError, r"positions\[1\] = 4 is not a row", CPP),
    Bad("positions", torch.tensor([0]), ValueError, r"positions must be .* \[2\]"),
    Bad("types", torch.tensor([2, 0]), ValueError, r"types\[0\] = 2 is not a row", CPP),
    Bad("types", torch.tensor([[0], [1]]), ValueError, r"types must be .* \[2\]"),
    Bad("word", torch.zeros(3), ValueError, "word must (be a dense tensor|have 2 dimensions)"),
    Bad("word", torch.zeros(3, 8, dtype=F64), TypeError, "word must have dtype float32"),
    Bad("position", torch.zeros(4, 7), ValueError, r"position must be .* \[4, 8\]"),
    Bad("type", torch.zeros(8), ValueError, "type must (be a dense tensor|have 2 dimensions)"),
    Bad("type", torch.zeros(2, 8).int(), TypeError, "type must have dtype"),
    Bad("weight", torch.zeros(7), ValueError, r"weight must be a dense tensor of shape \[8\]"),
    Bad("shift", torch.zeros(7), ValueError, r"shift must be a dense tensor of shape \[8\]"),
    Bad("shift", torch.zeros(8, device="meta"), ValueError, "must be on"),
    Bad("eps", -1.0, ValueError, "eps must be finite and not negative"),
    Bad("eps", float("nan"), ValueError, "eps must be finite and not negative"),
    Bad("p", 1.0, ValueError, r"p must be in \[0, 1\)"),
    Bad("rng", torch.tensor([1]), ValueError, "rng must be a dense"),
    Bad("site", 2**32, ValueError, r"site must be in \[0, 2\^32\)"),
    Bad("offsets", torch.tensor([0, -8]), ValueError, "offsets must not be negative", CPP),
    Bad("grad", torch.zeros(3), ValueError, "grad must (be a dense|have 2 dim)"),
    Bad("mean", torch.zeros(3), ValueError, "mean must be a dense"),
    Bad("rstd", torch.zeros(3), ValueError, "rstd must be a dense"),
    Bad("order", torch.zeros(2, 2).long(), ValueError, r"order must be a dense tensor of shape"),
    Bad("order", torch.zeros(3, 2).int(), TypeError, "order must have dtype"),
)


def _call(backend, dtype=F32):
    word, index, vector = torch.ones(5, 8, dtype=dtype), torch.zeros(3).long(), torch.ones(8)

    def of_word(word):
        others = torch.ones(5, 8), torch.ones(5, 8), vector, vector
        return embed(index, index, index, word, *others, EPS, backend=backend)

    return of_word(word) if dtype is F64 else float_tangent(of_word, [word], [word])


REASONS = (
    Reason(lambda backend: _call(backend, F64), "word is float64, which runs on the reference"),
    Reason(_call, "word has a tangent"),
)

OP = Op(
    "embed", EmbedCase, SAMPLES, native=NATIVE, triton=TRITON, cuda=CUDA,
    small="primes in a half",
    repeated=("512 tokens", "primes in a half", "every token the same"), orders=tuple(KERNELS),
    calls=writing("embed", "forward", "backward"), weights=(0, 1, 2, 3, 4),
    sized=lambda tokens: (tokens, 64, 101, 512, F32, 0.1, "dense"),
    approximation=NORM, good=good, bad=BAD, reasons=REASONS, has_tangent=False,
)  # fmt: skip
