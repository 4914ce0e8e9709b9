"""attention's own: masks, packing, large scores, NaN, logsumexp, padded batches."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.attention import attention, attention_reference
from tests.ops.backends import DEVICES, INTERPRETED, backends_of, run
from tests.ops.cases import OPS
from tests.ops.cases.attention import AttentionCase
from tests.ops.on_device import moved
from tests.ops.op_checks import BF16, F32, F64, RNG, SITE, Calls, assert_as_good_as_stock
from tests.ops.triton_only import ATTENTION, equal_but_for_order

OP = OPS["attention"]
every_backend = backends_of("attention", "cuda_on_cpu")
# CUDA's kernels, of which there are many, have tests of their own in test_cuda_attention.
each_library = backends_of("attention")


def primes() -> AttentionCase:
    return AttentionCase(OP.samples["primes"])


def drawn_mask(backend, length, max_positions):
    """The mask that a backend applies to a second sequence's probabilities, and the reference's.

    With equal probabilities and one-hot values, an output is an element of a mask.
    """
    case, parts = AttentionCase(((4, length), 2, 64, F32, 0.3, max_positions, "dense")), []
    zeros = torch.zeros_like(case.inputs[0])
    for first in range(0, length, 64):
        values, count = zeros.clone(), min(64, length - first)
        values[4 + first : 4 + first + count] = torch.eye(64)[:count].repeat(1, 2)
        case.inputs = [zeros, zeros, values]
        out = run(OP, backend, case).value[0].cpu()
        parts.append(case.heads(out[4:])[..., :count] != 0)
    return torch.cat(parts, dim=-1), case.kept(1)[0]


# A tile, a loop over blocks that end within the sequence, at its end and just before it.
@each_library
@pytest.mark.parametrize(
    ("length", "max_positions"), [(29, 64), (29, 61), (32, 64), (97, 97), (96, 512), (65, 67)]
)
def test_masks_are_those_of_dropout_mask(length, max_positions, backend):
    assert torch.equal(*drawn_mask(backend, length, max_positions))


@every_backend
def test_masks_do_not_depend_on_packing_or_batch_mates(backend):
    case, alone = primes(), primes()
    (out,) = run(OP, backend, case).value
    start, end = case.cu_seqlens[2:4].tolist()
    alone.inputs = [x[start:end] for x in case.inputs]
    alone.cu_seqlens = torch.tensor([0, end - start], dtype=torch.int32)
    alone.rows, alone.lengths = case.rows[2:3], case.lengths[2:3]
    (found,) = run(OP, backend, alone).value
    same = equal_but_for_order if backend == "triton" else torch.equal
    assert same(found, out[start:end])


@every_backend
@pytest.mark.parametrize("name", [*OP.samples, "loop in fp32"])
def test_logsumexp(name, backend):
    """What the forward op writes besides its result."""
    lengths, heads, width, dtype, *rest = (OP.samples | OP.triton)[name]
    dtype = F32 if backend == "triton" else dtype
    case = AttentionCase((lengths, heads, width, dtype, *rest))
    found = run(OP, backend, case)
    if backend == "cuda_on_cpu":
        logsumexp = found.logsumexp
    else:
        with Calls() as calls:
            assert found.value
        logsumexp = calls.argument("logsumexp")
    torch.testing.assert_close(logsumexp.cpu().double(), case.logsumexp(), rtol=1e-6, atol=2e-6)


@each_library
@pytest.mark.parametrize("lengths", [(2, 13, 31, 7), (1, 23, 16, 70)])
def test_large_scores_neither_overflow_nor_vanish(lengths, backend):
    case = AttentionCase((lengths, 2, 64, F32, 0.1, 512, "dense"))
    case.inputs = [case.inputs[0] * 20, case.inputs[1] * 20, case.inputs[2]]
    exact, found = case.stock(*case.exact_inputs()), run(OP, backend, case)
    slack = ATTENTION if backend == "triton" else 0.0
    assert_as_good_as_stock(found.value[0].cpu(), case.stock(*case.inputs), exact, slack)
    assert all(g.isfinite().all() for g in found.gradients)


@each_library
def test_nan_stays_in_its_sequence(backend):
    case = primes()
    clean = run(OP, backend, case)
    clean = [*clean.value, *clean.gradients, *clean.tangent]
    for i in range(3):
        case.inputs = [x.clone() for x in primes().inputs]
        case.inputs[i][5, 3] = float("nan")  # in the second sequence, tokens 2 ... 14, head 0
        found = run(OP, backend, case)
        assert found.value[0][5].isnan().any()
        for out, expected in zip(
            [*found.value, *found.gradients, *found.tangent], clean, strict=True
        ):
            assert torch.equal(out[:2], expected[:2])
            assert torch.equal(out[15:], expected[15:])
            assert torch.equal(out[:, 32:], expected[:, 32:])


@each_library
def test_a_result_that_has_changed_raises(backend):
    """The backward pass reads it."""
    case = moved(primes(), DEVICES.get(backend, "cpu"))
    y = case.call(*(x.requires_grad_() for x in case.inputs), backend=backend)
    with torch.no_grad():
        y.mul_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_agrees_with_the_padded_batch_of_the_model():
    lengths = (4, 9, 1, 17)
    case = AttentionCase((lengths, 3, 32, F64, 0.0, 512, "dense"))
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


@pytest.mark.parametrize(
    ("change", "dtype"), [({}, F64), ({"num_heads": 6}, F32), ({"max_length": 513}, F32)]
)
def test_what_no_kernel_takes_runs_on_the_reference(change, dtype):
    case = primes()
    inputs = [x.to(dtype) for x in case.inputs]
    arguments = {"cu_seqlens": case.cu_seqlens, "max_length": case.max_length, "num_heads": 3}
    by_auto = attention(*inputs, **arguments | change)
    assert torch.equal(by_auto, attention(*inputs, **arguments | change, backend="reference"))


@pytest.mark.skipif(not INTERPRETED, reason="the kernels are compiled here")
def test_the_interpreter_is_never_chosen_unasked():
    case = AttentionCase(((3, 4), 2, 32, torch.float16, 0.1, 512, "dense"))
    by_auto = case.call(*case.inputs, backend="auto")  # which the C++ ops do not take
    assert torch.equal(by_auto, case.call(*case.inputs, backend="reference"))
    with pytest.raises(BackendError, match="bfloat16, which Triton's interpreter truncates"):
        case.call(*(x.to(BF16) for x in case.inputs), backend="triton")


def test_missing_dropout_arguments():
    case = primes()
    batch = case.cu_seqlens, case.max_length, case.num_heads
    with pytest.raises(ValueError, match=r"p = 0.1 needs rng \(seed, step\), rows and max_pos"):
        attention(*case.inputs, *batch, 0.1, RNG, SITE, case.rows)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1.0"):
        attention(*case.inputs, *batch, 1.0)
