"""How benchmarks time and check: few samples of what is slow, no time for what computes wrongly."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from benchmarks.cases import round as round_case
from benchmarks.cases.adamw_ema import SMALL, AdamwEma
from benchmarks.cases.optimizer import Optimizer
from benchmarks.cases.registry import OPS
from benchmarks.cases.round import Round
from benchmarks.cases.round_variants import FAST
from benchmarks.harness import runner
from benchmarks.harness.benchmark import Absent, Benchmark, Differentiable, Plain
from benchmarks.harness.check import WrongResult, check_close
from benchmarks.harness.deadline import NO_TIME, Deadline
from benchmarks.harness.lengths import TASKS, drawn, typical
from benchmarks.harness.measure import (
    Budget,
    CaptureFailed,
    Stopwatch,
    interleave,
)
from benchmarks.harness.progress import FreshProcess, Progress
from benchmarks.harness.results import Stage
from benchmarks.harness.runner import record_case, record_cases
from benchmarks.harness.settings import NUM_ROUNDS, Settings
from benchmarks.harness.shapes import MODELS, Case

CPU = torch.device("cpu")
QUICK = Settings(CPU, quick=True)
CASE = Case("any model", "x")


class Clock:
    """Time that passes when a call says so."""

    def __init__(self):
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, seconds: float):
        def run():
            self.order.append(name)
            self.now += seconds

        return run

    def watch(self, name: str, seconds: float, budget: Budget) -> Stopwatch:
        return Stopwatch([self.call(name, seconds)], CPU, budget, clock=self)


def sampled(calls: dict[str, float], budget: Budget, until: float = 1e9):
    """Samples, and the names in the order in which they were called, without warm-ups."""
    clock = Clock()
    watches = {name: clock.watch(name, seconds, budget) for name, seconds in calls.items()}
    clock.order.clear()
    return interleave(watches, budget, Deadline(until, clock)), clock.order


def test_variants_take_turns_and_each_begins_once():
    found, order = sampled({"a": 1.0, "b": 2.0, "c": 3.0}, Budget(0, min_samples=3, max_samples=3))
    assert order == list("abcbcacab")
    assert {name: samples.seconds for name, samples in found.items()} == {
        "a": (1.0,) * 3, "b": (2.0,) * 3, "c": (3.0,) * 3,
    }  # fmt: skip


def test_a_slow_variant_has_fewer_samples_and_a_very_slow_one_its_first_call():
    budget = Budget(0, min_samples=5, max_samples=5, variant_seconds=10)
    found, order = sampled({"quick": 1.0, "slow": 4.0, "hour": 3600.0}, budget)
    assert {name: len(samples.seconds) for name, samples in found.items()} == {
        "quick": 5, "slow": 2, "hour": 1,
    }  # fmt: skip
    assert found["hour"].seconds == (3600.0,)
    assert found["hour"].method == "one call, the first"
    assert "hour" not in order


def test_no_sample_begins_that_would_end_too_late():
    found, order = sampled({"a": 1.0, "b": 5.0}, Budget(0, min_samples=9, max_samples=9), until=4.5)
    assert order == ["a"] * 4
    assert {name: samples.method for name, samples in found.items()} == {
        "a": "loop of 1 calls", "b": "one call, a warm-up",
    }  # fmt: skip


def test_where_time_is_short_the_first_variants_have_it():
    """9 samples of each take 90 seconds: with 60, the last variant has none."""
    calls, budget = {"goal": 3.0, "peer": 3.0, "beside": 4.0}, Budget(0, 9, 9)
    samples, order = sampled(calls, budget, until=60)
    assert Counter(order) == {"goal": 9, "peer": 9}
    assert samples["beside"].method == "one call, a warm-up"
    samples, _ = sampled(calls, budget, until=91)
    assert {len(x.seconds) for x in samples.values()} == {9}


@pytest.mark.parametrize(("seconds", "calls"), [(0.1, 7), (5.0, 3)])
def test_warm_ups_end_in_time(seconds, calls):
    clock = Clock()
    clock.watch("a", seconds, Budget(warm_ups=7, warm_up_seconds=10, sample_seconds=0))
    assert len(clock.order) == calls


class Scripted(Benchmark):
    """Variants that take so many seconds of a clock, when prepared and when called."""

    name, variants = "scripted", ("ours", "eager", "sdpa")
    prepared, num_warm_ups = 0.0, 1

    def __init__(self, clock: Clock):
        super().__init__(QUICK)
        self.clock, self.breaks = clock, {}

    def cases(self):
        yield CASE

    def budget(self, case):
        return Budget(0, min_samples=2, max_samples=2, warm_ups=self.num_warm_ups)

    def tokens(self, case):
        return None

    def calls(self, case, variant, num_sets):
        self.clock.now += self.prepared
        error = self.breaks.get(variant)
        if error and (self.is_captured or not isinstance(error, CaptureFailed)):
            raise error
        return [self.clock.call(variant, 1.0)]


def test_variants_that_the_time_does_not_reach_are_listed():
    clock = Clock()
    benchmark, stage = Scripted(clock), Stage()
    benchmark.prepared = 3.0
    record_case(stage, benchmark, CASE, clock, Deadline(8.5, clock))  # a variant has 5.1 of them
    assert [row.variant for row in stage.rows] == []  # their only calls were the first
    assert {entry["variant"] for entry in stage.absent} == {"ours", "eager", "sdpa"}
    assert {"benchmark": "scripted any model x fp32 forward", "variant": "ours",
            "reason": NO_TIME} in stage.absent  # fmt: skip


@pytest.mark.parametrize(("seconds", "timed"), [(6.0, {"ours": 1.0}), (30.0, None)])
def test_slow_preparation_leaves_what_is_ready_its_figure(seconds, timed):
    """What was prepared first is timed, if only by its last warm-up."""
    clock = Clock()
    benchmark, stage = Scripted(clock), Stage()
    benchmark.prepared, benchmark.num_warm_ups = 4.0, 2
    record_case(stage, benchmark, CASE, clock, Deadline(seconds, clock))
    found = {row.variant: row.seconds for row in stage.rows}
    assert found == (timed or {"ours": 1.0, "eager": 1.0, "sdpa": 1.0})
    if timed:
        assert stage.rows[0].method == "one call, a warm-up"


def test_cases_take_turns_with_each_other_variant_by_variant():
    clock, stage = Clock(), Stage()
    benchmark, cases = Scripted(clock), [CASE, replace(CASE, batch="y")]
    rows = record_cases(stage, benchmark, cases, clock)
    variants = ["ours", "eager", "sdpa"]
    # Prepared with a warm-up, then sampled twice, each turn beginning with another one.
    assert clock.order[:6] == [name for name in variants for _ in cases]
    assert clock.order[6:] == [*clock.order[:6], *clock.order[1:6], clock.order[0]]
    assert {case: list(rows[case]) for case in cases} == dict.fromkeys(cases, variants)
    assert {row.case for row in stage.rows} == {str(case) for case in cases}


def test_a_variant_whose_times_do_not_count_has_no_row():
    clock, stage = Clock(), Stage()
    benchmark = Scripted(clock)
    benchmark.refusal = {"ours": "", "eager": "compiled again", "sdpa": ""}.get
    assert record_case(stage, benchmark, CASE, clock).keys() == {"ours", "sdpa"}
    reason = {"benchmark": "scripted", "variant": "eager", "reason": "compiled again"}
    assert stage.absent == [reason]


@pytest.mark.parametrize("kind", [RuntimeError, WrongResult])
def test_a_broken_variant_costs_only_itself(kind):
    clock = Clock()
    benchmark, stage = Scripted(clock), Stage()
    benchmark.breaks = {"ours": kind("odd")}
    record_case(stage, benchmark, CASE, clock)
    assert {row.variant for row in stage.rows} == {"eager", "sdpa"}
    assert stage.failures == [
        {"what": "scripted any model x fp32 forward ours", "error": f"{kind.__name__}: odd"}
    ]


def test_a_failed_capture_is_timed_launch_by_launch_in_a_fresh_process(tmp_path):
    """Where no other process can go on, in this one."""
    clock, path = Clock(), tmp_path / "progress.json"
    benchmark = Scripted(clock)
    benchmark.breaks = {"eager": CaptureFailed("capture failed (odd)")}
    with pytest.raises(FreshProcess, match="eager: capture failed"):
        record_case(Stage(), benchmark, CASE, clock, progress=Progress(path))
    for progress in (Progress(path), None):
        benchmark, stage = Scripted(clock), Stage()
        benchmark.breaks = {"eager": CaptureFailed("capture failed (odd)")}
        record_case(stage, benchmark, CASE, clock, progress=progress)
        assert {row.variant for row in stage.rows} == {"ours", "eager", "sdpa"}
        assert stage.notes == ["scripted eager: capture failed (odd); timed launch by launch"]


def test_a_lost_gpu_ends_the_process_and_the_next_leaves_out_what_broke_it(tmp_path, monkeypatch):
    clock, path = Clock(), tmp_path / "progress.json"
    monkeypatch.setattr(runner, "is_lost", lambda: True)
    broken = {"ours": RuntimeError("an illegal memory access")}
    benchmark = Scripted(clock)
    benchmark.breaks = broken
    with pytest.raises(FreshProcess, match="illegal"):
        record_case(Stage(), benchmark, CASE, clock, progress=Progress(path))
    benchmark, stage = Scripted(clock), Stage()
    benchmark.breaks = broken
    record_case(stage, benchmark, CASE, clock, progress=Progress(path))
    assert {row.variant for row in stage.rows} == {"eager", "sdpa"}
    assert "an illegal memory access" in stage.failures[0]["error"]


def planted(kind: type) -> type:
    """The op's benchmark, with our implementation off by a tenth."""

    def off(x):
        return torch.where(x.isfinite(), 1.1 * x, x) if x.is_floating_point() else x

    class Wrong(kind):
        def variant(self, case, name):
            way = super().variant(case, name)
            return replace(way, run=lambda inputs, p: off(way.run(inputs, p)))

        def function(self, case, name):
            function = super().function(case, name)
            return (lambda *tensors: off(function(*tensors))) if name == "cpu" else function

    return Wrong


@pytest.mark.parametrize("kind", [k for k in OPS if issubclass(k, (Differentiable, Plain))])
def test_a_wrong_result_of_any_op_is_found(kind):
    case = next(iter(kind(QUICK).cases()))
    assert kind(QUICK).calls(case, "cpu", 1)
    with pytest.raises(WrongResult):
        planted(kind)(QUICK).calls(case, "cpu", 1)


@pytest.mark.parametrize(("kind", "ours"), [(AdamwEma, "cpu"), (Optimizer, FAST)])
def test_a_wrong_update_is_found(kind, ours, monkeypatch):
    real = kind._update

    def wrong(self, *args):
        made = real(self, *args)
        step, update = made if isinstance(made, tuple) else (None, made)
        weights = [p for a in args if hasattr(a, "params") for p in a.params]
        weights += list(step.model.parameters()) if step else []

        def moved():
            update()
            weights[0].data.flatten()[0] += 1e-3

        found = moved if ours in args else update
        return (step, found) if step else found

    monkeypatch.setitem(MODELS, "minilm", SMALL)
    benchmark = kind(QUICK)
    case = next(iter(benchmark.cases()))
    assert benchmark.calls(case, ours, 1)
    monkeypatch.setattr(kind, "_update", wrong)
    with pytest.raises(WrongResult, match="other"):
        benchmark.calls(case, ours, 1)


RIGHT = {"sst/loss": 1.5, "sst/smart": 1e-4}


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        (RIGHT, None),
        (RIGHT | {"sst/loss": 1.49}, "sst/loss is 1.49, not 1.5"),
        (RIGHT | {"sst/smart": 3e-4}, "sst/smart is 0.0003"),
        ({"sst/smart": 1e-4}, "there is no sst/loss"),
        ({"sst/loss": 1.5}, "there is no sst/smart"),
        (RIGHT | {"sst/loss": float("nan")}, "sst/loss is nan"),
    ],
)
def test_a_round_with_other_losses_is_found(terms, told, monkeypatch):
    def build(name, *args, **options):
        found = RIGHT if name == "reference fp32" else terms
        return lambda batches, index: {n: torch.tensor(x).double() for n, x in found.items()}

    monkeypatch.setattr(round_case, "build", build)
    benchmark, case = Round(Settings(CPU, quick=False)), Case("minilm", "round", "", "train")
    if told is None:
        assert len(benchmark.calls(case, "fast fp32", 1)) == 1
        return
    with pytest.raises(WrongResult, match=told):
        benchmark.calls(case, "fast fp32", 1)


def test_results_of_another_number_are_no_match():
    x = torch.ones(3)
    with pytest.raises(ValueError):
        check_close("x", [x], [x, x], 1e-3)


def test_peers_in_bf16_are_left_out_with_the_reason_where_it_is_emulated(monkeypatch):
    case = Case("minilm", "round", "", "train")
    monkeypatch.setattr(round_case, "bf16_over_fp32", lambda device: 7.0)
    slow = Round(Settings(CPU, quick=False))
    for peer in ("hf bf16 sdpa", "hf bf16 eager"):
        with pytest.raises(Absent, match="takes 7 times as long as one in fp32; see hf fp32 sdpa"):
            slow._leave_out(case, peer)
    slow._leave_out(replace(case, model="bert-base"), "hf fp32 sdpa")
    monkeypatch.setattr(round_case, "bf16_over_fp32", lambda device: 0.2)
    Round(Settings(CPU, quick=False))._leave_out(case, "hf bf16 eager")
    with pytest.raises(Absent, match="bert-base takes too long"):
        slow._leave_out(replace(case, model="bert-base"), "hf fp32 sdpa")


def test_drawn_lengths_are_the_datas_and_batches_differ_little():
    generator = torch.Generator().manual_seed(0)
    for task in TASKS:
        batches = [drawn(task, 16, generator) for _ in range(200)]
        totals = torch.tensor([sum(batch) for batch in batches], dtype=torch.float64)
        assert totals.mean().item() == pytest.approx(sum(typical(task, 2000)) / 125, rel=0.03)
        assert totals.std() / totals.mean() < 0.1
        assert len({tuple(batch) for batch in batches}) == 200
    first_places = Counter(batch.index(max(batch)) for batch in batches)
    assert len(first_places) > 8  # in random order


def test_the_rounds_are_a_few_again_and_again():
    rounds = round_case.Rounds(QUICK, Case("minilm", "round", "", "train"))
    found = list(itertools.islice((rounds[i] for i in itertools.count()), 2 * NUM_ROUNDS))
    assert all(a is b for a, b in zip(found, found[NUM_ROUNDS:], strict=False))
    assert len({id(batches) for batches in found}) == NUM_ROUNDS
    assert found[0][0].tokens.input_ids.device == CPU
