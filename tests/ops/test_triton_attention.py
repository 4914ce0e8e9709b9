"""Packed attention in Triton: values, gradients, tangents, masks, launches, and how it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.errors import BackendError
from sbrrt_fast.kernels import attention as kernels
from sbrrt_fast.kernels import attention_loop, attention_parts, attention_tile
from sbrrt_fast.kernels.attention_launch import TILES, choose
from sbrrt_fast.kernels.launch import recording
from sbrrt_fast.ops._backend import backends
from sbrrt_fast.ops.attention import attention
from tests.ops.op_checks import (
    F32,
    F64,
    RNG,
    SITE,
    assert_as_good_as_stock,
    float_tangent,
    gradients,
)
from tests.ops.test_attention import Case
from tests.ops.triton_only import ATTENTION, DEVICE, equal_but_for_order

ops = torch.ops.sbrrt_triton
F16, BF16 = torch.float16, torch.bfloat16
interpreted = pytest.mark.skipif(not backends.INTERPRETED, reason="changes an interpreted kernel")

# lengths, heads, head dimension, dtype, p, max_positions, layout
SAMPLES = {
    "one token": ([1], 2, 32, F32, 0.1, 512, "dense"),
    "one token without dropout": ([1], 1, 64, F16, 0.0, 512, "dense"),
    "primes": ([2, 13, 31, 7], 3, 32, F32, 0.1, 67, "dense"),
    "primes in fp16": ([3, 17, 37, 5], 2, 64, F16, 0.1, 61, "dense"),
    "whole tiles": ([16, 32, 8], 1, 64, F32, 0.0, 512, "dense"),
    "whole tile of 64": ([64, 63], 1, 32, F16, 0.1, 512, "dense"),
    "tile of 128": ([128, 3, 101], 1, 32, F16, 0.1, 512, "dense"),
    "many sequences": ([1 + (7 * i) % 23 for i in range(25)], 1, 32, F16, 0.1, 512, "dense"),
    "loop in fp32": ([67, 0, 5], 1, 64, F32, 0.1, 67, "dense"),
    "loop in fp16": ([129, 191], 1, 64, F16, 0.1, 509, "dense"),
    "512 tokens": ([512], 1, 32, F16, 0.1, 512, "dense"),
    "empty sequences": ([0, 5, 0, 0, 9, 0], 2, 32, F32, 0.1, 512, "dense"),
    "no tokens": ([0, 0], 2, 32, F32, 0.1, 512, "dense"),
    "no sequences": ([], 2, 64, F16, 0.1, 512, "dense"),
    "fused projection": ([18, 10, 25], 2, 32, F16, 0.1, 512, "fused"),
    "gaps between rows": ([19, 6], 2, 32, F32, 0.1, 512, "strided"),
    "transposed": ([19, 6], 2, 32, F16, 0.1, 512, "transposed"),
}
if not backends.INTERPRETED:
    SAMPLES |= {f"{name} in bf16": (*s[:3], BF16, *s[4:]) for name, s in SAMPLES.items()}
# The interpreter warns of what rows beyond a sequence's end compute; they are not written.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
SMALL = SAMPLES["fused projection"]


class TritonCase(Case):
    """A sample that runs where the kernels do."""

    def ours(self, *inputs):
        inputs, batch, dropout = (
            [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in part]
            for part in (inputs, self.batch, self.dropout)
        )
        return attention(*inputs, *batch, *dropout, backend="triton").cpu()

    def arguments(self):
        everything = [*self.inputs, *self.batch, *self.dropout]
        return [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in everything]

    def everything(self):
        """Results, gradients and tangents of the ops themselves, on the CPU."""
        *inputs, cu_seqlens, max_length, heads, p, rng, site, rows, positions = self.arguments()
        batch = cu_seqlens, max_length, heads, p, rng, site, rows, positions
        tangents = [t.to(DEVICE) for t in self.tangents]
        out, logsumexp = ops.attention_forward(*inputs, *batch)
        grads = ops.attention_backward(self.grad.to(DEVICE), *inputs, out, logsumexp, *batch)
        tangent = ops.attention_jvp(*inputs, *tangents, logsumexp, *batch)
        return [x.cpu() for x in (out, logsumexp, *grads, tangent)]


@samples
def test_values_gradients_and_tangents(sample):
    case = TritonCase(sample)
    exact, exact_tangents = case.exact_inputs(), [t.double() for t in case.tangents]
    out, _, *grads, tangent = case.everything()
    assert_as_good_as_stock(out, case.stock(*case.inputs), case.stock(*exact), ATTENTION)
    stock_grads = gradients(case.stock, case.inputs, case.grad)
    exact_grads = gradients(case.stock, exact, case.grad.double())
    for triple in zip(grads, stock_grads, exact_grads, strict=True):
        assert_as_good_as_stock(*triple, ATTENTION)
    stock_tangent = float_tangent(case.stock, case.inputs, case.tangents)
    exact_tangent = float_tangent(case.stock, exact, exact_tangents)
    assert_as_good_as_stock(tangent, stock_tangent, exact_tangent, ATTENTION)


@pytest.mark.parametrize("name", ["primes", "loop in fp32", "primes in fp16"])
def test_logsumexp(name):
    case = TritonCase(SAMPLES[name])
    q, k, _ = case.exact_inputs()
    logsumexp, start = case.everything()[1], 0
    for length in case.lengths:
        rows = slice(start, start + length)
        scores = case.heads(q[rows]) @ case.heads(k[rows]).transpose(1, 2)
        exact = (scores * (q.shape[1] // case.num_heads) ** -0.5).logsumexp(-1).t()
        torch.testing.assert_close(logsumexp[rows].double(), exact, rtol=1e-6, atol=2e-6)
        start += length


# a tile, a loop over blocks that end within the sequence, at its end and just before it
MASKS = [(29, 64), (29, 61), (32, 64), (97, 97), (96, 512), (65, 67)]


def drawn_mask(length: int, max_positions: int, **change) -> tuple[torch.Tensor, torch.Tensor]:
    """The mask that the kernel applies to a second sequence's probabilities, and the reference's.

    With equal probabilities and one-hot values, an output is an element of a mask.
    """
    case = TritonCase(([4, length], 2, 64, F32, 0.3, max_positions, "dense"))
    expected = case.kept(1)[0]
    names = ["p", "rng", "site", "rows", "size"]
    case.dropout = [change.get(*pair) for pair in zip(names, case.dropout, strict=True)]
    zeros, parts = torch.zeros_like(case.inputs[0]), []
    for first in range(0, length, 64):
        values = zeros.clone()
        keys = range(first, min(first + 64, length))
        for head in range(2):
            values[[4 + k for k in keys], [head * 64 + k - first for k in keys]] = 1
        parts.append(case.heads(case.ours(zeros, zeros, values)[4:])[..., : len(keys)] != 0)
    return torch.cat(parts, dim=-1), expected


@pytest.mark.parametrize(("length", "max_positions"), MASKS)
def test_masks_are_those_of_dropout_mask(length, max_positions):
    assert torch.equal(*drawn_mask(length, max_positions))


@pytest.mark.parametrize(
    "change",
    [
        {"site": SITE + 1},
        {"rng": RNG + torch.tensor([0, 1])},
        {"rows": torch.tensor([2, 8])},
        {"size": 68},
        {"p": 0.31},
    ],
    ids=str,
)
def test_another_mask_is_told_apart(change):
    assert not torch.equal(*drawn_mask(31, 67, **change))


@triton.jit
def _flip_last_of_block(
    dropout, place, o_query, i_key, NUM_KEYS: tl.constexpr, ALIGNED: tl.constexpr
):
    """A planted bug: the last query's mask is wrong at the last key of each block."""
    m_kept = attention_parts.kept_probabilities(dropout, place, o_query, i_key, NUM_KEYS, ALIGNED)
    m_edge = (tl.arange(0, NUM_KEYS) == NUM_KEYS - 1)[None, :]
    return m_kept ^ (m_edge & (o_query == place[3] - 1)[:, None])


@interpreted
@pytest.mark.parametrize(
    ("length", "module", "num_blocks"), [(32, attention_tile, 1), (96, attention_loop, 3)]
)
def test_a_planted_bug_at_the_edge_of_a_block_is_caught(length, module, num_blocks, monkeypatch):
    monkeypatch.setattr(module, "kept_probabilities", _flip_last_of_block)
    got, expected = drawn_mask(length, 512)
    assert (got ^ expected).sum() == 2 * num_blocks
    sample = ([length], 1, 32, F32, 0.3, 512, "dense")
    with pytest.raises(AssertionError):
        test_values_gradients_and_tangents(sample)


def test_masks_do_not_depend_on_packing_or_batch_mates():
    case = TritonCase(SAMPLES["primes"])
    out = case.ours(*case.inputs)
    start, end = case.cu_seqlens[2:4].tolist()
    alone = TritonCase(SAMPLES["primes"])
    alone.batch = (torch.tensor([0, end - start], dtype=torch.int32), *case.batch[1:])
    alone.dropout = (*case.dropout[:3], case.rows[2:3], case.max_positions)
    assert equal_but_for_order(alone.ours(*(x[start:end] for x in case.inputs)), out[start:end])


@pytest.mark.parametrize("name", ["primes in fp16", "loop in fp32"])
def test_the_same_bits_every_time(name):
    case = TritonCase(SAMPLES[name])
    first = case.everything()
    for _ in range(1 if backends.INTERPRETED else 250):
        assert all(torch.equal(a, b) for a, b in zip(first, case.everything(), strict=True))


def test_large_scores_neither_overflow_nor_vanish():
    case = TritonCase(SAMPLES["primes"])
    inputs = [case.inputs[0] * 20, case.inputs[1] * 20, case.inputs[2]]
    exact = case.stock(*(x.double() for x in inputs))
    assert_as_good_as_stock(case.ours(*inputs), case.stock(*inputs), exact, ATTENTION)


def test_nan_stays_in_its_sequence():
    case = TritonCase(SAMPLES["primes"])
    clean = case.ours(*case.inputs)
    for i in range(3):
        inputs = [x.clone() for x in case.inputs]
        inputs[i][5, 3] = float("nan")  # in the second sequence, tokens 2 ... 14, head 0
        out = case.ours(*inputs)
        assert out[5].isnan().any()
        assert torch.equal(out[:2], clean[:2])
        assert torch.equal(out[15:], clean[15:])
        assert torch.equal(out[:, 32:], clean[:, 32:])


def test_every_result_is_written(monkeypatch):
    """Results start as NaN, as fresh memory may."""
    empty = torch.Tensor.new_empty

    def poisoned(self, *args, **kwargs):
        fresh = empty(self, *args, **kwargs)
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    for name in ("primes", "loop in fp32"):
        assert not any(x.isnan().any() for x in TritonCase(SAMPLES[name]).everything())


def test_autograd():
    case = TritonCase(SMALL)
    _, _, *grads, tangent = case.everything()
    for got, expected in zip(gradients(case.ours, case.inputs, case.grad), grads, strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(float_tangent(case.ours, case.inputs, case.tangents), tangent)
    with torch.no_grad():  # else the tangent could be differentiated
        pushed = torch.func.jvp(case.ours, tuple(case.inputs), tuple(case.tangents))[1]
    assert torch.equal(pushed, tangent)
    assert torch.equal(torch.func.vjp(case.ours, *case.inputs)[1](case.grad)[2], grads[2])


def test_opcheck():
    case = TritonCase(SMALL)
    *inputs, cu_seqlens, max_length, heads, p, rng, site, rows, positions = case.arguments()
    batch = cu_seqlens, max_length, heads, p, rng, site, rows, positions
    out, logsumexp = ops.attention_forward(*inputs, *batch)
    grad, tangents = out.clone(), [x.clone() for x in inputs]
    torch.library.opcheck(ops.attention_forward.default, (*inputs, *batch))
    torch.library.opcheck(ops.attention_backward.default, (grad, *inputs, out, logsumexp, *batch))
    torch.library.opcheck(ops.attention_jvp.default, (*inputs, *tangents, logsumexp, *batch))


def test_compiled_in_one_graph():
    case = TritonCase(SMALL)
    compiled = torch.compile(case.ours, backend="aot_eager", fullgraph=True)
    got = gradients(compiled, case.inputs, case.grad)
    for a, b in zip(got, gradients(case.ours, case.inputs, case.grad), strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_is_refused():
    case = TritonCase(SMALL)
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    out = case.ours(*leaves)
    (first, *_) = torch.autograd.grad(out, leaves, case.grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


REASONS = [
    ({}, F64, "query is float64, which runs on the reference"),
    ({"num_heads": 4}, F32, "the head dimension, 64 / 4, is neither 32 nor 64"),
    ({"max_length": 513}, F32, "max_length is 513, above 512"),
]


@pytest.mark.parametrize(("change", "dtype", "reason"), REASONS)
def test_backend_choice(change, dtype, reason):
    case = TritonCase(SMALL)
    names = ["cu_seqlens", "max_length", "num_heads"]
    arguments = {**dict(zip(names, case.batch, strict=True)), **change}
    arguments["cu_seqlens"] = case.cu_seqlens.to(DEVICE)
    with pytest.raises(BackendError, match=reason):
        attention(*(x.to(DEVICE, dtype) for x in case.inputs), **arguments, backend="triton")


@interpreted
def test_the_interpreter_is_never_chosen_unasked():
    case = TritonCase(SMALL)
    chosen = attention.__globals__["_op"].choose("auto", *case.inputs, *case.batch, *case.dropout)
    assert chosen.backend == "reference"  # float16, which the C++ ops do not take
    with pytest.raises(BackendError, match="bfloat16, which Triton's interpreter truncates"):
        attention(*(x.to(BF16) for x in case.inputs), *case.batch, backend="triton")


NAMES = ["query", "key", "value", "cu_seqlens", "max_length", "num_heads"]
NAMES += ["p", "rng", "site", "rows", "max_positions"]
BAD = [
    ("query", torch.zeros(5, 64, dtype=F64), TypeError, "query must have dtype float32, bfloat16"),
    ("query", torch.zeros(5, 2, 32), ValueError, "query must have 2 dimensions, got"),
    ("key", torch.zeros(5, 64, dtype=BF16), TypeError, r"key must have dtype torch\.float32"),
    ("key", torch.zeros(4, 64), ValueError, r"key must be a dense tensor of shape \[5, 64\]"),
    ("value", torch.zeros(5, 64, device="meta"), ValueError, "value must be on"),
    ("num_heads", 0, ValueError, r"num_heads must be in \[1, 2\^16\), got 0"),
    ("num_heads", 3, ValueError, "the head dimension, .* must be 32 or 64, got 64 / 3"),
    ("cu_seqlens", torch.tensor([0, 2, 5]), TypeError, r"cu_seqlens must have dtype torch\.int32"),
    ("cu_seqlens", torch.zeros(0, dtype=torch.int32), ValueError, "cu_seqlens must be a dense"),
    ("max_length", 513, ValueError, r"max_length must be in \[0, 512\], got 513"),
    ("max_length", -1, ValueError, r"max_length must be in \[0, 512\], got -1"),
    ("p", 1.0, ValueError, r"p must be in \[0, 1\)"),
    ("p", float("nan"), ValueError, r"p must be in \[0, 1\)"),
    ("rng", torch.tensor([1.0, 2.0]), TypeError, r"rng must have dtype torch\.int64"),
    ("rng", torch.tensor([1]), ValueError, r"rng must be a dense tensor of shape \[2\]"),
    ("site", 2**32, ValueError, r"site must be in \[0, 2\^32\)"),
    ("rows", torch.tensor([0]), ValueError, r"cu_seqlens must be a dense tensor of shape \[2\]"),
    ("max_positions", 2, ValueError, "max_positions must be at least max_length"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    matrices = [torch.zeros(5, 64) for _ in range(3)]
    starts, rows = torch.tensor([0, 2, 5], dtype=torch.int32), torch.tensor([4, 1])
    good = [*matrices, starts, 3, 2, 0.1, RNG, SITE, rows, 16]
    good[NAMES.index(argument)] = value
    with recording() as launches:  # nothing may run, so nothing needs the device
        for op, extra in (("forward", []), ("backward", [matrices[0], torch.zeros(5, 2)])):
            inputs = [matrices[0], *good[:3], *extra] if extra else good[:3]
            with pytest.raises(error, match=f"attention_{op}: {message}"):
                getattr(kernels, op)(*inputs, *good[3:])
        with pytest.raises(error, match=f"attention_jvp: {message}"):
            kernels.jvp(*good[:3], *matrices, torch.zeros(5, 2), *good[3:])
    assert not launches


@pytest.mark.parametrize(
    ("direction", "dtype", "unaligned", "longest"),
    [
        ("forward", BF16, False, 128),
        ("backward", F16, False, 128),
        ("jvp", BF16, False, 64),
        ("forward", F16, True, 64),
        ("backward", BF16, True, 64),
        ("forward", F32, False, 32),
        ("backward", F32, True, 32),
        ("jvp", F32, False, 32),
    ],
)
def test_the_smallest_tile_that_holds_the_longest_sequence(direction, dtype, unaligned, longest):
    for length in range(513):
        blocks = choose(direction, length, dtype, unaligned)
        if length <= longest:
            assert blocks.is_tile and blocks.key == min(tile for tile in TILES if tile >= length)
            assert blocks.query == blocks.key or (direction, blocks.key) == ("forward", 128)
        else:
            assert blocks is None if direction == "backward" else not blocks.is_tile


def test_a_batch_of_other_sizes_compiles_nothing():
    """All that Triton compiles for is equal: constants, and numbers it may specialise."""
    launched = []
    for lengths in ([17, 32, 1], [16, 30, 20, 25, 16, 21]):
        num_tokens, num_sequences = sum(lengths), len(lengths)
        fused = torch.empty(num_tokens, 3 * 64, dtype=F16, device="meta")
        starts = torch.empty(num_sequences + 1, dtype=torch.int32, device="meta")
        rows = torch.empty(num_sequences, dtype=torch.int64, device="meta")
        rng = torch.empty(2, dtype=torch.int64, device="meta")
        matrices = fused.split(64, dim=1)
        batch = starts, max(lengths), 2, 0.1, rng, num_tokens, rows, 512
        with recording() as launches:
            out, logsumexp = kernels.forward(*matrices, *batch)
            kernels.backward(out, *matrices, out, logsumexp, *batch)
            kernels.jvp(*matrices, *matrices, logsumexp, *batch)
        launched.append(launches)
    for one, other in zip(*launched, strict=True):
        assert replace(one, arguments=()) == replace(other, arguments=())
        for name, a, b in zip(one.kernel.arg_names, one.arguments, other.arguments, strict=False):
            assert isinstance(a, torch.Tensor) or name == "site" or a == b
