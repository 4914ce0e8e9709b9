"""Packed attention's CUDA kernels on the CPU: values, gradients, tangents, masks, orders."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch

from sbrrt_fast.ops.dropout import dropout_mask
from tests.cuda_on_cpu import CudaError, library
from tests.cuda_on_cpu.counts import NUM_SEEDS
from tests.ops.op_checks import (
    BF16,
    F32,
    RNG,
    SITE,
    assert_as_good_as_stock,
    float_tangent,
    gradients,
)
from tests.ops.test_attention import SAMPLES, Case

F16 = torch.float16
NAN = float("nan")
DTYPES = {"fp32": F32, "fp16": F16, "bf16": BF16}

# Edges of tiles (16), of chunks (32 and 64), of the kernels for up to 32, 64 and 128 tokens, and of
# those for batches of which most sequences are far shorter than the longest.
EDGES = {
    "one tile": ([1, 15, 16, 3], 5),
    "two tiles": ([17, 31, 32, 1], 3),
    "three tiles": ([48, 33, 18], 3),
    "four tiles": ([64, 63, 2], 1),
    "a chunk and one": ([65, 1], 2),
    "the longest short one": ([128, 127, 14], 1),
    "the shortest long one": ([129, 30, 0, 1], 2),
    "whole chunks": ([192, 64], 1),
    "a chunk's last row": ([193, 130], 1),
    "a long one among short ones": ([150, 4, 9, 3, 17, 1, 2], 2),
    "one of two tiles among short ones, by chunks": ([40, 1, 2, 3], 3),
    "short chunks": ([96, 33, 32, 31, 1, 1, 0, 1, 1, 1], 1),
}
EDGE_SAMPLES = {
    f"{name}, {head_dim}, {precision}": (lengths, heads, head_dim, dtype, p, positions, "dense")
    for i, (name, (lengths, heads)) in enumerate(EDGES.items())
    for head_dim in (32, 64)
    for precision, dtype in DTYPES.items()
    for p, positions in [[(0.1, 512), (0.1, 197), (0.0, 512)][(i + head_dim // 32) % 3]]
}
EVERY_SAMPLE = SAMPLES | EDGE_SAMPLES
samples = pytest.mark.parametrize("sample", EVERY_SAMPLE.values(), ids=EVERY_SAMPLE.keys())


def with_dense_rows(x):
    return x if x.stride(1) == 1 else x.contiguous()


def views(*tensors):
    """Each tensor and its stride, as the launchers take them."""
    return [y for x in map(with_dense_rows, tensors) for y in (x, x.stride(0))]


class Kernels:
    """A case's calls; results start as NaN."""

    def __init__(self, case: Case, seed: int = 0, variant: str = "checked"):
        self.case, self.seed, self.library = case, seed, library("attention", variant)
        self.like = case.inputs[0]
        num_tokens, hidden = self.like.shape
        sizes = len(case.lengths), num_tokens, case.max_length, case.num_heads
        kind = hidden // case.num_heads, self.like.dtype
        numbers = *sizes, *kind, RNG, SITE, case.max_positions, case.p
        self.batch = case.cu_seqlens, case.rows, *numbers

    def empty(self):
        return torch.full(self.like.shape, NAN, dtype=self.like.dtype)

    def call(self, name, *arguments):
        self.library.call(name, *self.batch, *arguments, seed=self.seed)

    def forward(self, *inputs):
        out = self.empty()
        logsumexp = torch.full((self.like.shape[0], self.case.num_heads), NAN)
        self.call("forward", *views(*inputs, out), logsumexp)
        return out, logsumexp

    def backward(self, grad, inputs, logsumexp, results=None):
        results = results or [self.empty() for _ in range(3)]
        size = torch.zeros(1, dtype=torch.int64)
        self.call("workspace_bytes", size)
        workspace = torch.full((size.item(),), 255, dtype=torch.uint8)
        self.call("backward", *views(grad, *inputs), logsumexp, *views(*results), workspace)
        return results

    def jvp(self, inputs, tangents, logsumexp):
        out = self.empty()
        self.call("jvp", *views(*inputs, *tangents), logsumexp, *views(out))
        return out

    def everything(self):
        case = self.case
        out, logsumexp = self.forward(*case.inputs)
        grads = self.backward(case.grad, case.inputs, logsumexp)
        return [out, logsumexp, *grads, self.jvp(case.inputs, case.tangents, logsumexp)]


@samples
def test_results(sample):
    case = Case(sample)
    out, logsumexp, *grads, tangent = Kernels(case).everything()
    exact = case.exact_inputs()
    assert_as_good_as_stock(out, case.stock(*case.inputs), case.stock(*exact))
    torch.testing.assert_close(logsumexp.double(), exact_logsumexp(case), rtol=1e-6, atol=2e-6)
    exact_grads = gradients(case.stock, exact, case.grad.double())
    stock_grads = gradients(case.stock, case.inputs, case.grad)
    for triple in zip(grads, stock_grads, exact_grads, strict=True):
        assert_as_good_as_stock(*triple)
    exact_tangent = float_tangent(case.stock, exact, [t.double() for t in case.tangents])
    stock_tangent = float_tangent(case.stock, case.inputs, case.tangents)
    assert_as_good_as_stock(tangent, stock_tangent, exact_tangent)


def exact_logsumexp(case):
    q, k, _ = case.exact_inputs()
    scale, results = (q.shape[1] // case.num_heads) ** -0.5, [q.new_zeros(0, case.num_heads)]
    for start, end in pairwise(case.cu_seqlens.tolist()):
        scores = case.heads(q[start:end]) @ case.heads(k[start:end]).transpose(1, 2) * scale
        results.append(scores.logsumexp(-1).t())
    return torch.cat(results)


def mask_case(length, head_dim, dtype, max_positions, num_short=0):
    lengths = [4, length, *[1] * num_short]
    return Case((lengths, 2, head_dim, dtype, 0.3, max_positions, "dense"))


def one_hot(case, first):
    """Rows of the second sequence: token first + j has a one in feature j of every head."""
    x = torch.zeros_like(case.inputs[0])
    head_dim = x.shape[1] // case.num_heads
    count = min(head_dim, case.lengths[1] - first)
    x[4 + first : 4 + first + count] = torch.eye(head_dim)[:count].repeat(1, case.num_heads)
    return x, count


# Length of the sequence, positions, and how many of one token make the mean length small.
MASKS = [
    *[(29, 64, 0), (29, 61, 0), (50, 61, 0), (75, 122, 0), (150, 512, 0), (150, 151, 0)],
    *[(75, 512, 6), (150, 151, 8)],
]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize(("length", "max_positions", "num_short"), MASKS)
def test_masks_are_those_of_dropout_mask(length, max_positions, num_short, head_dim, dtype):
    """With equal probabilities, one-hot values (tangents, gradients) show the mask's elements."""
    case = mask_case(length, head_dim, dtype, max_positions, num_short)
    kernels, kept = Kernels(case, variant="plain"), case.kept(1)[0]  # [head, query, key]
    zeros = torch.zeros_like(case.inputs[0])
    logsumexp = torch.zeros(len(zeros), 2)
    for first in range(0, length, head_dim):
        rows, count = one_hot(case, first)
        by_key, by_query = kept[:, :, first : first + count], kept[:, first : first + count]
        out = kernels.forward(zeros, zeros, rows)[0]
        assert torch.equal(seen(case, out, count), by_key)
        tangent = kernels.jvp([zeros] * 3, [zeros, zeros, rows], logsumexp)
        assert torch.equal(seen(case, tangent, count), by_key)
        value_grad = kernels.backward(rows, [zeros] * 3, logsumexp)[2]
        assert torch.equal(seen(case, value_grad, count), by_query.transpose(1, 2))


def seen(case, x, count):
    return case.heads(x[4 : 4 + case.lengths[1]])[..., :count] != 0


def test_masks_follow_the_row_and_the_step():
    case = mask_case(29, 32, F32, 64)
    zeros, (rows, _) = torch.zeros_like(case.inputs[0]), one_hot(case, 0)
    first = seen(case, Kernels(case).forward(zeros, zeros, rows)[0], 29)
    case.rows = case.rows + 1
    assert not torch.equal(seen(case, Kernels(case).forward(zeros, zeros, rows)[0], 29), first)
    offsets = (case.rows[1] * 2 * 64 + torch.arange(29)) * 64  # of head 0
    kernels, rng = Kernels(case), torch.tensor([-7, 2**32 - 1])
    kernels.batch = tuple(rng if x is RNG else x for x in kernels.batch)
    got = seen(case, kernels.forward(zeros, zeros, rows)[0], 29)[0]
    assert torch.equal(got, dropout_mask(offsets, 29, 0.3, rng, SITE) != 0)


ORDERS = [
    *[([30, 16, 5], 3, 512), ([40, 9], 1, 512), ([70, 7], 1, 509)],
    *[([131], 1, 512), ([70, 2, 3, 1], 1, 509)],
]


def kernels_of(lengths, dtype=BF16, head_dim=64):
    """Names of the kernels for a batch with these lengths, without their types."""
    case = Case((lengths, 2, head_dim, dtype, 0.1, 512, "dense"))
    kernels = Kernels(case, variant="plain")
    before = kernels.library.kernels()
    kernels.everything()
    after = kernels.library.kernels().items()
    ran = {name for name, now in after if now.count > before[name].count}
    return {re.sub(r"attention_(\w+)<\w+, \d+, (\d+)>", r"\1 \2", name) for name in ran}


LONG_KERNELS = ("forward_long", "backward_queries", "backward_keys", "jvp_long")


@pytest.mark.parametrize(
    ("lengths", "is_short", "keys"),
    [
        ([32, 1, 1], True, 32),
        ([33, 20], True, 64),
        ([65, 40], True, 128),
        ([129, 40], False, 64),
        ([20] * 6 + [33], True, 64),
        ([20] * 9 + [100], False, 32),  # no short kernel for 128 keys
        ([20] * 9 + [129], False, 32),
        ([8] * 9 + [33], False, 32),
        ([8] * 9 + [32], True, 32),
    ],
)
def test_one_long_sequence_does_not_choose_the_kernels(lengths, is_short, keys):
    names = ("forward_short", "backward_short", "jvp_short") if is_short else LONG_KERNELS
    assert kernels_of(lengths) == {f"{name} {keys}" for name in names}


def test_what_does_not_fit_in_shared_memory_goes_in_chunks():
    """In fp32 the tangent of 64 features has 1.6 kB a token."""
    names = kernels_of([48, 40], F32)
    assert names == {"forward_short 64", "backward_short 64", "jvp_short 64"}
    names = kernels_of([64, 40], F32)
    assert names == {"forward_short 64", "backward_short 64", "jvp_long 32"}
    assert kernels_of([200], F32) == {
        *("forward_long 64", "backward_queries 32", "backward_keys 32", "jvp_long 32")
    }


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("head_dim", [32, 64])
@pytest.mark.parametrize(("lengths", "num_heads", "max_positions"), ORDERS)
def test_same_bits_in_any_order_of_threads(lengths, num_heads, max_positions, head_dim, dtype):
    case = Case((lengths, num_heads, head_dim, dtype, 0.1, max_positions, "dense"))
    expected = Kernels(case, variant="plain").everything()
    for seed in range(1, NUM_SEEDS + 1):
        results = Kernels(case, seed, "plain").everything()
        assert all(torch.equal(a, b) for a, b in zip(expected, results, strict=True))


@pytest.mark.parametrize("lengths", [[18, 40, 25], [133, 3], [40, 1, 2, 3]])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_results_beside_other_columns(lengths, dtype):
    """Gradients may be the parts of one [num_tokens, 3 * hidden]; what lies between stays."""
    case = Case((lengths, 2, 32, dtype, 0.1, 512, "fused"))
    kernels = Kernels(case)
    logsumexp = kernels.forward(*case.inputs)[1]
    expected = kernels.backward(case.grad, case.inputs, logsumexp)
    fused = torch.full((sum(lengths), 4 * 64), NAN, dtype=dtype)
    results = list(fused.split(64, dim=1))
    kernels.backward(case.grad, case.inputs, logsumexp, [results[i] for i in (0, 2, 3)])
    for got, want in zip((results[i] for i in (0, 2, 3)), expected, strict=True):
        assert torch.equal(got, want)
    assert results[1].isnan().all()


@pytest.mark.parametrize("lengths", [[2, 13, 31], [2, 13, 150], [2, 13, 150, *[1] * 6]])
def test_nan_stays_in_its_sequence_and_head(lengths):
    case = Case((lengths, 2, 32, F32, 0.1, 512, "dense"))
    clean = Kernels(case).everything()
    for i in range(3):
        case.inputs[i] = case.inputs[i].clone()
        case.inputs[i][5, 3] = NAN  # in the second sequence, tokens 2 ... 14, head 0
        for got, want in zip(Kernels(case).everything(), clean, strict=True):
            half = got.shape[1] // 2  # the other head's columns
            assert torch.equal(got[:2], want[:2])
            assert torch.equal(got[15:], want[15:])
            assert torch.equal(got[:, half:], want[:, half:])
        assert Kernels(case).everything()[0][5].isnan().any()


@pytest.mark.parametrize("lengths", [[17, 5, 90], [140], [90, 1, 1, 1]])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_large_scores_neither_overflow_nor_vanish(lengths, dtype):
    case = Case((lengths, 2, 64, dtype, 0.1, 512, "dense"))
    case.inputs = [case.inputs[0] * 20, case.inputs[1] * 20, case.inputs[2]]
    out, logsumexp = Kernels(case).forward(*case.inputs)
    exact = case.stock(*case.exact_inputs())
    assert_as_good_as_stock(out, case.stock(*case.inputs), exact)
    for result in Kernels(case).backward(case.grad, case.inputs, logsumexp):
        assert result.isfinite().all()


@pytest.mark.parametrize("length", [9, 200])
def test_one_token_has_no_score_gradient(length):
    case = Case(([1, length], 2, 64, BF16, 0.1, 512, "dense"))
    _, _, query_grad, key_grad, _, _ = Kernels(case).everything()
    assert (query_grad[0] == 0).all()
    assert (key_grad[0] == 0).all()


def test_a_length_above_max_length_is_cut():
    """The host cannot see lengths; shared memory holds max_length."""
    case = Case(([40, 8], 2, 32, F32, 0.0, 512, "dense"))
    case.max_length = 16
    out, *_ = Kernels(case).everything()
    assert out[:16].isfinite().all()
    assert out[16:40].isnan().all()
    assert out[40:].isfinite().all()


@pytest.mark.parametrize(("name", "value"), [("max_length", 513), ("num_heads", 3)])
def test_what_no_kernel_takes_is_an_error(name, value):
    case = Case(([4], 2, 32, F32, 0.0, 512, "dense"))
    setattr(case, name, value)
    with pytest.raises(CudaError):
        Kernels(case).forward(*case.inputs)


@pytest.mark.parametrize("head_dim", [16, 26, 48, 128])
def test_no_kernel_takes_another_head_dimension(head_dim):
    case = Case(([4], 2, head_dim, F32, 0.0, 512, "dense"))
    with pytest.raises(CudaError, match="returned error 1"):
        Kernels(case).forward(*case.inputs)
