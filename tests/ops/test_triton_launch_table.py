"""The table of launch choices: every row is used; the benchmark that rewrites it does it right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.tune import launch_table as tune_triton
from benchmarks.tune.shape_classes import Call, shape_classes
from sbrrt_fast.kernels import launch_table
from sbrrt_fast.kernels.aot import Row
from sbrrt_fast.kernels.launch import recording
from sbrrt_fast.kernels.launch_table import TABLE, Choice

CLASSES = shape_classes()
names = pytest.mark.parametrize("name", TABLE)


def launches_of(name: str) -> list[dict]:
    """The constants of a class's launches; its calls launch others too."""
    with recording() as launches:
        for call in CLASSES[name].calls(torch.device("meta")):
            call()
    return [launch.constants for launch in launches]


@names
def test_a_row_decides_how_its_class_is_launched(name):
    other = next(c for c in CLASSES[name].candidates() if c != TABLE[name].constants)
    before = launches_of(name)
    with tune_triton.chosen(name, other):
        after = launches_of(name)
    assert before != after
    assert launches_of(name) == before


@names
def test_a_row_is_among_what_is_tried_and_has_a_reason(name):
    choice = TABLE[name]
    assert choice.constants in list(CLASSES[name].candidates())
    assert all(n & (n - 1) == 0 for key, n in choice.constants.items() if key != "num_stages")
    assert len(choice.why) > 10


def test_the_file_is_what_the_command_writes():
    assert tune_triton.render(TABLE) == Path(launch_table.__file__).read_text(encoding="utf-8")


def test_a_rewritten_table_reads_back(tmp_path, monkeypatch):
    table = TABLE | {"smart_noise": Choice({"ROWS": 1, "num_warps": 8}, "1.0 us on a GPU")}
    path = tmp_path / "launch_table.py"
    path.write_text(tune_triton.render(TABLE), encoding="utf-8")
    text = tune_triton.render(table)
    monkeypatch.setattr(launch_table, "__file__", str(path))
    tune_triton.write(text)
    assert list(tmp_path.iterdir()) == [path]
    module = {"__name__": launch_table.__name__}
    exec(path.read_text(encoding="utf-8"), module)
    read = {name: (choice.constants, choice.why) for name, choice in module["TABLE"].items()}
    assert read == {name: (choice.constants, choice.why) for name, choice in table.items()}


@pytest.mark.parametrize(
    ("times", "picked", "why"),
    [
        ([5.0, 9.0, 2.0], 2, "2.0 us on GPU; 2 others 5.0 to 9.0"),
        ([5.0, 4.95, 6.0], 0, "5.0 us on GPU; 2 others 5.0 to 6.0"),  # within the noise
        ([1.0, 2.0, 3.0], 0, "1.0 us on GPU; 2 others 2.0 to 3.0"),
    ],
)
def test_the_fastest_is_chosen_where_it_is_clearly_faster(times, picked, why):
    present = TABLE["gradient_norm"].constants
    candidates = [present, {"BLOCK": 512, "num_warps": 8}, {"BLOCK": 2048, "num_warps": 4}]
    choice = tune_triton.best("gradient_norm", candidates, times, "GPU")
    assert choice == Choice(candidates[picked], why)


def test_candidates_with_faults_are_not_timed(monkeypatch, capsys):
    """The smallest block spills, the next has too much shared memory; a fake clock likes them."""
    timed = []

    def compiled(name, shape_class, jobs):
        faults = {512: {"spills": 8}, 1024: {"shared": 10**6}}
        blocks = [c["BLOCK"] for c in shape_class.candidates()]
        rows = [Row(name, "", "", 80, registers=9, **faults.get(b, {})) for b in blocks]
        return {i: [row] for i, row in enumerate(rows)}

    def clock(name, shape_class, candidates):
        timed.extend(candidates)
        return [float(c["BLOCK"]) + c["num_warps"] for c in candidates]

    monkeypatch.setattr(tune_triton, "compile_candidates", compiled)
    monkeypatch.setattr(tune_triton, "time_candidates", clock)
    monkeypatch.setitem(TABLE, "gradient_norm", Choice({"BLOCK": 4096, "num_warps": 4}, "before"))
    choice = tune_triton.tune("gradient_norm", CLASSES["gradient_norm"], 1, "GPU")
    assert choice.constants == {"BLOCK": 2048, "num_warps": 4}
    assert {c["BLOCK"] for c in timed} == {2048, 4096}
    told = capsys.readouterr().out
    assert "spills 8 bytes" in told and "* {'BLOCK': 4096, 'num_warps': 4}: 9 registers" in told
    untimed = tune_triton.tune("gradient_norm", CLASSES["gradient_norm"], 1, None)
    assert untimed is TABLE["gradient_norm"]


def test_a_candidate_that_leaves_a_result_unwritten_is_found_out():
    x, out = torch.rand(3), torch.empty(3)
    writes = Call(lambda x, out, other: out.copy_(x), x, results=(out, None))
    idle = Call(lambda x, out, other: None, x, results=(out, None))
    expected = tune_triton._results_of([writes])
    assert torch.equal(expected[0][0], x)
    tune_triton._check(tune_triton._results_of([writes]), expected)
    with pytest.raises(AssertionError):
        tune_triton._check(tune_triton._results_of([idle]), expected)
