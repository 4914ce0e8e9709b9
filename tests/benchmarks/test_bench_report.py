"""What a run of the benchmarks leaves: report, goals, plots, floor, and the README's table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import run, suite
from benchmarks.cases import stages
from benchmarks.cases.adamw_ema import SMALL
from benchmarks.cases.assemble import Assemble
from benchmarks.cases.round import Round
from benchmarks.harness.check import WrongResult
from benchmarks.harness.deadline import NO_TIME
from benchmarks.harness.machine import Machine
from benchmarks.harness.results import Results, Row, Stage
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import MODELS, Case
from benchmarks.harness.text import duration
from benchmarks.report import report
from benchmarks.report.floor import Launches, floor_table, num_parameters, op_lines, scaling
from benchmarks.report.goals import GOALS, missing_bf16
from benchmarks.report.plots import draw_all

MS = 1e-3
MACHINE = {"flops": {"fp32": 1e11, "bf16": 1e12}, "bytes": 1e10, "launch": 2e-6}
STAGES = {
    "minilm round per_task": {
        "seconds": {"clean": 40 * MS, "optimiser": 30 * MS, "data": 1 * MS},
        "flops": {"clean": 2e10},
        "bytes": {"optimiser": 1e8},
        "num_tokens": 700,
        "precision": "bf16",
    }
}


def row(benchmark: str, case: str, variant: str, milliseconds: float, **cost) -> Row:
    seconds = milliseconds * MS
    return Row(benchmark, case, variant, seconds, 0.9 * seconds, 1.1 * seconds, 9, "made", **cost)


def made(fast: float = 100.0, reference: int = 400, device: str = "cpu") -> Results:
    """A run with a row of every kind; a round of ours takes ``fast`` milliseconds."""
    times = {
        "hf fp32 eager": 900, "hf bf16 eager": 500, "hf bf16 sdpa": 450, "reference fp32": 800,
        "hf fp32 eager joint": 840, "hf bf16 eager joint": 380, "hf bf16 sdpa joint": 420,
        "fast bf16": fast, "fast bf16 joint": 80, "plain bf16": 40, "fast fp32": 180,
        "plain bf16 joint": 40, "hf bf16 sdpa plain joint": 120,
    }  # fmt: skip
    rounds = [row("round", "minilm round train", n, t, tokens=700) for n, t in times.items()]
    sweep = [
        row("sweep", f"minilm {batch} train", "fast bf16", t, tokens=tokens)
        for batch, t, tokens in (
            ("round-8", 70, 700), ("round-64", 610, 5600), ("tokens-16", 90, 900),
            ("tokens-512", 270, 1800), ("tokens-64", 100, 900),
        )
    ]  # fmt: skip
    vectors = {"ours fp32 32 at a time": 50, "sentence-transformers fp32 32 at a time": 90}
    encode = [row("encode", "minilm texts vectors", n, t, tokens=900) for n, t in vectors.items()]
    ops = [
        row("attention", "minilm round bf16 forward", n, t, tokens=700, bytes=4e6, flops=5e7)
        for n, t in {"cpu": 1.0, "eager": 8.0, "copy": 0.5}.items()
    ]
    ops.append(row("assemble", "any model round data", "ours", 0.2))
    sizes = {"fast bf16": 190, "fast bf16 joint": 230, "reference fp32": reference}
    memory = {n: {"round_bytes": b << 20, "process_bytes": 1 << 30} for n, b in sizes.items()}
    stages = {
        "machine": Stage(details={"machine": MACHINE}),
        "round": Stage(rounds, details={"stages": STAGES, "memory": memory}),
        "ops": Stage(ops + sweep + encode,
                     [{"benchmark": "attention", "variant": "liger", "reason": "no"}],
                     [{"what": "embed x", "error": "WrongResult: off"}]),
    }  # fmt: skip
    environment = {
        "device": device, "hardware": "A Chip", "cpu": {"capability": "AVX9"}, "threads": 2,
        "versions": {"torch": "2.13"}, "commit": "abc", "date": "2026-01-02T03:04",
        "quick": False, "load": 0.5,
    }  # fmt: skip
    return Results(environment, stages)


def goals(results: Results) -> dict[str, tuple[str, str]]:
    """Goal -> (figure, met, not met or the reason)."""
    return {line[0]: line[2:] for line in (goal.line(results) for goal in GOALS)}


AGAINST = "SBRRT against Hugging Face {}, a step per {}, CPU"
FP32, BF16 = "fp32 eager", "bf16 autocast"


def test_goals_are_met_or_not():
    """Each compares as many optimiser steps on both sides."""
    found = goals(made())
    for kind, steps, shown, verdict in (
        (FP32, "round", "10.5x (`fast bf16 joint`, `hf fp32 eager joint`)", "met"),
        (BF16, "round", "4.8x (`fast bf16 joint`, `hf bf16 eager joint`)", "not met"),
        (FP32, "task", "9.0x (`fast bf16`, `hf fp32 eager`)", "met"),
        (BF16, "task", "4.5x (`fast bf16`, `hf bf16 sdpa`)", "met"),
    ):
        assert found[AGAINST.format(kind, steps)] == (shown, verdict)
    plain = found["Plain against plain, bf16 on both sides, a step per round"]
    shown = "3.0x (`plain bf16 joint`, `hf bf16 sdpa plain joint`)"
    assert plain == (shown, "for information")
    assert found["SBRRT, fp32 on both sides, a step per task"][0].startswith("5.0x (`fast fp32`")
    assert found["SBRRT over plain, a step per round"] == ("2.00", "met")
    assert found["SBRRT over plain, a step per task"] == ("2.50", "for information")
    memory = "Memory of a round against the reference's, a step per {}"
    assert found[memory.format("task")] == ("0.47 (190 of 400 MiB)", "met")
    assert found[memory.format("round")] == ("0.57 (230 of 400 MiB)", "not met")
    vectors = found["Sentence vectors against sentence-transformers, fp32 on both sides"]
    assert vectors[0].startswith("1.8x")
    assert found["Putting a round's batches together"] == ("0.20 ms", "met")


def test_time_per_token_is_told_point_by_point_with_its_spread():
    found = goals(made())
    spread = "Time per token, {}, largest over smallest, a step per {}"
    batches, lengths = "8 to 64 examples a task", "16 to 512 tokens a sequence"
    shown = "1.09 (8: 100 us ±10%, 64: 109 us ±10%)"
    assert found[spread.format(batches, "task")] == (shown, "met")
    shown = "1.50 (16: 100 us ±10%, 64: 111 us ±10%, 512: 150 us ±10%)"
    assert found[spread.format(lengths, "task")] == (shown, "not met")
    reason = "`fast bf16 joint` has no samples of round-8 in this run"
    assert found[spread.format(batches, "round")] == ("-", reason)


def test_a_size_that_was_timed_once_is_no_point_of_the_sweep():
    results = made()
    rows = results.stages["ops"].rows
    rows[:] = [replace(r, samples=1) if " round-64 " in r.case else r for r in rows]
    line = goals(results)["Time per token, 8 to 64 examples a task, largest over smallest, a step"
                          " per task"]  # fmt: skip
    assert line == ("-", "`fast bf16` has no samples of round-64 in this run")


def test_goals_that_are_missed_say_so():
    found = goals(made(fast=150.0, reference=300))
    assert found[AGAINST.format(FP32, "task")][1] == "not met"
    assert found["SBRRT over plain, a step per task"][0] == "3.75"
    assert found["Memory of a round against the reference's, a step per task"][1] == "not met"


def test_goals_of_another_device_or_without_a_figure_give_the_reason():
    found = goals(made(device="cuda"))
    assert found[AGAINST.format(FP32, "task")] == ("-", "not of this device")
    reference = found["SBRRT against our reference, eager, a step per task, GPU"]
    assert reference[0].startswith("8.0x")
    graphs = found["SBRRT against torch.compile with graphs, a step per round, GPU"]
    assert graphs == ("-", "no `hf bf16 graphs joint` in this run")
    empty = goals(Results(made().environment))
    assert {figure for figure, _ in empty.values()} == {"-"}


def test_compiled_rounds_are_compared_within_their_own_case():
    results = made(device="cuda")
    case = "minilm round train compiled"
    results.stages["round"].rows += [
        row("round", case, n, t, tokens=700)
        for n, t in {"fast bf16": 50, "hf bf16 graphs": 150, "hf bf16 graphs joint": 99}.items()
    ]
    found = goals(results)
    graphs = "SBRRT against torch.compile with graphs, a step per {}, GPU"
    assert found[graphs.format("task")] == ("3.0x (`fast bf16`, `hf bf16 graphs`)", "met")
    assert found[graphs.format("round")] == ("-", "no `fast bf16 joint` in this run")


def test_a_goal_without_a_figure_gives_the_reason_that_the_run_noted():
    results = made()
    rows = results.stages["round"].rows
    rows[:] = [row for row in rows if not row.variant.startswith("hf bf16")]
    results.stages["round"].note_absent("round minilm round train", "hf bf16 sdpa", "too slow")
    figure = goals(results)[AGAINST.format(BF16, "task")]
    assert figure == ("-", "no `hf bf16 sdpa`: too slow")


def test_what_a_machine_lacks_is_said_beside_goals_and_readme():
    results = made()
    assert missing_bf16(results) == ""
    results.stages["machine"].details["machine"] = MACHINE | {"flops": {"fp32": 1e11, "bf16": 1e10}}
    assert "no instructions for bf16 products (AVX9): torch's reach 0.10" in missing_bf16(results)
    assert missing_bf16(results) in report.markdown(results, []).splitlines()
    assert missing_bf16(results) in report.readme_table([results])
    assert goals(results)[AGAINST.format(FP32, "task")][1] == "met"


def test_one_sample_and_notes_are_told():
    results = made()
    results.stages["round"].rows[0] = replace(results.stages["round"].rows[0], samples=1)
    results.stages["round"].notes.append("round fast bf16: captured nothing")
    text = report.markdown(results, [])
    assert "| hf fp32 eager | 900 | one sample | 9.00 | 778 | 9.00 (`fast bf16`) |" in text
    assert "- round fast bf16: captured nothing" in text
    assert "| minilm | 8 | `hf fp32 eager` | 900 | one sample | 9.00 |" in report.readme_table(
        [results]
    )


def test_the_report_has_every_part():
    text = report.markdown(made(), ["ratios.png"])
    for line in (
        "A Chip (AVX9), 2 thread(s), torch 2.13, commit abc, 2026-01-02.",
        "| hf fp32 eager | 900 | 810 to 990 | 9.00 | 778 | 9.00 (`fast bf16`) |",
        "| hf fp32 eager joint | 840 | 756 to 924 | 8.40 | 833 | 10.50 (`fast bf16 joint`) |",
        "| hf bf16 sdpa plain joint | 120 | 108 to 132 | 1.20 | 5,833 | 3.00 (`plain bf16 jo",
        "| sentence-transformers fp32 32 at a time | 90 | 81 to 99 | 1.80 | 10,000 |",
        "| clean | 40.00 | 56% | 20.00 | 2.0x |",
        "| optimiser | 30.00 | 42% | 10.00 | 3.0x |",
        "| data | 1.00 | 1% | - | - |",
        "| `fast bf16` | 190 | 1024 |",
        "| minilm round-64 train | 5600 | 109 (98 to 120) |",
        "| minilm round bf16 forward | cpu | 1 ms | 4.0 | 8.00 | 0.50 |",
        "![ratios.png](ratios.png)",
        "- `liger` (attention): no",
        "- embed x: WrongResult: off",
    ):
        assert line in text.splitlines() or line in text, line


def test_every_plot_is_drawn(tmp_path):
    assert draw_all(made(), tmp_path) == [
        "ratios.png", "roofline.png", "per_token.png", "stages.png",
    ]  # fmt: skip
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert draw_all(Results(made().environment), tmp_path / "empty") == []


def test_the_readme_has_the_table_of_the_committed_results():
    text = report.README.read_text(encoding="utf-8")
    assert report.with_table(text, report.readme_table(report.committed())) == text


def test_the_readmes_table_changes_with_the_results():
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter"
    found = report.with_table(text, report.readme_table([made()]))
    assert found.startswith(f"before\n{report.BEGIN}\n\nA Chip (AVX9), 2 thread(s)")
    assert found.endswith(f"{report.END}\nafter")
    assert "| minilm | 8 | `hf bf16 sdpa` | 450 | 405 to 495 | 4.50 |" in found
    assert "sdpa plain" not in found
    assert "old" not in found
    with pytest.raises(ValueError, match="no place for the table"):
        report.with_table("without marks", "table")


def test_a_whole_run_through_the_command(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("DEVICE", "cpu")
    arguments = [str(tmp_path), "--stages", "evaluate", "--only", "assemble", "--no-plots"]
    assert run.main(arguments) == 0
    assert "assemble any model round data: ours" in capfd.readouterr().out
    (first, second) = Results.load(tmp_path).rows
    assert {first.variant, second.variant} == {"ours", "pad_sequence"}
    assert "## assemble" in (tmp_path / "report.md").read_text(encoding="utf-8")


class Broken(Assemble):
    name = "broken"

    def _check(self, tasks, examples) -> None:
        raise WrongResult("planted")


def test_a_run_with_a_wrong_result_goes_on_and_ends_with_a_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setattr(suite, "BENCHMARKS", {"evaluate": (Broken, Assemble)})
    here = ["--progress", str(tmp_path / "progress.json")]  # in this process
    assert run.main([str(tmp_path), "--stages", "evaluate", "--no-plots", *here]) == 1
    told = "STOPPED broken any model round data ours: WrongResult: planted"
    assert told in capsys.readouterr().err
    assert {row.benchmark for row in Results.load(tmp_path).rows} == {"assemble"}


def test_what_there_is_no_time_for_is_listed(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.setenv("DEVICE", "cpu")
    arguments = [str(tmp_path), "--stages", "stages", "ops", "--only", "gelu", "--no-plots"]
    here = ["--progress", str(tmp_path / "progress.json")]  # in this process
    monkeypatch.setattr(stages, "stage_times", None)  # it must not be called
    assert run.main([*arguments, "--seconds", "1e-9", *here]) == 0
    assert f"bias_gelu minilm round fp32 forward: {NO_TIME}" in capsys.readouterr().out
    found = Results.load(tmp_path)
    assert found.rows == []
    assert {"benchmark": "bias_gelu", "variant": "minilm round bf16 backward",
            "reason": NO_TIME} in found.stages["ops"].absent  # fmt: skip
    assert [entry["variant"] for entry in found.stages["stages"].absent] == [
        "minilm round per_task", "minilm round joint",
    ]  # fmt: skip
    assert f"- `minilm round joint` (stages): {NO_TIME}" in report.markdown(found, [])


def test_every_stage_has_its_share_and_the_last_one_the_rest():
    assert sum(suite.SHARES.values()) == 100
    assert suite.share_of("sweep", ["sweep"]) == 1.0
    assert suite.share_of("round", ["round", "stages"]) == pytest.approx(40 / 43)
    settings = Settings(torch.device("cpu"), quick=False)
    shares = [Round(settings).share(case) for case in Round(settings).cases()]
    assert shares == [0.7, 1.0]


def test_the_ops_of_a_joint_round_come_first():
    names = [str(case) for _, case in suite.cases_of("ops", Settings(torch.device("cpu"), False))]
    extra = [name.startswith("bert-base") or " 512 " in name for name in names]
    assert True in extra
    assert extra.index(True) > max(i for i, name in enumerate(names) if "minilm round" in name)


def test_stages_are_added_to_a_run_under_the_same_conditions(tmp_path):
    chosen = run.settings()
    first = run.begin(tmp_path, chosen, is_whole=False)
    first.stages["round"] = Stage([row("round", "c", "cpu", 1.0)])
    first.save(tmp_path)
    assert len(run.begin(tmp_path, chosen, is_whole=False).rows) == 1
    assert run.begin(tmp_path, chosen, is_whole=True).rows == []
    first.environment["threads"] = -1
    first.save(tmp_path)
    assert run.begin(tmp_path, chosen, is_whole=False).rows == []


def test_results_come_back_as_they_were_saved(tmp_path):
    results = made()
    results.save(tmp_path)
    assert Results.load(tmp_path) == results


def test_the_floor_adds_up():
    lines = floor_table(STAGES["minilm round per_task"], Machine(**MACHINE))
    assert lines[-2] == "| all | 71.00 | 100% | 30.00 | 2.4x |"


def test_several_gpus_are_estimated_by_a_ring():
    """Two of them send each gradient once: 4 bytes x 1e6 x 3 updates at 1e9 B/s are 12 ms."""
    found = scaling(12 * MS, 1_000_000, 3, 1e9, 2)
    assert found.seconds == pytest.approx(24 * MS)
    assert found.speed_up == pytest.approx(1.0)
    assert scaling(12 * MS, 1_000_000, 3, 1e9, 1).speed_up == 1.0


def test_launches_are_ops_that_are_no_views():
    x = torch.ones(4, 4)
    with Launches() as launches:
        (x.t() @ x).add_(1.0).view(16)[2:].sum()
    assert launches.count == 3


@pytest.mark.parametrize(("update", "updates"), [("per_task", 3), ("joint", 1)])
def test_a_round_is_told_op_by_op(monkeypatch, update, updates):
    monkeypatch.setitem(MODELS, "minilm", SMALL)
    chosen = Settings(torch.device("cpu"), quick=True)
    lines = list(op_lines(chosen, Case("minilm", "round", ""), update, "fp32"))
    ops = [line.rsplit(maxsplit=2) for line in lines[1:]]  # a name may have spaces
    counts = {name.strip(): int(count) for name, _, count in ops}
    own = [float(seconds) for _, seconds, _ in ops]
    assert own == sorted(own, reverse=True)
    assert counts["sbrrt::attention_backward_into"] == 2 * SMALL.num_hidden_layers * updates


def test_parameters_are_counted_without_making_them():
    count = num_parameters(Case("bert-base", "round", ""))
    assert 108e6 < count < 110e6


def test_durations_are_readable():
    shown = [duration(x) for x in (2.0, 0.0123, 4.5e-6, 7e-10)]
    assert shown == ["2 s", "12.3 ms", "4.5 us", "0.7 ns"]


def test_committed_results_are_whole():
    for path in Path(report.COMMITTED).glob("*/results.json"):
        results = Results.load(path)
        assert not [f for stage in results.stages.values() for f in stage.failures], path
        # What `make gpu-check` leaves is a quick run, and the README says so.
        assert results.environment["quick"] is False or results.environment["device"] == "cuda"
        assert {"machine", "round", "ops"} <= set(results.stages)
        assert not results.environment["commit"].endswith("+"), path
        assert (path.parent / report.REPORT).exists()
