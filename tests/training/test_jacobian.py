"""The rows of a Jacobian, and rounds in which some tasks have them and others have not."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sbrrt_fast.training.step.group import TaskBatch
from sbrrt_fast.training.step.step import Step
from tests.model.models import TASKS, random_batch
from tests.training.steps import JOINT, SBRRT, autograd, build, written_out

TWO = replace(TASKS["sst"], num_classes=2)
ALL = TASKS | {"two": TWO}
LENGTHS = {"sst": [6, 9, 3], "para": [5, 7, 12, 4], "sts": [8, 8, 3, 11], "two": [7, 4, 5]}
LABELS = {"sst": [0.0, 4.0, 2.0], "para": [1.0, 0.0], "sts": [4.5, 0.5], "two": [1.0, 0.0, 1.0]}
ORDERS = [order for n in (1, 2, 3, 4) for order in itertools.permutations(ALL, n)]
RNG = torch.tensor([3, 1])


def make_group(names) -> list[TaskBatch]:
    torch.manual_seed(0)
    row, batches = 0, []
    for name in names:
        tokens = random_batch(LENGTHS[name], row)
        batches.append(TaskBatch(name, tokens, torch.tensor(LABELS[name])))
        row += len(LENGTHS[name])
    return batches


def differentiate(step: Step, batches: list[TaskBatch]) -> tuple[dict, dict[str, Tensor]]:
    """Loss terms and gradients of the batches together."""
    groups = step.passes.groups(batches)
    step.passes.refresh()
    terms = step.differentiate([groups], RNG)
    found = step.passes.gradients(groups)
    named = ((n, p, found.get(id(p))) for n, p in step.model.named_parameters())
    grads = {
        n: g.clone() if isinstance(g, Tensor) else g.dense(p) for n, p, g in named if g is not None
    }
    step.passes.forget()
    return terms, grads


def poison(step: Step) -> None:
    """NaN wherever a round before has left something."""
    space = step.passes.student.workspace
    tensors = (*space.activations.values(), *space.cotangents.values(), space.norm_sums)
    for tensor in (*tensors, step.passes.grads.flat, step.passes.grads.matrices):
        tensor.fill_(float("nan"))


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    """Each gradient relative to its norm; below 1e-5 of the largest norm it is rounding."""
    assert found.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        if gradient.norm() > 1e-5 * largest:
            assert (found[name] - gradient).norm() < bound * gradient.norm(), name


def joint_config(names, **smart):
    return replace(JOINT, tasks={n: ALL[n] for n in names}, smart=replace(JOINT.smart, **smart))


@pytest.mark.parametrize("shared", [True, False], ids=["shared masks", "masks of their own"])
@pytest.mark.parametrize("names", ORDERS, ids="-".join)
def test_any_tasks_in_any_order_equal_the_reference(names, shared):
    """On a workspace full of NaN."""
    config, batches = joint_config(names, shared_dropout=shared), make_group(names)
    ours, theirs = build(written_out, config), build(autograd, replace(config, backend="reference"))
    differentiate(ours, batches)
    poison(ours)
    (terms, found), (values, expected) = (differentiate(s, batches) for s in (ours, theirs))
    assert terms.keys() == values.keys()
    for name, value in values.items():
        floor = 1e-7 if name.endswith("bregman") else 1e-9
        assert torch.allclose(terms[name], value, rtol=1e-4, atol=floor), name
    assert_near(found, expected, 1e-4)


@pytest.mark.parametrize("update", ["joint", "per_task"])
def test_a_task_drawn_twice(update):
    """As a drawn schedule may: two steps, or the sum of both losses."""
    config = joint_config(("sst", "para"))
    config = replace(config, round=replace(config.round, update=update))
    batches = make_group(("para", "sst"))
    torch.manual_seed(5)
    again = replace(batches[0], tokens=random_batch(LENGTHS["para"], 20))
    batches = [*batches, replace(again, labels=1 - again.labels)]
    ours, theirs = build(written_out, config), build(autograd, replace(config, backend="reference"))
    if update == "joint":
        (_, grads), (_, exact) = (differentiate(step, batches) for step in (ours, theirs))
        assert_near(grads, exact, 1e-4)
    found, expected = (step.round(batches, 0, report=True) for step in (ours, theirs))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith("gain"):  # of the batches together here
            assert torch.allclose(found[name].to(value.dtype), value, rtol=1e-3, atol=1e-7), name


@pytest.mark.parametrize("steps", [2, 3])
def test_further_ascent_steps_leave_what_the_rows_have_kept(steps):
    names = ("sst", "para", "two", "sts")
    config = joint_config(names, num_steps=steps, step_size=0.05, projection="ball")
    ours, theirs = build(written_out, config), build(autograd, replace(config, backend="reference"))
    (_, found), (_, expected) = (differentiate(s, make_group(names)) for s in (ours, theirs))
    assert_near(found, expected, 2e-4)


def jacobians(names) -> tuple:
    """Of the same group with rows, and without."""
    found = []
    for has_rows in (True, False):
        step = build(written_out, joint_config(names))
        if not has_rows:
            step.passes.one_output = frozenset()
        order = sorted(make_group(names), key=lambda batch: not ALL[batch.name].has_one_output)
        (group,) = step.passes.groups(order)
        this = step.passes.begin(group, RNG)
        this.clean(step.ascent)
        with torch.no_grad():
            this.first_gradient(1.0)
        found.append((this, this.jacobian))
    return found


@torch.no_grad()
@pytest.mark.parametrize("names", [("para",), ("two", "sts"), ("sst", "two", "para")], ids="-".join)
def test_rows_apply_the_jacobian_that_passes_apply(names):
    """Of two classes' logits, what the softmax sees."""
    (this, ours), (_, theirs) = jacobians(names)
    assert ours.rows is not None and theirs.rows is None
    torch.manual_seed(0)
    delta, cotangents = torch.randn_like(this.embeddings), torch.randn_like(this.outputs)
    heads = this.tables.heads
    for logits in heads.split(cotangents):
        if logits.shape[1] == 2:
            logits -= logits.mean(dim=1, keepdim=True)
    changes = [heads.split(jacobian.jvp(delta)) for jacobian in (ours, theirs)]
    for found, expected in zip(*changes, strict=True):
        if expected.shape[1] == 2:
            expected = expected - expected.mean(dim=1, keepdim=True)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    found, expected = (jacobian.vjp(cotangents) for jacobian in (ours, theirs))
    assert (found - expected).norm() < 1e-5 * expected.norm()


def exact_error(has_rows: bool, seed: int) -> float:
    """Relative distance of a bf16 round's gradients to float64's, in all coordinates."""
    torch.manual_seed(seed)
    names = ("para", "sts")
    config = replace(joint_config(names), precision="bf16")
    ours = build(written_out, config)
    exact = build(autograd, replace(config, backend="reference", precision="fp32"), torch.float64)
    if not has_rows:
        ours.passes.one_output = frozenset()
    row, batches = 0, []
    for name in names:
        lengths = torch.randint(3, 20, (16,)).tolist()
        labels = torch.rand(8) * 5 if name == "sts" else torch.randint(0, 2, (8,)).float()
        batches.append(TaskBatch(name, random_batch(lengths, row), labels))
        row += 16
    (_, found), (_, expected) = (differentiate(step, batches) for step in (ours, exact))
    flat = [torch.cat([g.double().flatten() for g in side.values()]) for side in (found, expected)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


def test_rows_are_no_farther_from_float64_in_bf16():
    """The medians over batches: one batch's adversarial direction may flip a sign on either way."""
    errors = [
        sorted(exact_error(has_rows, seed) for seed in range(9)) for has_rows in (True, False)
    ]
    with_rows, without = (found[4] for found in errors)
    assert with_rows < 1.2 * without


def test_a_layer_is_reported_when_its_matrices_are_complete():
    names = tuple(ALL)
    step, seen = build(written_out, joint_config(names)), {}
    grads = step.passes.grads
    step.passes.student.on_layer = lambda index: seen.setdefault(
        index, grads.matrices[len(grads.layers) - 1 - index].clone()
    )
    differentiate(step, make_group(names))
    assert list(seen) == [1, 0]  # the last layer first
    for index, matrices in seen.items():
        assert torch.equal(matrices, grads.matrices[1 - index])


def test_gradients_are_parts_of_two_buffers():
    step = build(written_out, replace(SBRRT, precision="bf16"))
    grads = step.passes.grads
    assert grads.matrices.dtype == torch.bfloat16 and grads.flat.dtype == torch.float32
    homes = {x.untyped_storage().data_ptr() for x in (grads.matrices, grads.flat)}
    views = [*grads.by_parameter.values(), grads.heads]
    assert {view.untyped_storage().data_ptr() for view in views} == homes
    encoder = list(step.model.encoder.parameters())
    words = step.model.encoder.embeddings.word_embeddings.weight
    assert grads.by_parameter.keys() == {id(p) for p in encoder} - {id(words)}
    assert all(grads.by_parameter[id(p)].shape == p.shape for p in encoder if p is not words)
