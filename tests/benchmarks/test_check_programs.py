"""The programs that the GPU check runs: they find, build, list, call, carry and train."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.cases.adamw_ema import SMALL
from benchmarks.gpu_check import carry, native_build, small_calls
from benchmarks.harness import rounds, short_run
from benchmarks.harness.benchmark import Benchmark
from benchmarks.harness.deadline import NO_TIME
from benchmarks.harness.machine import ROOT, Machine
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import Case
from benchmarks.report import floor
from benchmarks.tune import kernel_list
from benchmarks.tune.kernel_list import Interval, summary
from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.bert import MiniBert
from tests.helpers import small_sample, tiny_backbone


def test_a_short_run_learns_something_and_says_how_fast(tmp_path, monkeypatch, minilm_dir):
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("BACKBONE", str(minilm_dir))
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["short_run", str(tmp_path), "--rounds", "2"])
    short_run.main()
    record = json.loads((tmp_path / short_run.FILE).read_text(encoding="utf-8"))
    assert record["data"] == "the built-in sample"
    assert record["rounds_per_second"] > 0
    assert record["before"].keys() == record["after"].keys() == {"sst", "para", "sts", "overall"}
    assert record["before"] != record["after"]


@pytest.mark.parametrize(
    ("imports", "is_there", "wants_cuda", "how", "installed"),
    [
        ([{"cuda": "13.0"}], True, True, native_build.AS_IT_IS, []),
        ([{"cuda": None}], True, False, native_build.AS_IT_IS, []),
        ([None, {"cuda": "13.0"}], True, True, native_build.CARRIED, ["carried"]),
        ([None, None, {"cuda": "13.0"}], True, True, native_build.COMPILED, ["carried", "all"]),
        ([{"cuda": None}, {"cuda": None}], False, True, native_build.COMPILED, ["all"]),
        ([None, None], False, True, native_build.COMPILED, ["all"]),
    ],
)
def test_a_build_that_imports_is_used(monkeypatch, imports, is_there, wants_cuda, how, installed):
    seen, left = [], list(imports)
    monkeypatch.setattr(native_build, "extension_info", lambda: left.pop(0))
    monkeypatch.setattr(native_build, "extensions", lambda: [Path("x")] if is_there else [])
    monkeypatch.setattr(native_build, "install", lambda e: seen.append("carried" if e else "all"))
    found = native_build.build(wants_cuda, compiles=True)
    is_right = imports[-1] and (imports[-1]["cuda"] or not wants_cuda)
    assert found == (how, imports[-1] if is_right else None)
    assert seen == installed


def test_the_extension_that_is_here_is_found_and_nothing_else_taken_for_one(monkeypatch, tmp_path):
    assert native_build.extension_info()["path"].startswith(str(ROOT / "sbrrt_fast"))
    broken = tmp_path / "_C.broken.so"
    broken.touch()
    monkeypatch.setattr(native_build, "extensions", lambda: [broken])
    monkeypatch.setattr(native_build, "PROBE", "raise SystemExit('it does not load')")
    assert native_build.extension_info() is None


def test_kernels_are_summed_up_and_gaps_are_between_neighbours():
    found = summary(
        [
            Interval("b", 12.0, 16.0), Interval("a", 0.0, 10.0), Interval("a", 20.0, 22.0),
            Interval("c", 14.0, 15.0),  # beside b
        ],
        num_rounds=2,
    )  # fmt: skip
    assert {n: found[n] for n in ("span", "busy", "idle", "count")} == {
        "span": 11.0, "busy": 8.0, "idle": 3.0, "count": 2.0,
    }  # fmt: skip
    assert found["kernels"][0] == {"name": "a", "count": 1.0, "time": 6.0}
    assert found["gaps"] == [
        {"after": "b", "before": "a", "count": 0.5, "time": 2.0},
        {"after": "a", "before": "b", "count": 0.5, "time": 1.0},
    ]


class Slow(Benchmark):
    """An op whose first backend takes all the time it is given."""

    name, variants = "slow", ("cuda", "triton")
    clock = 0.0

    def cases(self):
        yield from (Case("minilm", batch) for batch in ("task", "round"))

    def calls(self, case, variant, num_sets):
        Slow.clock += 50.0 if variant == "cuda" else 1.0
        return [lambda: None]


class Other(Slow):
    name = "other"


def test_an_op_that_takes_long_leaves_the_others_their_time():
    Slow.clock = 0.0
    until = small_calls.Deadline(60.0, lambda: Slow.clock)
    pairs = [(backend, kind) for backend in ("cuda", "triton") for kind in (Slow, Other)]
    told = small_calls.call_pairs(pairs, Settings(torch.device("cpu"), True), None, until)
    found = dict(pair for pair in told if pair[0])
    late = f"not called: {NO_TIME}"
    assert found["slow minilm task fp32 forward cuda"] == "right"
    assert found["slow minilm round fp32 forward cuda"] == late
    assert found["other minilm task fp32 forward cuda"] == "right"


def test_a_backbone_is_carried_with_half_the_bytes_and_loads(tmp_path):
    source = tiny_backbone(tmp_path / "source")
    size = carry.carry(source, tmp_path / "carried")
    before, after = (load_file(p / "model.safetensors") for p in (source, tmp_path / "carried"))
    assert all(torch.equal(after[name], x.bfloat16()) for name, x in before.items())
    encoder = MiniBert.from_folder(tmp_path / "carried", pooling="mean")
    assert all(p.dtype == torch.float32 for p in encoder.parameters())
    assert size < 0.7 * sum(f.stat().st_size for f in source.rglob("*") if f.is_file())
    with pytest.raises(WeightsError, match="give a new folder"):
        carry.carry(source, tmp_path / "carried")


def test_what_is_too_large_to_be_carried_is_refused(tmp_path, monkeypatch):
    source = tiny_backbone(tmp_path / "source")
    monkeypatch.setattr(carry, "MOST_BYTES", 1000)
    with pytest.raises(WeightsError, match="MiB in bf16, more than"):
        carry.carry(source, tmp_path / "carried")
    assert not (tmp_path / "carried").exists()


def test_real_rounds_take_the_backbone_that_is_named(tmp_path, monkeypatch):
    """Its tokenizer always, its weights where a model has its shape."""
    backbone = tiny_backbone(tmp_path / "backbone", max_length=64)
    monkeypatch.setenv("DATA", str(small_sample(tmp_path / "data")))
    monkeypatch.setenv("BACKBONE", str(backbone))
    weights = MiniBert.from_folder(backbone, pooling="mean")
    monkeypatch.setitem(rounds.MODELS, "minilm", weights.config)
    made = rounds.Rounds(Settings(torch.device("cpu"), True), Case("minilm", "round-2", ""))
    assert [batch.name for batch in made[0]] == ["sst", "para", "sts"]
    state = made.encoder().state_dict()
    assert all(torch.equal(state[name], x) for name, x in weights.state_dict().items())
    other = rounds.Rounds(Settings(torch.device("cpu"), True), Case("bert-base", "round-2", ""))
    assert not rounds.is_shape_of(other.case.config, backbone)
    assert torch.equal(other[0][0].tokens.input_ids, made[0][0].tokens.input_ids)


def test_the_floor_on_a_gpu_is_that_of_replays(monkeypatch):
    """The stages are launched one by one; a run replays them, and that is what is compared."""
    gpu = Settings(torch.device("cuda"), True)
    stages = {"seconds": {"clean": 0.2}, "flops": {"clean": 1e9}, "bytes": {"clean": 1e6},
              "num_tokens": 690, "precision": "bf16"}  # fmt: skip
    monkeypatch.setattr(floor, "settings", lambda: gpu)
    monkeypatch.setattr(floor, "measure", lambda device: Machine({"bf16": 1e12}, 1e12, 2e-6))
    monkeypatch.setattr(floor, "stage_times", lambda *args: stages)
    monkeypatch.setattr(
        floor, "replayed_round", lambda *args: {"seconds": 0.005, "kernels": 1500.0}
    )
    arguments = argparse.Namespace(
        flops=None, update="joint", precision="bf16", by_op=False, gpus=1, model="minilm"
    )
    lines = list(floor.lines_of(arguments, Case("minilm", "round", "")))
    assert "| clean | 200.00 | 100% | 1.00 | 200.0x |" in lines
    assert lines[-2] == "replayed, as in a run: 5.00 ms a round, 5.0x the floor"
    assert lines[-1] == (
        "launches: 1500 kernels and copies of a replayed round, 3.00 ms at 2.00 us each"
    )


def test_a_list_of_kernels_that_were_launched_says_so():
    """On a GPU every step of it must be a replay; here there is none."""
    step = rounds.build_ours(
        MiniBert(SMALL, pooling="mean"), rounds.SBRRT, torch.device("cpu"), log=lambda line: None
    )
    assert kernel_list.num_replays(step) == 0
    told = kernel_list.launched_reason(step, 0, 2, ["the reason"])
    assert told == "0 of 6 steps were replays; the reason"
    assert kernel_list.launched_reason(step, 6, 2, []) == ""
