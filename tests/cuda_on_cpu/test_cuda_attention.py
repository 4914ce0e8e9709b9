"""Packed attention's CUDA kernels on the CPU: masks of each, which runs when, what lies beside."""

from __future__ import annotations

import re

import pytest
import torch

from sbrrt_fast.ops.dropout import dropout_mask
from tests.cuda_on_cpu import CudaError
from tests.cuda_on_cpu.kernels.attention import NAN, AttentionKernels
from tests.ops.cases.attention import DTYPES, AttentionCase
from tests.ops.op_checks import BF16, F32, SITE, assert_as_good_as_stock


def everything(case, kernels=None):
    """Result, logsumexp, gradients and tangent."""
    kernels = kernels or AttentionKernels(case)
    return [*kernels.value, kernels.logsumexp, *kernels.gradients, *kernels.tangent]


def mask_case(length, head_dim, dtype, max_positions, num_short=0):
    lengths = [4, length, *[1] * num_short]
    return AttentionCase((tuple(lengths), 2, head_dim, dtype, 0.3, max_positions, "dense"))


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
    kernels, kept = AttentionKernels(case, variant="plain"), case.kept(1)[0]  # [head, query, key]
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
    first = seen(case, AttentionKernels(case).forward(zeros, zeros, rows)[0], 29)
    case.rows = case.rows + 1
    assert not torch.equal(
        seen(case, AttentionKernels(case).forward(zeros, zeros, rows)[0], 29), first
    )
    offsets = (case.rows[1] * 2 * 64 + torch.arange(29)) * 64  # of head 0
    rng = torch.tensor([-7, 2**32 - 1])
    kernels = AttentionKernels(case, rng=rng)
    got = seen(case, kernels.forward(zeros, zeros, rows)[0], 29)[0]
    assert torch.equal(got, dropout_mask(offsets, 29, 0.3, rng, SITE) != 0)


def kernels_of(lengths, dtype=BF16, head_dim=64):
    """Names of the kernels for a batch with these lengths, without their types."""
    case = AttentionCase((tuple(lengths), 2, head_dim, dtype, 0.1, 512, "dense"))
    kernels = AttentionKernels(case, variant="plain")
    before = kernels.library.kernels()
    everything(case, kernels)
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


@pytest.mark.parametrize("lengths", [[18, 40, 25], [133, 3], [40, 1, 2, 3]])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_results_beside_other_columns(lengths, dtype):
    """Gradients may be the parts of one [num_tokens, 3 * hidden]; what lies between stays."""
    case = AttentionCase((tuple(lengths), 2, 32, dtype, 0.1, 512, "fused"))
    kernels = AttentionKernels(case)
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
    case = AttentionCase((tuple(lengths), 2, 32, F32, 0.1, 512, "dense"))
    clean = everything(case)
    for i in range(3):
        case.inputs[i] = case.inputs[i].clone()
        case.inputs[i][5, 3] = NAN  # in the second sequence, tokens 2 ... 14, head 0
        for got, want in zip(everything(case), clean, strict=True):
            half = got.shape[1] // 2  # the other head's columns
            assert torch.equal(got[:2], want[:2])
            assert torch.equal(got[15:], want[15:])
            assert torch.equal(got[:, half:], want[:, half:])
        assert everything(case)[0][5].isnan().any()


@pytest.mark.parametrize("lengths", [[17, 5, 90], [140], [90, 1, 1, 1]])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_large_scores_neither_overflow_nor_vanish(lengths, dtype):
    case = AttentionCase((tuple(lengths), 2, 64, dtype, 0.1, 512, "dense"))
    case.inputs = [case.inputs[0] * 20, case.inputs[1] * 20, case.inputs[2]]
    out, logsumexp = AttentionKernels(case).forward(*case.inputs)
    exact = case.stock(*case.exact_inputs())
    assert_as_good_as_stock(out, case.stock(*case.inputs), exact)
    for result in AttentionKernels(case).backward(case.grad, case.inputs, logsumexp):
        assert result.isfinite().all()


@pytest.mark.parametrize("length", [9, 200])
def test_one_token_has_no_score_gradient(length):
    case = AttentionCase(((1, length), 2, 64, BF16, 0.1, 512, "dense"))
    _, _, query_grad, key_grad, _, _ = everything(case)
    assert (query_grad[0] == 0).all()
    assert (key_grad[0] == 0).all()


def test_a_length_above_max_length_is_cut():
    """The host cannot see lengths; shared memory holds max_length."""
    case = AttentionCase(((40, 8), 2, 32, F32, 0.0, 512, "dense"))
    case.max_length = 16
    out, *_ = everything(case)
    assert out[:16].isfinite().all()
    assert out[16:40].isnan().all()
    assert out[40:].isfinite().all()


@pytest.mark.parametrize(("name", "value"), [("max_length", 513), ("num_heads", 3)])
def test_what_no_kernel_takes_is_an_error(name, value):
    case = AttentionCase(((4,), 2, 32, F32, 0.0, 512, "dense"))
    setattr(case, name, value)
    with pytest.raises(CudaError):
        AttentionKernels(case).forward(*case.inputs)


@pytest.mark.parametrize("head_dim", [16, 26, 48, 128])
def test_no_kernel_takes_another_head_dimension(head_dim):
    case = AttentionCase(((4,), 2, head_dim, F32, 0.0, 512, "dense"))
    with pytest.raises(CudaError, match="returned error 1"):
        AttentionKernels(case).forward(*case.inputs)
