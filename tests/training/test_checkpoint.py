"""Saved states: bit-exact, whole after a kill, and clear errors when damaged."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from sbrrt_fast.checksums import CHECKSUMS, checksummed_directory, readable_directory
from sbrrt_fast.config import OptimizerConfig
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.training import checkpoint
from sbrrt_fast.training.checkpoint import (
    load_optimizer_tensors,
    load_state,
    optimizer_tensors,
    save_state,
)
from sbrrt_fast.training.step.optimizer import build_optimizer, set_learning_rate

CONFIG = OptimizerConfig(learning_rate=1e-2)


def sample_tensors():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(37, 5, generator=generator)
    return {
        "float": values,
        "view": values.T[1:3].clone().T,
        "bf16": values[0].bfloat16(),
        "double": values.double()[3:4] / 3,
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
    }


def same_bits(a, b):
    as_bytes = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*as_bytes)


def test_state_comes_back_bit_for_bit(tmp_path):
    meta = {"round": 12, "best": 0.1 + 0.2, "cursor": {"taken": {"sst": 3}}, "none": None}
    (tmp_path / "run").mkdir()
    save_state(tmp_path / "run" / "state", tensors=sample_tensors(), meta=meta)
    tensors, read = load_state(tmp_path / "run" / "state")
    assert read == meta
    assert set(tensors) == set(sample_tensors())
    for name, tensor in sample_tensors().items():
        assert same_bits(tensors[name], tensor), name


def test_saving_again_replaces_the_state_and_leaves_nothing_behind(tmp_path):
    for value in (1, 2, 3):
        save_state(tmp_path / "state", tensors={"x": torch.tensor([value])}, meta={"n": value})
    tensors, meta = load_state(tmp_path / "state")
    assert tensors["x"].item() == meta["n"] == 3
    assert sorted(os.listdir(tmp_path)) == ["state"]
    assert sorted(os.listdir(tmp_path / "state")) == [
        "checksums.json",
        "state.json",
        "state.safetensors",
    ]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.encoder = nn.Linear(5, 7)
        self.heads = nn.ModuleDict({"a": nn.Linear(7, 1), "late": nn.Linear(7, 1)})

    def loss(self, step):
        x = torch.randn(9, 5, generator=torch.Generator().manual_seed(step))
        head = self.heads["late" if step > 3 else "a"]  # 'late' has no optimiser state before
        return head(torch.tanh(self.encoder(x))).square().mean()


def train(model, optimizer, steps):
    for step in steps:
        set_learning_rate(optimizer, step, 8, CONFIG)
        optimizer.zero_grad()
        model.loss(step).backward()
        optimizer.step()


@pytest.mark.parametrize("stop", [0, 2, 5])
def test_a_resumed_optimizer_continues_bit_for_bit(tmp_path, stop):
    whole = Net()
    train(whole, build_optimizer(whole.named_parameters(), CONFIG), range(1, 9))

    first = Net()
    optimizer = build_optimizer(first.named_parameters(), CONFIG)
    train(first, optimizer, range(1, stop + 1))
    tensors = optimizer_tensors(optimizer, first.named_parameters())
    save_state(tmp_path / "state", tensors={**first.state_dict(), **tensors}, meta={})

    tensors, _ = load_state(tmp_path / "state")
    second = Net()
    second.load_state_dict({n: t for n, t in tensors.items() if not n.startswith("optimizer.")})
    optimizer = build_optimizer(second.named_parameters(), CONFIG)
    load_optimizer_tensors(optimizer, second.named_parameters(), tensors)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    train(second, optimizer, range(stop + 1, 9))
    for name, parameter in whole.state_dict().items():
        assert same_bits(second.state_dict()[name], parameter), name
    assert all(same_bits(tensors[name], before[name]) for name in before)


def test_the_optimizer_state_matters(tmp_path):
    """Without it the continued run differs: the test above can fail."""
    whole, first = Net(), Net()
    train(whole, build_optimizer(whole.named_parameters(), CONFIG), range(1, 9))
    train(first, build_optimizer(first.named_parameters(), CONFIG), range(1, 3))
    train(first, build_optimizer(first.named_parameters(), CONFIG), range(3, 9))
    assert not same_bits(whole.encoder.weight, first.encoder.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("optimizer.encoder.bias.step"), "encoder.bias': it holds"),
        (lambda s: s.update({"optimizer.encoder.bias.exp_avg": torch.zeros(3)}), r"shape \(3,\)"),
        (lambda s: s.update({"optimizer.gone.exp_avg": torch.zeros(3)}), "'gone'.*no such"),
    ],
)
def test_optimizer_state_of_another_model_is_refused(change, message):
    model = Net()
    optimizer = build_optimizer(model.named_parameters(), CONFIG)
    train(model, optimizer, [1])
    state = optimizer_tensors(optimizer, model.named_parameters())
    change(state)
    with pytest.raises(WeightsError, match=message):
        load_optimizer_tensors(optimizer, model.named_parameters(), state)


STEPS_OF_A_WRITER = (
    (checkpoint, "write_tensors"),
    (os, "fsync"),
    (shutil, "rmtree"),
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "rmdir"),
    (Path, "touch"),
    (Path, "unlink"),
    (Path, "write_text"),
)


def save_until_killed(folder, stop, tensors, meta):
    """Saves in a child process that dies before its step number ``stop``; returns its status."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    steps = itertools.count(1)

    def dying(function):
        return lambda *args, **kwargs: (
            os._exit(9) if next(steps) == stop else function(*args, **kwargs)
        )

    for owner, name in STEPS_OF_A_WRITER:
        setattr(owner, name, dying(getattr(owner, name)))
    try:
        save_state(folder, tensors=tensors, meta=meta)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("had_state", [True, False])
def test_a_kill_at_any_moment_leaves_a_whole_state(tmp_path, had_state):
    values = {n: {"x": torch.full((1000,), float(n))} for n in (1, 2, 3)}
    left = []
    for stop in range(1, 40):
        folder = tmp_path / str(stop) / "state"
        folder.parent.mkdir()
        if had_state:
            save_state(folder, tensors=values[1], meta={"n": 1})
        status = save_until_killed(folder, stop, values[2], {"n": 2})
        try:
            tensors, meta = load_state(folder)
            assert torch.equal(tensors["x"], values[meta["n"]]["x"])
            left.append(meta["n"])
        except WeightsError as error:
            left.append(0 if "there is no saved state" in str(error) else -1)
        with contextlib.suppress(KeyboardInterrupt), checksummed_directory(folder):
            raise KeyboardInterrupt  # the next writer is killed as well
        assert not left[-1] or load_state(folder)[1] == {"n": left[-1]}
        save_state(folder, tensors=values[3], meta={"n": 3})
        assert load_state(folder)[1] == {"n": 3}
        assert os.listdir(folder.parent) == ["state"]
        if status == 0:
            break
        assert status == 9
    assert status == 0 and len(left) >= 7
    assert left == sorted(left) and set(left) == {int(had_state), 2}


def test_a_writer_that_raises_keeps_the_old_folder(tmp_path):
    save_state(tmp_path / "state", tensors={"x": torch.ones(3)}, meta={"n": 1})

    def write_half() -> None:
        with checksummed_directory(tmp_path / "state") as new:
            (new / "state.json").write_text("half")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        write_half()
    assert load_state(tmp_path / "state")[1] == {"n": 1}
    assert os.listdir(tmp_path) == ["state"]


def test_a_reader_changes_nothing_on_disk(tmp_path):
    save_state(tmp_path / "state", tensors={"x": torch.ones(3)}, meta={"n": 1})
    (tmp_path / "state").rename(tmp_path / "state.old")
    (tmp_path / "state.tmp-1").mkdir()
    assert readable_directory(tmp_path / "state") == tmp_path / "state.old"
    assert load_state(tmp_path / "state")[1] == {"n": 1}
    assert sorted(os.listdir(tmp_path)) == ["state.old", "state.tmp-1"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def rewrite_format(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def rename_a_file(path):
    path.write_text(path.read_text().replace("state.json", "stata.json"))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (checkpoint.TENSORS, truncate, "bytes instead of"),
        (checkpoint.TENSORS, flip, "checksum is wrong"),
        (checkpoint.TENSORS, os.remove, "the file is missing"),
        (checkpoint.META, truncate, "bytes instead of"),
        (checkpoint.META, flip, "checksum is wrong"),
        (checkpoint.META, rewrite_format, "bytes instead of"),
        (checkpoint.META, os.remove, "the file is missing"),
        (CHECKSUMS, truncate, "not the JSON that was written"),
        (CHECKSUMS, rewrite_format, "not a list of format 1"),
        (CHECKSUMS, rename_a_file, "checksum is wrong"),
        (CHECKSUMS, os.remove, "the file is missing"),
    ],
)
def test_damage_is_named_with_its_file(tmp_path, file, damage, message):
    save_state(tmp_path / "state", tensors=sample_tensors(), meta={"n": 1})
    damage(tmp_path / "state" / file)
    with pytest.raises(WeightsError, match=f"{file}: cannot be used, .*{message}"):
        load_state(tmp_path / "state")


def test_a_missing_state_is_named(tmp_path):
    with pytest.raises(WeightsError, match="state: there is no saved state; train first"):
        load_state(tmp_path / "state")
