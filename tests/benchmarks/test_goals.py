"""The goals of a run: met or not, from variants of the same work, or why there is no figure."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.harness.results import Results
from tests.benchmarks.made_results import goals, made, row

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
