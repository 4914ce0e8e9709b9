"""Packed attention in C++: values, gradients, tangents, masks, and how it refuses."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

import pytest
import torch

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.attention import attention, attention_reference, packed_attention_reference
from sbrrt_fast.ops.dropout import dropout_mask
from tests.ops.op_checks import (
    BF16,
    F32,
    F64,
    RNG,
    SITE,
    assert_as_good_as_stock,
    float_tangent,
    fuzz,
    gradients,
    laid_out,
    num_threads,
    run_with_capability,
)

ops = torch.ops.sbrrt
MANY = [1 + (7 * i) % 23 for i in range(200)]

# lengths, heads, head dimension, dtype, p, max_positions, layout
SAMPLES = {
    "one token": ([1], 2, 32, F32, 0.1, 512, "dense"),
    "one token without dropout": ([1], 1, 64, BF16, 0.0, 512, "dense"),
    "512 tokens": ([512], 2, 64, F32, 0.1, 512, "dense"),
    "512 tokens in bf16": ([512], 1, 32, BF16, 0.1, 512, "dense"),
    "primes": ([2, 13, 31, 7, 61], 3, 32, F32, 0.1, 67, "dense"),
    "primes in bf16": ([3, 17, 37, 5], 5, 64, BF16, 0.1, 61, "dense"),
    "whole vectors": ([16, 32, 8, 4], 2, 64, F32, 0.0, 512, "dense"),
    "batch of 200": (MANY, 1, 32, F32, 0.1, 512, "dense"),
    "two blocks of queries": ([131, 257], 1, 64, BF16, 0.1, 509, "dense"),
    "empty sequences": ([0, 5, 0, 0, 9, 0], 2, 32, F32, 0.1, 512, "dense"),
    "no tokens": ([0, 0], 2, 32, F32, 0.1, 512, "dense"),
    "no sequences": ([], 2, 64, BF16, 0.1, 512, "dense"),
    "fused projection": ([18, 40, 25], 4, 32, F32, 0.1, 512, "fused"),
    "fused in bf16": ([18, 40, 25], 4, 64, BF16, 0.0, 512, "fused"),
    "gaps between rows": ([19, 6], 2, 32, F32, 0.1, 512, "strided"),
    "transposed": ([19, 6], 2, 32, BF16, 0.1, 512, "transposed"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


class Case:
    """Inputs of a sample, and the ways to compute."""

    def __init__(self, sample: tuple):
        lengths, self.num_heads, head_dim, dtype, self.p, max_positions, layout = sample
        num_tokens, hidden = sum(lengths), self.num_heads * head_dim
        generator = torch.Generator().manual_seed(num_tokens * hidden)

        def draw():
            x = torch.randn(num_tokens, hidden, generator=generator, dtype=F64).to(dtype)
            return laid_out(x, layout)

        self.inputs = [draw() for _ in range(3)]
        if layout == "fused":
            self.inputs = list(torch.cat(self.inputs, dim=1).split(hidden, dim=1))
        self.grad, self.tangents = draw(), [draw() for _ in range(3)]
        self.lengths, self.max_length = lengths, max([1, *lengths])
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
        self.rows = torch.arange(len(lengths)) * 5 + 2
        self.max_positions = max_positions
        self.batch = (self.cu_seqlens, self.max_length, self.num_heads)
        self.dropout = (self.p, RNG, SITE, self.rows, max_positions)

    def ours(self, *inputs):
        return attention(*inputs, *self.batch, *self.dropout, backend="cpu")

    def stock(self, *inputs):
        """The definition, sequence by sequence, in torch's own operations."""
        outs = [sum(x[:0] for x in inputs)]
        for n, (start, end) in enumerate(pairwise(self.cu_seqlens.tolist())):
            q, k, v = (self.heads(x[start:end]) for x in inputs)
            all_keys = torch.ones(1, end - start, dtype=torch.bool)
            out = attention_reference(q[None], k[None], v[None], all_keys, self.factors(n, v.dtype))
            outs.append(out[0].transpose(0, 1).flatten(1))
        return torch.cat(outs)

    def heads(self, x):
        return x.unflatten(1, (self.num_heads, -1)).transpose(0, 1)  # [head, position, feature]

    def kept(self, n):
        """Which probabilities of sequence n are kept, bool [1, head, query, key]."""
        length, size = self.lengths[n], self.max_positions
        heads = self.rows[n] * self.num_heads + torch.arange(self.num_heads)[:, None]
        offsets = (heads * size + torch.arange(length)) * size
        mask = dropout_mask(offsets.flatten(), max(length, 1), self.p, RNG, SITE)
        return mask.view(1, self.num_heads, length, max(length, 1))[..., :length] != 0

    def factors(self, n, dtype):
        return self.kept(n).to(dtype) * (1 / (1 - self.p)) if self.p > 0 else None

    def exact_inputs(self):
        return [x.double() for x in self.inputs]

    def forward_arguments(self):
        return [*self.inputs, *self.batch, *self.dropout]

    def backward_arguments(self):
        results = ops.attention_forward(*self.forward_arguments())
        return [self.grad, *self.inputs, *results, *self.batch, *self.dropout]

    def jvp_arguments(self):
        logsumexp = ops.attention_forward(*self.forward_arguments())[1]
        return [*self.inputs, *self.tangents, logsumexp, *self.batch, *self.dropout]

    def everything(self):
        return [
            *ops.attention_forward(*self.forward_arguments()),
            *ops.attention_backward(*self.backward_arguments()),
            ops.attention_jvp(*self.jvp_arguments()),
        ]


def assert_values(sample):
    case = Case(sample)
    exact = case.stock(*case.exact_inputs())
    assert_as_good_as_stock(case.ours(*case.inputs), case.stock(*case.inputs), exact)


def assert_gradients(sample):
    case = Case(sample)
    exact = gradients(case.stock, case.exact_inputs(), case.grad.double())
    stock = gradients(case.stock, case.inputs, case.grad)
    ours = gradients(case.ours, case.inputs, case.grad)
    for triple in zip(ours, stock, exact, strict=True):
        assert_as_good_as_stock(*triple)


def assert_tangents(sample):
    case = Case(sample)
    tangents = [t.double() for t in case.tangents]
    exact = float_tangent(case.stock, case.exact_inputs(), tangents)
    stock = float_tangent(case.stock, case.inputs, case.tangents)
    ours = float_tangent(case.ours, case.inputs, case.tangents)
    assert_as_good_as_stock(ours, stock, exact)


@samples
def test_values(sample):
    assert_values(sample)


@samples
def test_gradients(sample):
    assert_gradients(sample)


@samples
def test_tangents(sample):
    assert_tangents(sample)


def check_values():
    for sample in SAMPLES.values():
        assert_values(sample)
        assert_gradients(sample)
        assert_tangents(sample)


@pytest.mark.parametrize(("capability", "name"), [("default", "plain"), ("avx2", "AVX2")])
def test_other_instruction_sets(capability, name):
    assert run_with_capability("tests.ops.test_attention", capability) == name


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="no AVX-512 here")
def test_without_the_bfloat16_instructions(monkeypatch):
    monkeypatch.setenv("SBRRT_CPU_ISA", "avx512")
    assert run_with_capability("tests.ops.test_attention", "avx512") == "AVX-512"


@samples
def test_packed_reference_equals_the_definition(sample):
    case = Case(sample)
    inputs = case.exact_inputs()
    got = packed_attention_reference(*inputs, *case.batch, *case.dropout)
    torch.testing.assert_close(got, case.stock(*inputs), rtol=1e-12, atol=1e-12)


@samples
def test_logsumexp(sample):
    case = Case(sample)
    logsumexp = ops.attention_forward(*case.forward_arguments())[1]
    q, k, _ = case.exact_inputs()
    scale = (q.shape[1] // case.num_heads) ** -0.5
    for start, end in pairwise(case.cu_seqlens.tolist()):
        scores = case.heads(q[start:end]) @ case.heads(k[start:end]).transpose(1, 2) * scale
        exact = scores.logsumexp(-1).t()
        torch.testing.assert_close(logsumexp[start:end].double(), exact, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("max_positions", [64, 61])
def test_masks_are_those_of_dropout_mask(max_positions):
    """With equal probabilities and one-hot values, an output is a mask's element."""
    length, num_heads = 29, 3
    case = Case(([4, length], num_heads, 32, F32, 0.3, max_positions, "dense"))
    zeros = torch.zeros_like(case.inputs[0])
    values = zeros.clone()
    values[4:] = torch.eye(32)[:length].repeat(1, num_heads)
    out = case.ours(zeros, zeros, values)[4:]
    got = case.heads(out)[..., :length] != 0
    assert torch.equal(got, case.kept(1)[0])


def test_masks_do_not_depend_on_packing_or_batch_mates():
    case = Case(SAMPLES["primes"])
    out = case.ours(*case.inputs)
    start, end = case.cu_seqlens[2:4].tolist()
    alone = attention(
        *(x[start:end] for x in case.inputs),
        torch.tensor([0, end - start], dtype=torch.int32),
        end - start,
        case.num_heads,
        *case.dropout[:3],
        case.rows[2:3],
        case.max_positions,
        backend="cpu",
    )
    assert torch.equal(alone, out[start:end])


@pytest.mark.parametrize("name", ["512 tokens", "primes in bf16", "batch of 200"])
def test_same_bits_for_any_number_of_threads(name):
    case, results = Case(SAMPLES[name]), []
    for count in (1, 2, 3, 1):
        with num_threads(count):
            results.append(case.everything())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_large_scores_neither_overflow_nor_vanish():
    case = Case(SAMPLES["batch of 200"])
    inputs = [case.inputs[0] * 20, case.inputs[1] * 20, case.inputs[2]]
    exact = case.stock(*(x.double() for x in inputs))
    assert_as_good_as_stock(case.ours(*inputs), case.stock(*inputs), exact)


def test_nan_stays_in_its_sequence():
    case = Case(SAMPLES["primes"])
    clean = case.ours(*case.inputs)
    for i in range(3):
        inputs = [x.clone() for x in case.inputs]
        inputs[i][5, 3] = float("nan")  # in the second sequence, tokens 2 ... 14, head 0
        out = case.ours(*inputs)
        assert out[5].isnan().any()
        assert torch.equal(out[:2], clean[:2])
        assert torch.equal(out[15:], clean[15:])
        assert torch.equal(out[:, 32:], clean[:, 32:])


@samples
def test_opcheck(sample):
    case = Case(sample)
    torch.library.opcheck(ops.attention_forward.default, tuple(case.forward_arguments()))
    torch.library.opcheck(ops.attention_backward.default, tuple(case.backward_arguments()))
    torch.library.opcheck(ops.attention_jvp.default, tuple(case.jvp_arguments()))


def test_compiled_in_one_graph():
    case = Case(SAMPLES["primes in bf16"])
    compiled = torch.compile(case.ours, backend="aot_eager", fullgraph=True)
    got = gradients(compiled, case.inputs, case.grad)
    for a, b in zip(got, gradients(case.ours, case.inputs, case.grad), strict=True):
        assert torch.equal(a, b)


def test_function_transforms():
    case = Case(SAMPLES["primes"])
    with torch.no_grad():  # else the tangent could be differentiated
        out, tangent = torch.func.jvp(case.ours, tuple(case.inputs), tuple(case.tangents))
    assert torch.equal(out, case.ours(*case.inputs))
    assert torch.equal(tangent, float_tangent(case.ours, case.inputs, case.tangents))
    _, pull = torch.func.vjp(case.ours, *case.inputs)
    expected = gradients(case.ours, case.inputs, case.grad)
    assert all(torch.equal(a, b) for a, b in zip(pull(case.grad), expected, strict=True))


@pytest.mark.parametrize("i", range(3))
def test_one_input_alone(i):
    case = Case(SAMPLES["primes"])

    def of_one(x):
        return case.ours(*case.inputs[:i], x, *case.inputs[i + 1 :])

    tangents = [t if j == i else torch.zeros_like(t) for j, t in enumerate(case.tangents)]
    got = float_tangent(of_one, [case.inputs[i]], [case.tangents[i]])
    assert torch.equal(got, float_tangent(case.ours, case.inputs, tangents))
    (grad,) = gradients(of_one, [case.inputs[i]], case.grad)
    assert torch.equal(grad, gradients(case.ours, case.inputs, case.grad)[i])


def test_tangent_and_gradient_are_adjoint():
    case = Case(SAMPLES["batch of 200"])
    tangent = float_tangent(case.ours, case.inputs, case.tangents).double()
    grads = gradients(case.ours, case.inputs, case.grad)
    pulled = sum((g.double() * t).sum() for g, t in zip(grads, case.tangents, strict=True))
    pushed = (tangent * case.grad).sum()
    assert abs(pulled - pushed) < 1e-5 * (tangent.norm() * case.grad.norm())


def test_a_second_derivative_is_refused():
    case = Case(SAMPLES["primes"])
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    (first, *_) = torch.autograd.grad(
        case.ours(*leaves), leaves, case.grad.requires_grad_(), create_graph=True
    )
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        first.sum().backward()


def test_a_differentiated_tangent_is_left_to_the_reference():
    case = Case(SAMPLES["primes"])
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(case.inputs[0], case.tangents[0])
        with pytest.raises(BackendError, match="tangent of query is itself being differentiated"):
            case.ours(x, *case.inputs[1:])


def test_nothing_is_kept_after_use():
    case = Case(SAMPLES["primes"])
    gc.disable()
    try:
        leaves = [x.clone().requires_grad_() for x in case.inputs]
        inputs = [2 * x for x in leaves]
        kept = [weakref.ref(x) for x in inputs]
        out = case.ours(*inputs)
        del inputs
        assert all(x() is not None for x in kept)  # the node keeps what backward needs
        del out
        assert all(x() is None for x in kept)
    finally:
        gc.enable()


def test_agrees_with_the_padded_batch_of_the_model():
    lengths = [4, 9, 1, 17]
    case = Case((lengths, 3, 32, F64, 0.0, 512, "dense"))
    num_tokens = sum(lengths)
    batch = TokenBatch.from_packed(
        torch.ones(num_tokens),
        torch.zeros(num_tokens),
        torch.zeros(num_tokens, dtype=torch.bool),
        torch.tensor(lengths),
        case.rows,
    )
    q, k, v = (batch.pad(x.unflatten(1, (3, -1))).transpose(1, 2) for x in case.inputs)
    padded = attention_reference(q, k, v, batch.key_mask)
    expected = batch.unpad(padded.transpose(1, 2)).flatten(1)
    got = attention(*case.inputs, batch.cu_seqlens, batch.max_length, 3)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


REASONS = [
    ({}, F64, "query is float64, which runs on the reference"),
    ({"num_heads": 6}, F32, "the head dimension, 96 / 6, is neither 32 nor 64"),
    ({"max_length": 513}, F32, "max_length is 513, above 512"),
]


@pytest.mark.parametrize(("change", "dtype", "reason"), REASONS)
def test_backend_choice(change, dtype, reason):
    case = Case(SAMPLES["primes"])
    inputs = [x.to(dtype) for x in case.inputs]
    arguments = {
        "cu_seqlens": case.cu_seqlens,
        "max_length": case.max_length,
        "num_heads": case.num_heads,
        **change,
    }
    with pytest.raises(BackendError, match=reason):
        attention(*inputs, **arguments, backend="cpu")
    by_auto = attention(*inputs, **arguments)
    by_reference = attention(*inputs, **arguments, backend="reference")
    assert torch.equal(by_auto, by_reference)


def test_missing_dropout_arguments():
    case = Case(SAMPLES["primes"])
    with pytest.raises(ValueError, match=r"p = 0.1 needs rng \(seed, step\), rows and max_pos"):
        attention(*case.inputs, *case.batch, 0.1, RNG, SITE, case.rows)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1.0"):
        attention(*case.inputs, *case.batch, 1.0)


NAMES = ["query", "key", "value", "cu_seqlens", "max_length", "num_heads"]
NAMES += ["p", "rng", "site", "rows", "max_positions"]
BAD = [
    ("query", torch.zeros(5, 64, dtype=F64), TypeError, "query must have dtype float32 or bfl"),
    ("query", torch.zeros(5, 2, 32), ValueError, r"query must be a dense .* \[num_tokens, hidden"),
    ("key", torch.zeros(5, 64, dtype=BF16), TypeError, "key must have dtype Float"),
    ("key", torch.zeros(4, 64), ValueError, "key must be a dense .*as query, got"),
    ("value", torch.zeros(5, 64, device="meta"), ValueError, "must be on"),
    ("num_heads", 0, ValueError, r"num_heads must be in \[1, 2\^16\), got 0"),
    ("num_heads", 3, ValueError, "the head dimension, .* must be 32 or 64, got 64 / 3"),
    ("num_heads", 2**61, ValueError, r"num_heads must be in \[1, 2\^16\)"),
    ("cu_seqlens", torch.tensor([0, 2, 5]), TypeError, "cu_seqlens must have dtype Int"),
    ("cu_seqlens", torch.zeros(0, dtype=torch.int32), ValueError, "cu_seqlens must be a dense"),
    ("cu_seqlens", torch.tensor([1, 2, 5], dtype=torch.int32), ValueError, "must start with 0"),
    ("cu_seqlens", torch.tensor([0, 6, 5], dtype=torch.int32), ValueError, "rise by at most"),
    ("cu_seqlens", torch.tensor([0, 3, 2], dtype=torch.int32), ValueError, "changes by -1"),
    ("cu_seqlens", torch.tensor([0, -1, 5], dtype=torch.int32), ValueError, "changes by -1"),
    ("cu_seqlens", torch.tensor([0, -(2**31), 5], dtype=torch.int32), ValueError, "changes by -2"),
    ("cu_seqlens", torch.tensor([0, 2, 4], dtype=torch.int32), ValueError, "must end with the"),
    ("max_length", 2, ValueError, "rise by at most max_length, 2,"),
    ("max_length", 513, ValueError, r"max_length must be in \[0, 512\], got 513"),
    ("max_length", -1, ValueError, r"max_length must be in \[0, 512\], got -1"),
    ("p", 1.0, ValueError, r"p must be in \[0, 1\)"),
    ("p", float("nan"), ValueError, r"p must be in \[0, 1\)"),
    ("rng", torch.tensor([1.0, 2.0]), TypeError, "rng must have dtype Long"),
    ("rng", torch.tensor([1, -1]), ValueError, "step, the second value of rng"),
    ("site", 2**32, ValueError, r"site must be in \[0, 2\^32\)"),
    ("rows", torch.tensor([0]), ValueError, r"rows must be a dense .* shape \[num_sequences\]"),
    ("rows", torch.tensor([0, -1]), ValueError, "rows must not be negative"),
    ("rows", torch.tensor([0, 2**62]), ValueError, r"must be below 2\^63"),
    ("max_positions", 2, ValueError, "max_positions must be at least max_length"),
    ("max_positions", 2**40, ValueError, r"max_positions must be .* below 2\^31"),
]


def good_forward():
    inputs = [torch.randn(5, 64) for _ in range(3)]
    starts = torch.tensor([0, 2, 5], dtype=torch.int32)
    return [*inputs, starts, 3, 2, 0.1, RNG, SITE, torch.tensor([4, 1]), 16]


def good_backward():
    inputs = good_forward()
    return [torch.randn(5, 64), *inputs[:3], *ops.attention_forward(*inputs), *inputs[3:]]


def good_jvp():
    inputs = good_forward()
    tangents = [torch.randn(5, 64) for _ in range(3)]
    return [*inputs[:3], *tangents, torch.zeros(5, 2), *inputs[3:]]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    for name, good in (("forward", good_forward), ("backward", good_backward), ("jvp", good_jvp)):
        arguments = good()
        place = {"query": 1, "key": 2, "value": 3}.get(argument, 0) - 1
        if place < 0:
            place = NAMES.index(argument) - len(NAMES)
        elif name == "backward":
            place += 1
        arguments[place] = value
        with pytest.raises(error, match=f"sbrrt::attention_{name}: .*{message}"):
            getattr(ops, f"attention_{name}")(*arguments)


@pytest.mark.parametrize(
    ("name", "place", "argument"),
    [
        ("backward", 0, "grad"),
        ("backward", 4, "out"),
        ("backward", 5, "logsumexp"),
        ("jvp", 3, "query_tangent"),
        ("jvp", 4, "key_tangent"),
        ("jvp", 5, "value_tangent"),
        ("jvp", 6, "logsumexp"),
    ],
)
def test_bad_saved_tensor(name, place, argument):
    for value, error in (
        (torch.zeros(5, 63), ValueError),
        (torch.zeros(5, 2, dtype=F64), TypeError),
    ):
        arguments = good_backward() if name == "backward" else good_jvp()
        arguments[place] = value
        with pytest.raises(error, match=f"sbrrt::attention_{name}: {argument} must"):
            getattr(ops, f"attention_{name}")(*arguments)


def test_fuzzed_calls_answer_or_raise():
    assert fuzz(ops.attention_forward, good_forward, 1500) > 300
    assert fuzz(ops.attention_backward, good_backward, 1500) > 300
    assert fuzz(ops.attention_jvp, good_jvp, 1500) > 300
