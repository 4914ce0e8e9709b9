"""The momentum teacher against its closed form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sbrrt_fast.config import BregmanConfig
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.smart.bregman import Teacher, beta_at


def make_student(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.5), nn.Linear(7, 3))


def move(student, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in student.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)


@pytest.mark.parametrize(
    ("config", "betas"),
    [
        (BregmanConfig(beta=0.95), {1: 0.95, 10: 0.95, 100: 0.95}),
        (BregmanConfig(beta=0.5, schedule="paper"), {1: 0.99, 10: 0.99, 11: 0.999, 100: 0.999}),
    ],
)
def test_momentum_schedule(config, betas):
    assert {step: beta_at(step, 100, config) for step in betas} == betas


@pytest.mark.parametrize("schedule", ["constant", "paper"])
def test_teacher_is_the_closed_form_average(schedule):
    """theta~_T = theta_0 prod beta_t + sum_t (1 - beta_t) theta_t prod_{s > t} beta_s."""
    config = BregmanConfig(beta=0.9, schedule=schedule)
    student = make_student()
    teacher = Teacher(student, config)
    history = [[p.detach().double().clone() for p in student.parameters()]]
    total = 40
    for step in range(1, total + 1):
        move(student, step)
        history.append([p.detach().double().clone() for p in student.parameters()])
        teacher.update(step, total)
    weights, remaining = [], 1.0
    for step in range(total, 0, -1):
        beta = beta_at(step, total, config)
        weights.insert(0, remaining * (1 - beta))
        remaining *= beta
    weights.insert(0, remaining)
    assert sum(weights) == pytest.approx(1.0)
    for i, average in enumerate(teacher.state_dict().values()):
        expected = sum(w * parameters[i] for w, parameters in zip(weights, history, strict=True))
        assert (average.double() - expected).norm() <= 1e-6 * expected.norm()


def test_teacher_starts_as_the_student_and_stays_its_own():
    student = make_student().eval()
    teacher = Teacher(student, BregmanConfig())
    x = torch.randn(4, 5)
    before = student(x)
    torch.testing.assert_close(teacher(x), before, rtol=0, atol=0)
    move(student, 1)
    torch.testing.assert_close(teacher(x), before, rtol=0, atol=0)
    teacher.update(1, 10)
    assert not torch.equal(teacher(x), before)


def test_teacher_is_never_tracked():
    student = make_student()
    teacher = Teacher(student, BregmanConfig())
    x = torch.randn(4, 5, requires_grad=True)
    assert not teacher(x).requires_grad
    assert not any(p.requires_grad for p in teacher.module.parameters())
    assert all(p.requires_grad for p in student.parameters())
    (student(x) - teacher(x)).square().sum().backward()
    teacher.update(1, 10)
    assert all(p.grad is None for p in teacher.module.parameters())


def test_frozen_parameters_are_shared():
    student = make_student()
    student[0].requires_grad_(False)
    teacher = Teacher(student, BregmanConfig())
    assert teacher.module[0].weight is student[0].weight
    assert teacher.module[2].weight is not student[2].weight
    assert sorted(teacher.state_dict()) == ["2.bias", "2.weight"]
    frozen = student[0].weight.clone()
    move(student, 1)
    teacher.update(1, 10)
    assert torch.equal(student[0].weight, frozen)


def test_teacher_drops_out_as_the_student_does():
    student = make_student().eval()
    teacher = Teacher(student, BregmanConfig())
    assert not teacher.module.training
    student.train()
    assert teacher.module.training and teacher.module[1].training
    student.eval()
    assert not teacher.module[1].training


def test_state_goes_round_and_continues_identically():
    student = make_student()
    first = Teacher(student, BregmanConfig(beta=0.7))
    move(student, 1)
    first.update(1, 10)
    saved = {name: tensor.clone() for name, tensor in first.state_dict().items()}
    second = Teacher(student, BregmanConfig(beta=0.7))
    second.load_state_dict(saved)
    move(student, 2)
    first.update(2, 10)
    second.update(2, 10)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
        assert not torch.equal(tensor, saved[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("2.bias"), "'2.bias' is not in the saved teacher"),
        (lambda s: s.update(extra=torch.zeros(1)), "'extra' is not in the model"),
        (lambda s: s.update({"2.bias": torch.zeros(4)}), r"'2.bias' has shape \(4,\)"),
    ],
)
def test_state_of_another_model_is_refused(change, message):
    teacher = Teacher(make_student(), BregmanConfig())
    state = teacher.state_dict()
    change(state)
    with pytest.raises(WeightsError, match=message):
        teacher.load_state_dict(state)
