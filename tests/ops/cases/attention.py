"""attention."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from sbrrt_fast.ops.attention import attention, attention_reference
from sbrrt_fast.ops.dropout import dropout_mask_reference
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason, writing
from tests.ops.op_checks import BF16, F32, F64, RNG, SITE
from tests.ops.triton_only import ATTENTION

F16 = torch.float16
DTYPES = {"fp32": F32, "fp16": F16, "bf16": BF16}
MANY = tuple(1 + (7 * i) % 23 for i in range(200))

# lengths, heads, head dimension, dtype, p, max_positions, layout
SAMPLES = {
    "one token": ((1,), 2, 32, F32, 0.1, 512, "dense"),
    "one token without dropout": ((1,), 1, 64, BF16, 0.0, 512, "dense"),
    "primes": ((2, 13, 31, 7), 3, 32, F32, 0.1, 67, "dense"),
    "primes in a half": ((3, 17, 37, 5), 2, 64, BF16, 0.1, 61, "dense"),
    "whole vectors": ((16, 32, 8), 1, 64, F32, 0.0, 512, "dense"),
    "empty sequences": ((0, 5, 0, 0, 9, 0), 2, 32, F32, 0.1, 512, "dense"),
    "no tokens": ((0, 0), 2, 32, F32, 0.1, 512, "dense"),
    "no sequences": ((), 2, 64, BF16, 0.1, 512, "dense"),
    "fused in a half": ((18, 10, 25), 2, 32, BF16, 0.1, 512, "fused"),
    "gaps between rows": ((19, 6), 2, 32, F32, 0.1, 512, "strided"),
    "transposed": ((19, 6), 2, 32, BF16, 0.1, 512, "transposed"),
}
NATIVE = {
    "512 tokens": ((512,), 2, 64, F32, 0.1, 512, "dense"),
    "512 tokens in a half": ((512,), 1, 32, BF16, 0.1, 512, "dense"),
    "primes, five heads": ((3, 17, 37, 5), 5, 64, BF16, 0.1, 61, "dense"),
    "primes, two blocks": ((2, 13, 31, 7, 61), 3, 32, F32, 0.1, 67, "dense"),
    "batch of 200": (MANY, 1, 32, F32, 0.1, 512, "dense"),
    "two blocks of queries": ((131, 257), 1, 64, BF16, 0.1, 509, "dense"),
    "edges of blocks in a half": ((48, 49, 97, 1), 2, 32, BF16, 0.1, 512, "dense"),
    "fused projection": ((18, 40, 25), 4, 32, F32, 0.1, 512, "fused"),
    "fused, four heads": ((18, 40, 25), 4, 64, BF16, 0.0, 512, "fused"),
}
TRITON = {
    "whole tile of 64": ((64, 63), 1, 32, BF16, 0.1, 512, "dense"),
    "tile of 128": ((128, 3, 101), 1, 32, BF16, 0.1, 512, "dense"),
    "many sequences": (MANY[:25], 1, 32, BF16, 0.1, 512, "dense"),
    "loop in fp32": ((67, 0, 5), 1, 64, F32, 0.1, 67, "dense"),
    "loop in a half": ((129, 191), 1, 64, BF16, 0.1, 509, "dense"),
    "512 tokens": ((512,), 1, 32, BF16, 0.1, 512, "dense"),
}
# Edges of tiles (16), of chunks (32 and 64), of the kernels for up to 32, 64 and 128 tokens, and of
# those for batches of which most sequences are far shorter than the longest.
EDGES = {
    "one tile": ((1, 15, 16, 3), 5),
    "two tiles": ((17, 31, 32, 1), 3),
    "three tiles": ((48, 33, 18), 3),
    "four tiles": ((64, 63, 2), 1),
    "a chunk and one": ((65, 1), 2),
    "the longest short one": ((128, 127, 14), 1),
    "the shortest long one": ((129, 30, 0, 1), 2),
    "whole chunks": ((192, 64), 1),
    "a chunk's last row": ((193, 130), 1),
    "a long one among short ones": ((150, 4, 9, 3, 17, 1, 2), 2),
    "one of two tiles among short ones, by chunks": ((40, 1, 2, 3), 3),
    "short chunks": ((96, 33, 32, 31, 1, 1, 0, 1, 1, 1), 1),
}
CUDA = {
    f"{name}, {head_dim}, {precision}": (lengths, heads, head_dim, dtype, p, positions, "dense")
    for i, (name, (lengths, heads)) in enumerate(EDGES.items())
    for head_dim in (32, 64)
    for precision, dtype in DTYPES.items()
    for p, positions in [[(0.1, 512), (0.1, 197), (0.0, 512)][(i + head_dim // 32) % 3]]
}
ORDERS = {
    f"{lengths}, {head_dim}, {precision}": (
        lengths, num_heads, head_dim, dtype, 0.1, positions, "dense"
    )
    for lengths, num_heads, positions in [
        *[((30, 16, 5), 3, 512), ((40, 9), 1, 512), ((70, 7), 1, 509)],
        *[((131,), 1, 512), ((70, 2, 3, 1), 1, 509)],
    ]
    for head_dim in (32, 64)
    for precision, dtype in DTYPES.items()
}  # fmt: skip


class AttentionCase(Case):
    def __init__(self, sample: tuple):
        lengths, self.num_heads, head_dim, dtype, self.p, self.max_positions, layout = sample
        num_tokens, hidden = sum(lengths), self.num_heads * head_dim
        draw = Drawn(num_tokens * hidden, layout)
        self.inputs = [draw.rows(num_tokens, hidden, dtype=dtype) for _ in range(3)]
        if layout == "fused":
            self.inputs = list(torch.cat(self.inputs, dim=1).split(hidden, dim=1))
        self.grad = draw.rows(num_tokens, hidden, dtype=dtype)
        self.tangents = {i: draw.rows(num_tokens, hidden, dtype=dtype) for i in range(3)}
        self.lengths, self.max_length = lengths, max([1, *lengths])
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        self.rows = torch.arange(len(lengths)) * 5 + 2

    @property
    def constants(self):
        return self.cu_seqlens, RNG, self.rows

    def function(self, backend):
        batch, p, positions = (self.max_length, self.num_heads), self.p, self.max_positions
        return lambda query, key, value, cu_seqlens, rng, rows: attention(
            query, key, value, cu_seqlens, *batch, p, rng, SITE, rows, positions, backend=backend
        )

    def stock(self, *inputs):
        """The definition, sequence by sequence."""
        outs = [sum(x[:0] for x in inputs)]
        for n, (start, end) in enumerate(pairwise(self.cu_seqlens.tolist())):
            q, k, v = (self.heads(x[start:end]) for x in inputs)
            all_keys = torch.ones(1, end - start, dtype=torch.bool)
            out = attention_reference(q[None], k[None], v[None], all_keys, self.factors(n, v.dtype))
            outs.append(out[0].transpose(0, 1).flatten(1))
        return torch.cat(outs)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.num_heads, -1)).transpose(0, 1)  # [head, position, feature]

    def kept(self, n: int) -> Tensor:
        """Which probabilities of sequence n are kept, bool [1, head, query, key]."""
        length, size = self.lengths[n], self.max_positions
        heads = self.rows[n] * self.num_heads + torch.arange(self.num_heads)[:, None]
        offsets = ((heads * size + torch.arange(length)) * size).flatten()
        mask = dropout_mask_reference(offsets, max(length, 1), self.p, RNG, SITE, F32)
        return mask.view(1, self.num_heads, length, max(length, 1))[..., :length] != 0

    def factors(self, n: int, dtype: torch.dtype) -> Tensor | None:
        return self.kept(n).to(dtype) * (1 / (1 - self.p)) if self.p > 0 else None

    def logsumexp(self) -> Tensor:
        """Of each query's scores, float64 [num_tokens, num_heads]."""
        q, k, _ = self.exact_inputs()
        scale, results = (q.shape[1] // self.num_heads) ** -0.5, [q.new_zeros(0, self.num_heads)]
        for start, end in pairwise(self.cu_seqlens.tolist()):
            scores = self.heads(q[start:end]) @ self.heads(k[start:end]).transpose(1, 2) * scale
            results.append(scores.logsumexp(-1).t())
        return torch.cat(results)


def good() -> dict:
    names = ("query", "key", "value", "grad", "query_tangent", "key_tangent", "value_tangent")
    return (
        {name: torch.zeros(5, 64) for name in (*names, "out", "dquery", "dkey", "dvalue")}
        | {"logsumexp": torch.zeros(5, 2), "rows": torch.tensor([4, 1])}
        | {"cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32)}
        | {"max_length": 3, "num_heads": 2, "p": 0.1, "rng": RNG, "site": SITE}
        | {"max_positions": 16}
    )


def starts(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


CPP, TRITON_ONLY = ("sbrrt",), ("sbrrt_triton",)
BACKWARD, JVP = ("backward",), ("jvp",)
BAD = (
    Bad("query", torch.zeros(5, 64, dtype=F64), TypeError, "query must have dtype float32"),
    Bad(
        "query", torch.zeros(5, 2, 32), ValueError, "query must (be a dense .* .num_tok|have 2 dim)"
    ),
    Bad("key", torch.zeros(5, 64, dtype=BF16), TypeError, "key must have dtype"),
    Bad("key", torch.zeros(4, 64), ValueError, "key must be a dense tensor of shape"),
    Bad("value", torch.zeros(5, 64, device="meta"), ValueError, "must be on"),
    Bad("num_heads", 0, ValueError, r"num_heads must be in \[1, 2\^16\), got 0"),
    Bad("num_heads", 3, ValueError, "the head dimension, .* must be 32 or 64, got 64 / 3"),
    Bad("num_heads", 2**61, ValueError, r"num_heads must be in \[1, 2\^16\)"),
    Bad("cu_seqlens", torch.tensor([0, 2, 5]), TypeError, "cu_seqlens must have dtype"),
    Bad("cu_seqlens", starts(), ValueError, "cu_seqlens must be a dense"),
    Bad("cu_seqlens", starts(1, 2, 5), ValueError, "must start with 0", CPP),
    Bad("cu_seqlens", starts(0, 6, 5), ValueError, "rise by at most", CPP),
    Bad("cu_seqlens", starts(0, 3, 2), ValueError, "changes by -1", CPP),
    Bad("cu_seqlens", starts(0, -1, 5), ValueError, "changes by -1", CPP),
    Bad("cu_seqlens", starts(0, -(2**31), 5), ValueError, "changes by -2", CPP),
    Bad("cu_seqlens", starts(0, 2, 4), ValueError, "must end with the", CPP),
    Bad("max_length", 2, ValueError, "rise by at most max_length, 2,", CPP),
    Bad("max_length", 513, ValueError, r"max_length must be in \[0, 512\], got 513"),
    Bad("max_length", -1, ValueError, r"max_length must be in \[0, 512\], got -1"),
    Bad("p", 1.0, ValueError, r"p must be in \[0, 1\)"),
    Bad("p", float("nan"), ValueError, r"p must be in \[0, 1\)"),
    Bad("rng", torch.tensor([1.0, 2.0]), TypeError, "rng must have dtype"),
    Bad("rng", torch.tensor([1]), ValueError, "rng must be a dense tensor of shape"),
    Bad("rng", torch.tensor([1, -1]), ValueError, "step, the second value of rng", CPP),
    Bad("site", 2**32, ValueError, r"site must be in \[0, 2\^32\)"),
    Bad("rows", torch.tensor([0]), ValueError, "(rows|cu_seqlens) must be a dense"),
    Bad("rows", torch.tensor([0, -1]), ValueError, "rows must not be negative", CPP),
    Bad("rows", torch.tensor([0, 2**62]), ValueError, r"must be below 2\^63", CPP),
    Bad("max_positions", 2, ValueError, "max_positions must be at least max_length"),
    Bad("max_positions", 2**40, ValueError, r"max_positions must be .* below 2\^31"),
    *(
        Bad(name, value, error, f"{name} must", CPP, parts)
        for names, parts in (
            (("grad", "out", "logsumexp"), BACKWARD),
            (("query_tangent", "key_tangent", "value_tangent", "logsumexp"), JVP),
        )
        for name in names
        for value, error in (
            (torch.zeros(5, 63), ValueError),
            (torch.zeros(5, 2, dtype=F64), TypeError),
        )
    ),
)


def _call(backend, dtype=F32, max_length=3, num_heads=2):
    x = torch.ones(5, 64, dtype=dtype)
    return attention(x, x, x, starts(0, 2, 5), max_length, num_heads, backend=backend)


def _differentiated_tangent(backend):
    x = torch.ones(5, 64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        attention(dual, x, x, starts(0, 2, 5), 3, 2, backend=backend)


REASONS = (
    Reason(lambda b: _call(b, dtype=F64), "query is float64, which runs on the reference"),
    Reason(lambda b: _call(b, num_heads=4), "the head dimension, 64 / 4, is neither 32 nor 64"),
    Reason(lambda b: _call(b, max_length=513), "max_length is 513, above 512"),
    Reason(_differentiated_tangent, "tangent of query is itself being differentiated"),
)

OP = Op(
    "attention", AttentionCase, SAMPLES, native=NATIVE, triton=TRITON, cuda=CUDA | ORDERS,
    small="fused in a half",
    repeated=("512 tokens", "primes in a half", "batch of 200", "loop in fp32"),
    orders=tuple(ORDERS), calls=writing("attention", "forward", "backward", "jvp"),
    sized=lambda n: (tuple(range(n)), 2, 32, F32, 0.1, 512, "dense"),  # the first is empty
    approximation=ATTENTION, good=good, bad=BAD, reasons=REASONS, warns=True,
)  # fmt: skip
