"""The comparison of two runs finds what got slower and nothing else."""

from __future__ import annotations

import json
import random
import statistics
from dataclasses import replace

import pytest
import torch

from benchmarks.cases.gelu import BiasGelu
from benchmarks.harness.measure import Budget, Samples
from benchmarks.harness.results import Results, Row, Stage
from benchmarks.harness.runner import record_case
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import Case
from benchmarks.report.regressions import changes_between, main

OPS = ("attention", "bias_gelu", "embed", "layernorm")
VARIANTS = {"cpu": 1e-3, "eager": 4e-3, "compile": 2e-3, "copy": 5e-4}
PLANTED = 1.3


def made(
    seed: int, slow: tuple[str, ...] = (), drift: float = 1.0, spread: float = 0.05
) -> Results:
    """A run with samples that scatter, and what is ``slow`` of ours made 30% slower."""
    generator, rows = random.Random(seed), []
    for op in OPS:
        for number in range(6):
            for variant, base in VARIANTS.items():
                factor = drift * (PLANTED if op in slow and variant == "cpu" else 1.0)
                samples = [base * factor * generator.gauss(1.0, spread) for _ in range(25)]
                rows.append(Row.of(op, f"case {number}", variant, Samples(tuple(samples), "made")))
    return Results({"hardware": "x", "threads": 1, "device": "cpu"}, {"ops": Stage(rows)})


def names(changes) -> set[str]:
    return {change.a.benchmark for change in changes}


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_slowdown(seed):
    found = changes_between(made(seed), made(seed + 100))
    assert found.slower() == []
    assert found.faster() == []
    assert len(found.ours) == 6 * len(OPS)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_slowdown_of_30_percent_is_found(seed):
    found = changes_between(made(seed), made(seed + 100, slow=("embed",)))
    assert names(found.slower()) == {"embed"}
    assert len(found.slower()) == 6
    found = changes_between(made(seed, slow=("embed",)), made(seed + 100))
    assert names(found.faster()) == {"embed"}


@pytest.mark.parametrize("drift", [0.6, 1.5])
def test_the_machines_drift_is_taken_off(drift):
    found = changes_between(made(0), made(1, drift=drift))
    assert found.drift == pytest.approx(drift, rel=0.02)
    assert found.slower() == []
    assert names(changes_between(made(0), made(1, slow=("attention",), drift=drift)).slower()) == {
        "attention"
    }


def test_all_of_ours_being_slower_is_no_drift():
    assert names(changes_between(made(0), made(1, slow=OPS)).slower()) == set(OPS)


def test_quartiles_that_overlap_are_noise():
    """Medians that are 20% apart prove nothing where samples scatter by half."""
    a, b = made(0, spread=0.4), made(1, spread=0.4)
    worst = max(change.corrected for change in changes_between(a, b).ours)
    assert worst > 1.15
    assert changes_between(a, b).slower() == []


def test_a_case_of_another_size_is_not_compared():
    a, b = made(0), made(1)
    rows = b.stages["ops"].rows
    rows[:] = [replace(r, tokens=2560) if r.benchmark == "embed" else r for r in rows]
    found = changes_between(a, b)
    assert names(found.ours) == set(OPS) - {"embed"}
    assert {key[0] for key in found.missing} == {"embed"} and len(found.missing) == 6


def saved(results: Results, folder) -> str:
    return str(results.save(folder))


def test_the_command_tells_and_exits(tmp_path, capsys):
    a, same = saved(made(0), tmp_path / "a"), saved(made(1), tmp_path / "b")
    slower = saved(made(1, slow=("bias_gelu",)), tmp_path / "c")
    assert main([a, same]) == 0
    assert "nothing is slower by more than 15% beyond noise" in capsys.readouterr().out
    assert main([a, slower]) == 1
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("SLOWER")]
    assert len(told) == 6
    assert all("bias_gelu case" in line and ", cpu: 1." in line for line in told)
    assert main([a, slower, "--threshold", "0.5"]) == 0


def test_a_benchmark_that_stopped_fails_the_comparison(tmp_path, capsys):
    b = made(1)
    b.stages["ops"].failures.append({"what": "embed case 1", "error": "WrongResult: off"})
    assert main([saved(made(0), tmp_path / "a"), saved(b, tmp_path / "b")]) == 1
    assert "STOPPED embed case 1: WrongResult: off" in capsys.readouterr().out


def test_runs_without_a_common_case_are_refused(tmp_path, capsys):
    empty = Results({"hardware": "x"}, {"ops": Stage()})
    with pytest.raises(SystemExit) as exit:
        main([saved(made(0), tmp_path / "a"), saved(empty, tmp_path / "b")])
    assert exit.value.code == 2
    assert "no case in common" in capsys.readouterr().err
    (tmp_path / "c.json").write_text(json.dumps({"format": 99}), encoding="utf-8")
    with pytest.raises(SystemExit) as exit:
        main([str(tmp_path / "a"), str(tmp_path / "c.json")])
    assert exit.value.code == 2


class Gelu(BiasGelu):
    """The real benchmark, a few of its variants; ours can take longer, or be wrong.

    The calls do their work, and take the seconds of a clock of their own: so many for each variant,
    and now and then more, as where other processes run.
    """

    variants = ("cpu", "eager", "eager folded")
    extra, is_wrong = 0.0, False

    def __init__(self, seed: int = 0):
        super().__init__(Settings(torch.device("cpu"), quick=True))
        self.now, self.generator = 0.0, random.Random(seed)

    def clock(self) -> float:
        return self.now

    def budget(self, case):
        return Budget(min_samples=25, max_samples=25)

    def ours(self, case, backend):
        way = super().ours(case, backend)
        if not self.is_wrong:
            return way
        return replace(way, run=lambda inputs, p: way.run(inputs, p) * 1.01)

    def ready(self, case, variant):
        seconds = VARIANTS.get(variant, 1e-3) * (1 + self.extra * (variant == "cpu"))
        return [self._timed(call, seconds) for call in super().ready(case, variant)]

    def _timed(self, call, seconds: float):
        def timed():
            call()
            self.now += seconds * (1 + self.generator.expovariate(20))

        return timed


class SlowGelu(Gelu):
    extra = 0.3


class WrongGelu(Gelu):
    is_wrong = True


CASE = Case("minilm", "task", "fp32", "forward")


def measured(benchmark: Gelu) -> Results:
    """A run of one case."""
    stage = Stage()
    record_case(stage, benchmark, CASE, benchmark.clock)
    return Results({"hardware": "x", "threads": 1, "device": "cpu"}, {"ops": stage})


def test_a_planted_slowdown_of_a_real_op_is_found(tmp_path):
    before, again, slow = measured(Gelu(1)), measured(Gelu(2)), measured(SlowGelu(3))
    assert main([saved(before, tmp_path / "a"), saved(slow, tmp_path / "b")]) == 1
    assert [change.a.variant for change in changes_between(before, slow).slower()] == ["cpu"]
    assert changes_between(before, again).slower() == []


def test_a_wrong_result_is_not_timed_and_costs_the_others_nothing():
    stage = Stage()
    record_case(stage, WrongGelu(), CASE)
    assert {row.variant for row in stage.rows} == {"eager", "eager folded", "copy"}
    (failure,) = stage.failures
    assert failure["what"] == "bias_gelu minilm task fp32 forward cpu"
    assert failure["error"].startswith("WrongResult: bias_gelu minilm task fp32 forward cpu")


def test_rows_keep_medians_and_quartiles():
    row = Row.of("op", "case", "cpu", Samples((1.0, 2.0, 3.0, 4.0, 50.0), "made"))
    assert (row.low, row.seconds, row.high, row.samples) == (2.0, 3.0, 4.0, 5)
    assert statistics.median([1.0, 2.0, 3.0, 4.0, 50.0]) == row.seconds


class FailingPeer(Gelu):
    def variant(self, case, name):
        if name == self.fails:
            raise RuntimeError("no memory\nand more")
        return super().variant(case, name)


def test_a_peer_that_fails_is_absent_and_ours_is_a_failure():
    stage, benchmark = Stage(), FailingPeer()
    benchmark.fails = "eager"
    record_case(stage, benchmark, CASE)
    assert {"benchmark": "bias_gelu", "variant": "eager",
            "reason": "stopped: RuntimeError: no memory"} in stage.absent  # fmt: skip
    assert {row.variant for row in stage.rows} == {"cpu", "eager folded", "copy"}
    benchmark.fails, stage = "cpu", Stage()
    record_case(stage, benchmark, CASE)
    assert {row.variant for row in stage.rows} == {"eager", "eager folded", "copy"}
    (failure,) = stage.failures
    assert failure["what"].endswith(" cpu")
    assert failure["error"] == "RuntimeError: no memory\nand more"
