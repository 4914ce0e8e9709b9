"""Where a round's time goes, and the least it can cost."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from benchmarks.harness.machine import Machine
from sbrrt_fast.config import BregmanConfig, RoundConfig, RunConfig, SmartConfig
from sbrrt_fast.data.task import BUILTIN_TASKS
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.training.cost import floor
from sbrrt_fast.training.cost.floor import Ceilings, measure_ceilings, round_cost
from sbrrt_fast.training.cost.profile import NoClock, StageClock, peak_bytes, report

MODEL = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=96)
FORWARD = 2.0 * 2 * (4 * 64 * 64 + 2 * 64 * 96) * 100  # 100 tokens
TASKS = {name: BUILTIN_TASKS[name] for name in ("sst", "para", "sts")}
PLAIN = RunConfig(tasks=TASKS)
SBRRT = replace(PLAIN, smart=SmartConfig(weight=1.0), bregman=BregmanConfig(weight=0.8))


def forwards(config: RunConfig) -> tuple[float, ...]:
    """Of one token of a task with several outputs, and of one with one."""
    costs = (round_cost(MODEL, config, {task: 100}, 1) for task in ("sst", "sts"))
    return tuple(sum(cost.flops.values()) / FORWARD for cost in costs)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (PLAIN, (3, 3)),
        (SBRRT, (9, 7)),
        (replace(SBRRT, bregman=BregmanConfig()), (8, 6)),
        (replace(SBRRT, smart=SmartConfig(weight=1.0, num_steps=2)), (11, 7)),
        (replace(SBRRT, smart=SmartConfig(weight=1.0, gradient="finite", sigma=0.1)), (9, 9)),
    ],
)
def test_forward_equivalents_of_a_round(config, expected):
    assert forwards(config) == expected


def test_bytes_of_the_optimiser():
    def moved(config):
        return round_cost(MODEL, config, {"sst": 100}, 1000).bytes["optimiser"] / 1000

    assert moved(PLAIN) == 3 * 28  # parameter and two moments twice, the gradient
    assert moved(SBRRT) == 3 * 36
    assert moved(replace(SBRRT, precision="bf16")) == 3 * 38
    assert moved(replace(SBRRT, round=RoundConfig(update="joint"))) == 36


def test_the_floor_is_the_slower_of_operations_and_bytes():
    cost = round_cost(MODEL, SBRRT, {"sst": 100}, 1000)
    floors = cost.seconds(Ceilings(flops=FORWARD, bytes=108_000.0))
    assert floors == {
        "clean": 2.0, "backward": 4.0, "ascent": 1.0, "adversarial": 1.0, "teacher": 1.0,
        "optimiser": 1.0,
    }  # fmt: skip


def test_ceilings_are_of_this_machine():
    found = measure_ceilings(torch.device("cpu"), torch.float32, rows=64, repeats=2)
    assert 1e8 < found.flops < 1e15
    assert 1e8 < found.bytes < 1e13


def test_bf16_products_may_be_made_in_float32(monkeypatch):
    rates = {torch.float32: Ceilings(8.0, 3.0), torch.bfloat16: Ceilings(1.0, 4.0)}
    device = torch.device("cpu")
    monkeypatch.setattr(floor, "measure_ceilings", lambda device, dtype: rates[dtype])
    assert floor.best_ceilings(device, "bf16") == Ceilings(8.0, 4.0)
    rates[torch.bfloat16] = Ceilings(16.0, 4.0)
    assert floor.best_ceilings(device, "bf16").flops == 16.0
    assert floor.best_ceilings(device, "fp32") == rates[torch.float32]
    machine = Machine({"fp32": 8.0, "bf16": 1.0}, 3.0, 1e-6)
    assert machine.ceilings("bf16") == machine.ceilings("fp32") == Ceilings(8.0, 3.0)


def test_the_clock_adds_up_stages_and_takes_medians(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(StageClock, "_now", lambda self: now[0])
    clock = StageClock(torch.device("cpu"))

    def spend(stage: str, seconds: float) -> None:
        with clock(stage):
            now[0] += seconds

    for seconds in (50.0, 1.0, 2.0, 3.0, 4.0, 2.0):
        spend("clean", seconds)
        spend("clean", seconds)
        spend("teacher", 0.5)
        now[0] += 10.0  # between stages
        clock.end_round()
    assert clock.medians(warm_up=1) == {"clean": 4.0, "teacher": 0.5}
    assert clock.medians(warm_up=6)["teacher"] == 0.5  # too few rounds to leave any out
    with pytest.raises(KeyError), clock("clean"):
        {}[now.__setitem__(0, now[0] + 7.0)]
    clock.end_round()
    assert clock.rounds[-1] == {"clean": 7.0}


def test_the_clock_runs():
    clock = StageClock(torch.device("cpu"))
    with clock("clean"):
        time.sleep(0.002)
    clock.end_round()
    assert clock.rounds[0]["clean"] >= 0.002


def test_no_clock_measures_nothing():
    with NoClock()("clean"):
        pass


def test_the_report_names_every_stage_and_its_floor():
    clock = StageClock(torch.device("cpu"))
    clock.rounds = [{"clean": 0.004, "backward": 0.004, "report": 0.002}]
    cost = round_cost(MODEL, SBRRT, {"sst": 100}, 1000)
    lines = report(clock, cost, Ceilings(FORWARD / 1e-3, 1e9), {"peak": 3 << 20})
    assert lines[0].startswith("one round, median of 1: 10.0 ms for 100 tokens; floor 9.1 ms")
    cells = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert cells["clean"] == ["4.0", "40%", "2.0", "2.0x"]
    assert cells["backward"] == ["4.0", "40%", "4.0", "1.0x"]
    assert cells["report"] == ["2.0", "20%"]
    assert lines[-1] == "  memory: peak 3 MiB"


def test_a_process_counts_its_own_memory_and_not_that_of_the_one_that_started_it():
    held = torch.ones(1 << 30, dtype=torch.uint8)
    tell = (
        "import torch; from sbrrt_fast.training.cost.profile import peak_bytes;"
        " print(peak_bytes(torch.device('cpu')))"
    )
    told = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True)
    assert int(told.stdout) < held.nbytes < peak_bytes(torch.device("cpu"))
