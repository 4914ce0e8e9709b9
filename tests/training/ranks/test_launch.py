"""torchrun's environment, and what a rank takes of its machine."""

from __future__ import annotations

import os

import pytest
import torch

from sbrrt_fast.cli import main
from sbrrt_fast.errors import BackendError, ConfigError
from sbrrt_fast.training.ranks import launch as launch_module
from sbrrt_fast.training.ranks.launch import Launch, num_cores, share_cores, take_gpu
from sbrrt_fast.training.ranks.process_group import connect
from sbrrt_fast.training.ranks.ranks import OneRank

SET = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-a",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_RUN_ID": "job",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
LAUNCH = Launch(3, 4, 1, 2, "node-a", 29500, True, 2, "job")


def test_torchrun_s_environment_is_read():
    assert Launch.read(SET) == LAUNCH
    needed = {k: v for k, v in SET.items() if not k.startswith("TORCHELASTIC")}
    assert Launch.read(needed) == Launch(3, 4, 1, 2, "node-a", 29500)


def test_a_process_alone_has_none():
    assert Launch.read({"MASTER_ADDR": "x", "OMP_NUM_THREADS": "2"}) is None


@pytest.mark.parametrize("name", [n for n in SET if not n.startswith("TORCHELASTIC")])
def test_a_variable_that_is_not_set_is_named(name):
    with pytest.raises(ConfigError, match=f"^{name} is not set .* start with torchrun, or unset"):
        Launch.read({k: v for k, v in SET.items() if k != name})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"RANK": "one"}, "RANK: expected a whole number, got 'one'"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE: expected a whole number, got '-2'"),
        ({"RANK": "4"}, "RANK 4 of WORLD_SIZE 4"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK 2 of LOCAL_WORLD_SIZE 2"),
        ({"TORCHELASTIC_RESTART_COUNT": "x"}, "TORCHELASTIC_RESTART_COUNT: expected"),
    ],
)
def test_a_value_that_cannot_be_is_named(change, message):
    with pytest.raises(ConfigError, match=message):
        Launch.read(SET | change)


def test_one_process_of_torchrun_is_one_rank(monkeypatch):
    for name, value in {**SET, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert isinstance(connect("cpu", 45), OneRank)


def test_half_an_environment_is_one_line(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    assert main(["train"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("sbrrt-fast train: WORLD_SIZE is not set in the environment")
    assert message.count("\n") == 1


@pytest.mark.parametrize("command", ["compare", "export", "reproduce", "report"])
def test_what_works_in_one_process_says_so(monkeypatch, capsys, command):
    for name, value in SET.items():
        if name != "TORCHELASTIC_USE_AGENT_STORE":
            monkeypatch.setenv(name, value)
    assert main([command]) == 2
    assert "works in one process; start it without torchrun" in capsys.readouterr().err


def test_too_few_gpus_say_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BackendError, match=r"2 processes .* torch sees 1; .*--nproc-per-node 1"):
        take_gpu(LAUNCH)


def test_a_rank_takes_the_gpu_of_its_number_on_the_machine(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    take_gpu(LAUNCH)
    assert taken == [1]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [({}, 3), ({"OMP_NUM_THREADS": "1"}, 3), ({"OMP_NUM_THREADS": "5"}, 0)],
)
def test_cores_are_shared_out_unless_the_user_has_done_so(monkeypatch, variables, expected):
    chosen = [0]
    monkeypatch.setattr(launch_module, "num_cores", lambda: 7)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    share_cores(LAUNCH, variables)
    assert chosen[-1] == expected


def test_cores_are_those_that_the_process_may_use():
    assert 1 <= num_cores() <= len(os.sched_getaffinity(0))
