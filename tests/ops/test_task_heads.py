"""The heads written out, against autograd in float64 over the model's own heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sbrrt_fast.ops.task_heads import (
    HeadSpec,
    HeadTable,
    heads_forward,
    heads_jvp,
    heads_vjp,
    heads_weight_gradients,
)
from tests.ops.backends import DEVICES, backends_of
from tests.ops.head_groups import ALL, Heads, heads_of
from tests.ops.on_device import moved
from tests.ops.op_checks import float_tangent

GROUPS = [[name] for name in ALL] + [["sst", "para", "sts", "yes-no"], ["sts", "minutes", "topics"]]
each_group = pytest.mark.parametrize("names", GROUPS, ids=" ".join)
each_pair_kind = pytest.mark.parametrize("pair_kind", ["concat", "concat_difference"])
each_dropout = pytest.mark.parametrize("has_factors", [False, True])
TIGHT = {"rtol": 1e-12, "atol": 1e-13}


def used(heads: Heads) -> tuple[Tensor, Tensor]:
    """(pooled, factors) without the padding sequences."""
    n = heads.table.num_sequences
    return heads.pooled[:n], heads.factors[:n]


@each_group
@each_pair_kind
@each_dropout
def test_forward_and_tangent(names, pair_kind, has_factors):
    heads = heads_of(names, pair_kind=pair_kind)
    pooled, factors = used(heads)
    tangent = torch.full_like(heads.pooled, torch.nan)
    tangent[: len(pooled)] = torch.randn_like(pooled)
    arguments = heads.table, heads.pooled, heads.factors if has_factors else None, heads.weights
    found = heads_forward(*arguments, backend="reference")
    found_tangent = heads_jvp(*arguments, tangent, backend="reference")

    def model(x: Tensor) -> Tensor:
        return heads.outputs(x, factors if has_factors else None)

    torch.testing.assert_close(found, model(pooled).detach(), **TIGHT)
    expected = float_tangent(model, [pooled], [tangent[: len(pooled)]])
    torch.testing.assert_close(found_tangent, expected, **TIGHT)


@each_group
@each_pair_kind
@each_dropout
def test_gradient_of_the_pooled_vectors(names, pair_kind, has_factors):
    heads = heads_of(names, pair_kind=pair_kind)
    pooled, factors = used(heads)
    cotangents = torch.randn(heads.table.num_outputs, dtype=torch.float64)
    all_factors, factors = (heads.factors, factors) if has_factors else (None, None)
    found = heads_vjp(
        heads.table, heads.pooled, all_factors, heads.weights, cotangents, backend="reference"
    )
    leaf = pooled.clone().requires_grad_()
    (expected,) = torch.autograd.grad(heads.outputs(leaf, factors), leaf, cotangents)
    torch.testing.assert_close(found[: len(pooled)], expected, **TIGHT)
    assert found[len(pooled) :].eq(0).all()


@each_group
@each_pair_kind
@pytest.mark.parametrize("num_passes", [1, 2])
def test_gradient_of_the_weights(names, pair_kind, num_passes):
    heads = heads_of(names, pair_kind=pair_kind)
    pooled, factors = used(heads)
    passes, cotangents = [heads.pooled], [torch.randn(heads.table.num_outputs).double()]
    all_factors = [heads.factors]
    if num_passes == 2:
        passes.append(torch.randn_like(heads.pooled))
        all_factors.append(None)
        cotangents.append(torch.randn_like(cotangents[0]))
    found = torch.full_like(heads.weights, 9.0)
    heads_weight_gradients(heads.table, passes, all_factors, cotangents, found, backend="reference")
    outputs = [heads.outputs(passes[0][: len(pooled)], factors)]
    outputs += [heads.outputs(x[: len(pooled)]) for x in passes[1:]]
    if heads.parameters():
        expected = torch.autograd.grad(outputs, heads.parameters(), cotangents)
        written = found[~heads.weights.isnan()]
        torch.testing.assert_close(written, torch.cat([g.flatten() for g in expected]), **TIGHT)
    assert found[heads.weights.isnan()].eq(9.0).all()


def test_equal_sentences_have_no_gradient_of_their_difference():
    heads = heads_of(["para"], [2])
    heads.pooled[1] = heads.pooled[0]
    leaf = heads.pooled[:4].clone().requires_grad_()
    ones = torch.ones(2, dtype=torch.float64)
    (expected,) = torch.autograd.grad(heads.outputs(leaf), leaf, ones)
    found = heads_vjp(heads.table, heads.pooled, None, heads.weights, ones, backend="reference")
    torch.testing.assert_close(found[:4], expected, **TIGHT)


@pytest.mark.parametrize("length", [0.0, 1e-9, 0.9e-6, 1.1e-6, 1.0])
def test_cosine_of_short_vectors(length):
    """The derivatives are those of torch's forward mode; its gradient forgets the clamp."""
    pooled = torch.randn(2, 5, dtype=torch.float64)
    pooled[0] *= length / pooled[0].norm()
    tangent = torch.randn_like(pooled)
    table, none = HeadTable([HeadSpec("cosine", 1, 0, 1, -1, -1, 5.0)], 5, "cpu"), torch.empty(0)

    def cosine(x: Tensor) -> Tensor:
        return 5.0 * F.cosine_similarity(x[0::2], x[1::2], eps=1e-6)

    found = heads_forward(table, pooled, None, none, backend="reference")
    torch.testing.assert_close(found, cosine(pooled), **TIGHT)
    expected = float_tangent(cosine, [pooled], [tangent])
    found = heads_jvp(table, pooled, None, none, tangent, backend="reference")
    torch.testing.assert_close(found, expected, **TIGHT)
    gradient = heads_vjp(table, pooled, None, none, torch.ones_like(found), backend="reference")
    torch.testing.assert_close((gradient * tangent).sum()[None], expected, **TIGHT)


def test_rows_between_tasks_have_no_gradient():
    spec = HeadSpec("linear", 2, 3, 1, 0, 4)
    table = HeadTable([spec], 4, "cpu")
    assert table.num_sequences == 5 and table.num_weights == 5
    pooled, weights, ones = torch.randn(7, 4), torch.randn(5), torch.ones(2)
    found = heads_vjp(table, pooled, None, weights, ones, backend="reference")
    assert torch.equal(found[3:5], weights[:4].expand(2, 4)) and found.count_nonzero() == 8


@backends_of("heads_forward")
def test_padding_sequences_are_not_read(backend):
    """Nor what lies between the heads' weights, which is NaN in all cases."""
    heads = heads_of(["sst", "para", "sts", "kinds"], dtype=torch.float32)
    assert heads.pooled[-2:].isnan().all() and heads.weights.isnan().any()
    cotangents = torch.ones(heads.table.num_outputs)
    *inputs, table = moved(
        [heads.pooled, heads.factors, heads.weights, cotangents, heads.table],
        DEVICES.get(backend, "cpu"),
    )
    pooled, factors, weights, cotangents = inputs
    own = table, pooled, factors, weights
    grad = heads_vjp(*own, cotangents, backend=backend)
    dweights = torch.zeros_like(weights)
    lists = [pooled], [factors], [cotangents]
    heads_weight_gradients(table, *lists, dweights, backend=backend)
    results = heads_forward(*own, backend=backend), heads_jvp(*own, pooled, backend=backend)
    for x in (*results, grad, dweights):
        assert x.isfinite().all() and x.any()
    assert grad[-2:].eq(0).all() and dweights[heads.weights.isnan()].eq(0).all()


LINEAR = HeadSpec("linear", 2, 0, 3, 0, 12)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "0 heads of width 4; at least 1 of both"),
        ([HeadSpec("bilinear", 2, 0, 1, 0, 4)], "kind must be one of linear, concat"),
        ([HeadSpec("linear", 0, 0, 1, 0, 4)], "numbers must be positive"),
        ([HeadSpec("linear", 1, -1, 1, 0, 4)], "rows not negative"),
        ([HeadSpec("cosine", 1, 0, 2, -1, -1)], "a cosine is one output, got 2"),
        ([HeadSpec("concat", 1, 0, 2, -1, 9)], "offsets of weights must not be negative"),
        ([LINEAR, HeadSpec("linear", 2, 1, 1, 20, 30)], "two heads share sequences from 1 on"),
        ([LINEAR, HeadSpec("linear", 2, 2, 1, 14, 30)], "two heads share weights from 14 on"),
    ],
)
def test_tables_that_cannot_be(specs, message):
    with pytest.raises(ValueError, match=message):
        HeadTable(specs, 4, "cpu")


def test_shapes_that_do_not_fit():
    table, weights = HeadTable([LINEAR], 4, "cpu"), torch.randn(15)
    pooled, outputs = torch.randn(2, 4), torch.randn(6)
    for wrong in (pooled[:1], pooled[:, :3]):
        with pytest.raises(ValueError, match=r"heads_forward: pooled must be \[>= 2, 4\], got"):
            heads_forward(table, wrong, None, weights, backend="reference")
    with pytest.raises(ValueError, match="must have the shape of pooled"):
        heads_forward(table, pooled, pooled[:1], weights, backend="reference")
    with pytest.raises(ValueError, match=r"weights must be \[>= 15\], got \(14,\)"):
        heads_forward(table, pooled, None, weights[:14], backend="reference")
    with pytest.raises(ValueError, match="must have the shape of pooled"):
        heads_jvp(table, pooled, None, weights, pooled[:1], backend="reference")
    with pytest.raises(ValueError, match=r"heads_vjp: cotangents must be \[6\], got \(5,\)"):
        heads_vjp(table, pooled, None, weights, outputs[:5], backend="reference")
    with pytest.raises(ValueError, match="lists of one length are needed, got 1, 2 and 1"):
        heads_weight_gradients(
            table, [pooled], [None, None], [outputs], weights, backend="reference"
        )
