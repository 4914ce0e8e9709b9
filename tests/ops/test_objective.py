"""The objective written out, against autograd in float64 over the model's losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sbrrt_fast.model.heads import class_logits
from sbrrt_fast.ops.objective import (
    LossSpec,
    Objective,
    ObjectiveTable,
    objective,
    smoothness_cotangents,
    smoothness_values,
)
from sbrrt_fast.smart.divergence import divergence_of
from tests.ops.backends import DEVICES, backends_of
from tests.ops.head_groups import ALL, BREGMAN_WEIGHT, SMART_WEIGHT, Heads, heads_of
from tests.ops.on_device import moved
from tests.ops.test_task_heads import GROUPS

each_group = pytest.mark.parametrize("names", GROUPS, ids=" ".join)
every_backend = backends_of("objective", "reference")
TIGHT = {"rtol": 1e-11, "atol": 1e-13}
FACTOR = 0.3


def random_outputs(heads: Heads, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(heads.table.num_outputs, dtype=torch.float64)


def model_terms(heads: Heads, w: Tensor, z: Tensor | None, t: Tensor | None) -> Tensor:
    """[num_tasks, 4] as ``training.step`` has them, with their graph."""
    zero = [w.new_zeros(())] * len(heads.tasks)
    smart = zero if z is None else [FACTOR * x for x in heads.model_divergences(z, w)]
    bregman = zero if t is None else heads.model_divergences(w, t)
    rows = []
    for task, loss, r, b in zip(heads.tasks, heads.model_losses(w), smart, bregman, strict=True):
        total = task.weight * (loss + SMART_WEIGHT * r + BREGMAN_WEIGHT * b)
        rows.append(torch.stack([loss, r, b, total]))
    return torch.stack(rows)


@each_group
@pytest.mark.parametrize("has_teacher", [False, True])
@pytest.mark.parametrize("scale", [None, 1e-5, 0.3, 5.0])
def test_terms_and_gradients(names, has_teacher, scale):
    heads = heads_of(names)
    w = random_outputs(heads).requires_grad_()
    z = None
    if scale is not None:
        z = (w.detach() + random_outputs(heads, scale)).requires_grad_()
    t = random_outputs(heads) if has_teacher else None
    found = objective(heads.losses(), w, heads.labels, z, t, FACTOR, backend="reference")
    expected = model_terms(heads, w, z, t)
    torch.testing.assert_close(found.terms, expected.detach(), **TIGHT)
    leaves = [w] if z is None else [w, z]
    gradients = torch.autograd.grad(expected[:, 3].sum(), leaves)
    torch.testing.assert_close(found.grad_outputs, gradients[0], **TIGHT)
    if z is None:
        assert found.grad_adversarial is None
    else:
        torch.testing.assert_close(found.grad_adversarial, gradients[1], **TIGHT)


def test_smart_values_are_reported_and_not_differentiated():
    heads = heads_of(["sst", "sts"])
    w, z = random_outputs(heads), random_outputs(heads)
    arguments = heads.losses(), w, heads.labels, z, None, FACTOR
    values = torch.tensor([3.0, 4.0], dtype=torch.float64)
    plain = objective(*arguments, backend="reference")
    found = objective(*arguments, values, backend="reference")
    for a, b in zip(plain[1:], found[1:], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(found.terms[:, 1], values)
    expected = plain.terms[:, 3] + SMART_WEIGHT * (values - plain.terms[:, 1])
    torch.testing.assert_close(found.terms[:, 3], expected, **TIGHT)


@each_group
def test_cotangents_of_the_ascent(names):
    heads = heads_of(names)
    w, t = random_outputs(heads), random_outputs(heads)
    found = smoothness_cotangents(heads.losses(), w, t, backend="reference")
    leaf = w.clone().requires_grad_()
    logits = [class_logits(task, x) for _, task, _, x in heads.each(leaf)]
    tangents = [class_logits(task, x) for _, task, _, x in heads.each(t)]
    cotangents = [
        divergence_of(task).fisher(x.detach(), dx) / len(x)
        for task, x, dx in zip(heads.tasks, logits, tangents, strict=True)
    ]
    (expected,) = torch.autograd.grad(logits, leaf, cotangents)
    torch.testing.assert_close(found, expected, **TIGHT)
    step = 1e-6 * t  # and they are what they are said to be
    change = step.clone().requires_grad_()
    total = sum(heads.model_divergences(w + change, w))
    (expected,) = torch.autograd.grad(total, change)
    assert (1e-6 * found - expected).norm() < 1e-5 * expected.norm()


@each_group
@pytest.mark.parametrize("scale", [1e-5, 0.3, 5.0])
def test_values_keep_their_relative_precision_in_float32(names, scale):
    heads = heads_of(names)
    w, d = random_outputs(heads).float(), random_outputs(heads, scale).float()
    found = smoothness_values(heads.losses(), w, d, backend="reference")
    exact = smoothness_values(heads.losses(), w.double(), d.double(), backend="reference")
    assert found.dtype == torch.float32
    assert ((found - exact).abs() <= 2e-6 * exact).all()
    # d, since w + d - w is not d
    expected = torch.stack(
        [
            divergence_of(task).delta(class_logits(task, a), class_logits(task, b)).mean()
            for _, task, _, a, b in heads.each(w.double(), d.double())
        ]
    )
    torch.testing.assert_close(exact, expected, **TIGHT)


def test_label_units_may_change_in_place():
    heads = heads_of(["length"])
    table, w = heads.losses(), random_outputs(heads)
    heads.modules[0].units.fit(torch.tensor([3.0, 4.0, 9.0]))
    for backend, dtype, bounds in (("reference", torch.float64, TIGHT), ("cpu", torch.float32, {})):
        found = objective(table, w.to(dtype), heads.labels, backend=backend).terms[0, 0]
        torch.testing.assert_close(found, heads.model_losses(w)[0].to(dtype), **bounds)


@every_backend
def test_labels_far_from_zero_keep_their_digits(backend):
    """They are standardised in float64."""
    labels = torch.tensor([16777216.0, 16777218.0])
    mean, scale = torch.tensor(16777217.0).double(), torch.tensor(1.0).double()
    mean += 1.0 - (mean - 16777216.0)  # 16777217 has no float32
    device = DEVICES.get(backend, "cpu")
    units = {"label_mean": mean.to(device), "label_scale": scale.to(device)}
    table = ObjectiveTable([LossSpec("squared", 2, 1, 1.0, **units)], 0.0, 0.0, device)
    found = objective(table, *(x.to(device) for x in (0 * labels, labels)), backend=backend)
    assert found.terms.tolist() == [[1.0, 0.0, 0.0, 1.0]]
    assert found.grad_outputs.tolist() == [1.0, -1.0]


@every_backend
@pytest.mark.parametrize("name", ["sst", "yes-no", "smooth"])
@pytest.mark.parametrize("label", [-1.0, 5.0, 0.5, torch.nan])
def test_a_label_that_is_no_class_is_not_finite(name, label, backend):
    heads = heads_of([name, "sts"])
    w = random_outputs(heads).float()
    heads.labels[1] = label
    device = DEVICES.get(backend, "cpu")
    inputs = moved([heads.losses(), w, heads.labels], device)
    found = moved(objective(*inputs, backend=backend)[:2], "cpu")
    found = Objective(*found, None)
    assert found.terms[:, 0].isnan().tolist() == [True, False]
    is_finite = [g.isfinite().all(dim=1) for g in heads.table.split(found.grad_outputs)]
    assert is_finite[0].tolist() == [True, False, True] and is_finite[1].all()


def test_a_class_without_probability():
    """A smoothing of 0 leaves a masked class out; its gradient is 0."""
    heads = heads_of(["sst"], [1])
    w = torch.tensor([0.5, -torch.inf, 0.2, 0.1, 0.0], dtype=torch.float64)
    heads.labels[0] = 2
    found = objective(heads.losses(), w, heads.labels, backend="reference")
    assert found.terms.isfinite().all() and found.grad_outputs.isfinite().all()
    assert found.grad_outputs[1] == 0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "there must be at least one task"),
        (LossSpec("hinge", 1, 1, 1.0), "loss must be one of cross_entropy"),
        (LossSpec("squared", 0, 1, 1.0), "numbers must be positive"),
        (LossSpec("cross_entropy", 1, 2, 1.0, 1.0), r"smoothing in \[0, 1\)"),
        (LossSpec("binary_cross_entropy", 1, 2, 1.0), "is of one output, got 2"),
        (LossSpec("cross_entropy", 1, 3, 1.0, 0.0, torch.ones(2)), r"must be \[3\], got \(2,\)"),
        (LossSpec("squared", 1, 1, 1.0, label_mean=torch.zeros(())), "come together"),
    ],
)
def test_tables_that_cannot_be(spec, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveTable([] if spec is None else [spec], 1.0, 1.0, "cpu")


def test_shapes_that_do_not_fit():
    table, x, y = heads_of(["sst"], [2]).losses(), torch.zeros(10), torch.zeros(2)
    with pytest.raises(ValueError, match=r"objective: labels must be \[2\], got \(1,\)"):
        objective(table, x, y[:1], backend="reference")
    with pytest.raises(ValueError, match=r"objective: targets must be \[10\], got \(9,\)"):
        objective(table, x, y, None, x[:9], backend="reference")
    with pytest.raises(ValueError, match="smart_values need adversarial outputs"):
        objective(table, x, y, smart_values=torch.zeros(1), backend="reference")
    with pytest.raises(ValueError, match=r"smoothness_values: changes must be \[10\]"):
        smoothness_values(table, x, x[:5], backend="reference")


def test_every_kind_of_loss_is_here():
    kinds = {spec.loss for name in ALL for spec in heads_of([name]).losses().specs}
    assert kinds == {"cross_entropy", "binary_cross_entropy", "squared"}
