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
from benchmarks.harness.results import Results, Stage
from benchmarks.harness.round_cost import num_parameters
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import MODELS, Case
from benchmarks.harness.text import duration
from benchmarks.report import report
from benchmarks.report.floor import Launches, floor_table, op_lines
from benchmarks.report.goals import missing_bf16
from benchmarks.report.plots import draw_all
from tests.benchmarks.made_results import MACHINE, STAGES, goals, made, row


def test_what_a_machine_lacks_is_said_beside_goals_and_readme():
    results = made()
    assert missing_bf16(results) == ""
    results.stages["machine"].details["machine"] = MACHINE | {"flops": {"fp32": 1e11, "bf16": 1e10}}
    assert "no instructions for bf16 products (AVX9): torch's reach 0.10" in missing_bf16(results)
    assert missing_bf16(results) in report.markdown(results, []).splitlines()
    assert missing_bf16(results) in report.readme_table([results])
    first = "SBRRT against Hugging Face fp32 eager, a step per task, CPU"
    assert goals(results)[first][1] == "met"


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
    count = num_parameters("bert-base")
    assert 108e6 < count < 110e6


def test_durations_are_readable():
    shown = [duration(x) for x in (2.0, 0.0123, 4.5e-6, 7e-10)]
    assert shown == ["2 s", "12.3 ms", "4.5 us", "0.7 ns"]


def test_runs_with_other_variants_are_reported(tmp_path):
    """Committed runs may be older than the names of today's variants."""
    for results in report.committed():
        text = report.markdown(results, draw_all(results, tmp_path))
        assert "## round: minilm round train" in text and "## Microseconds per token" in text
        assert "| SBRRT against Hugging Face fp32 eager, a step per task, CPU | >= 8x |" in text
    results = made()
    results.stages["round"].rows[0] = replace(results.stages["round"].rows[0], variant="odd one")
    assert "| odd one | 900 | 810 to 990 | 9.00 | 778 | 9.00 (`fast bf16`) |" in report.markdown(
        results, draw_all(results, tmp_path)
    )


def test_committed_results_are_whole():
    for path in Path(report.COMMITTED).glob("*/results.json"):
        results = Results.load(path)
        assert not [f for stage in results.stages.values() for f in stage.failures], path
        # What `make gpu-check` leaves is a quick run, and the README says so.
        assert results.environment["quick"] is False or results.environment["device"] == "cuda"
        assert {"machine", "round", "ops"} <= set(results.stages)
        assert not results.environment["commit"].endswith("+"), path
        assert (path.parent / report.REPORT).exists()
