"""embed's own: rows that no token reads, masks, indices outside a table, a given order."""

from __future__ import annotations

import pytest
import torch

from tests.ops.backends import backends_of, run
from tests.ops.cases import OPS
from tests.ops.cases.embed import EmbedCase
from tests.ops.op_checks import F32, Calls

OP = OPS["embed"]
every_backend = backends_of("embed", "cuda_on_cpu")


@every_backend
def test_rows_that_no_token_reads_have_zero_gradient(backend):
    case = EmbedCase((47, 33, 100, 60, F32, 0.1, "dense"))
    word, position, *_ = (g.cpu() for g in run(OP, backend, case).gradients)
    for table, indices in ((word, case.tokens[0]), (position, case.tokens[1])):
        is_read = torch.zeros(len(table), dtype=torch.bool)
        is_read[indices] = True
        assert 0 < int(is_read.sum()) < len(table)
        assert not table[~is_read].any()
        assert table[is_read].any(dim=1).all()


@every_backend
@pytest.mark.parametrize("name", [*OP.samples, "bert-base"])
def test_masks_are_those_of_dropout_mask(name, backend):
    tokens, hidden, *sizes, _, p, layout = (OP.samples | OP.triton)[name]
    case = EmbedCase((tokens, hidden, *sizes, F32, p, layout))
    case.inputs[3], case.inputs[4] = torch.zeros(hidden), torch.ones(hidden)
    # LayerNorm gives 1 everywhere.
    assert torch.equal(run(OP, backend, case).value[0].cpu(), case.factors())


# C++ refuses them before it reads.
@pytest.mark.parametrize("backend", ["triton", "cuda_on_cpu"])
def test_an_index_outside_its_table_reads_nan_and_gets_no_gradient(backend):
    case = EmbedCase(OP.samples["primes"])
    clean, expected = run(OP, backend, case).value[0].cpu(), run(OP, backend, case).gradients
    for i, bad in enumerate((-1, len(case.inputs[1]), 2**40)):
        case.tokens[i][3 + i] = bad
    found = run(OP, backend, case)
    out, grads = found.value[0].cpu(), [g.cpu() for g in found.gradients]
    is_bad = torch.zeros(len(out), dtype=torch.bool)
    is_bad[3:6] = True
    assert (out[is_bad].isnan() | (case.factors()[is_bad] == 0)).all()
    assert torch.equal(out[~is_bad], clean[~is_bad])
    assert [g.shape for g in grads] == [g.shape for g in expected]
    unread = ~torch.isin(torch.arange(31), case.tokens[0])
    assert grads[0][unread].eq(0).all()


def backward_call(case, backend):
    """The writing op behind the gradients, and its arguments by name."""
    with Calls() as calls:
        assert run(OP, backend, case).gradients
    op, arguments = next((op, a) for op, a in calls.ops if "backward" in op._opname)
    names = [argument.name for argument in op._schema.arguments]
    return op, dict(zip(names, (x.detach() if isinstance(x, torch.Tensor) else x
                                for x in arguments), strict=True))  # fmt: skip


def token_order(case, device="cpu"):
    return torch.stack([index.argsort(stable=True) for index in case.tokens]).to(device)


@backends_of("embed")
@pytest.mark.parametrize("name", ["primes", "every token the same", "no tokens"])
def test_the_order_of_the_tokens_may_be_given(name, backend):
    case = EmbedCase(OP.samples[name])
    op, arguments = backward_call(case, backend)
    results = ("dword", "dposition", "dtype", "dweight", "dshift")
    expected = [arguments[name].clone() for name in results]
    for name in results:
        arguments[name].fill_(float("nan"))
    op(**arguments | {"order": token_order(case, arguments["grad"].device)})
    assert all(torch.equal(arguments[n], x) for n, x in zip(results, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda order: order[:2], r"order must be a dense tensor of shape \[3, num_tokens\]"),
        (lambda order: order.int(), "order must have dtype Long"),
        (lambda order: order.flip(1), r"order\[0, 1\] = \d+, but order\[0\] must be a stable"),
        (lambda order: order - 1, r"order\[\d, \d+\] = -1, but order"),
        (lambda order: order[[0, 2, 1]], r"order\[\d, \d+\] = \d+, but order\[\d\] must be a"),
        (lambda order: order * 0, r"order\[0, 1\] = 0, but order\[0\] must be a stable argsort"),
    ],
)
def test_a_wrong_order_is_refused(change, message):
    case = EmbedCase(OP.samples["primes"])
    op, arguments = backward_call(case, "cpu")
    with pytest.raises((ValueError, TypeError), match=f"sbrrt::embed_backward: {message}"):
        op(**arguments | {"order": change(token_order(case))})


def test_auto_leaves_float64_to_the_reference():
    case = EmbedCase(OP.samples["primes"])
    exact = case.exact_inputs()
    by_auto = case.call(*exact, backend="auto")
    assert torch.equal(by_auto, case.call(*exact, backend="reference"))
