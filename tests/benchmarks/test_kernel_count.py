"""The count of a captured round's kernels, and its table against the sources of the kernels."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.harness.rounds import SBRRT
from benchmarks.pretended_gpu import PretendedGpu
from benchmarks.tune import kernel_count
from benchmarks.tune.kernel_count import count_round
from benchmarks.tune.kernel_table import (
    CLEARED,
    LAUNCHERS,
    MAX_SHORT_KEYS,
    ONE_OF_TWO,
    TENSORS_PER_LAUNCH,
    TWO_KERNELS,
    UnknownOp,
    num_kernels,
)
from sbrrt_fast.config import BregmanConfig, SmartConfig
from tests.model.models import CONFIG
from tests.training.test_pretended_step import make_round

CSRC = Path(__file__).resolve().parents[2] / "csrc"
CUDA = CSRC / "cuda"
FUNCTION = re.compile(
    r"^(?! *return\b)[\w:<>,&* ]*?\b(\w+)\((?:[^;{}]|\{\})*\)(?: const)?(?:\s*:[^;]*?)? \{$", re.M
)


@cache
def functions(path: Path) -> dict[str, list[str]]:
    """The bodies of a source's functions by name; members of its structs among them."""
    text = re.sub(r"//.*", "", path.read_text())
    found: dict[str, list[str]] = {}
    for match in FUNCTION.finditer(text):
        indent = re.match(r" *", match[0])[0]
        body = text[match.end() : text.index(f"\n{indent}}}", match.end())]
        found.setdefault(match[1], []).append(body)
    return found


def called(body: str) -> list[str]:
    return re.findall(r"\b(\w+)(?=[(<])", body)


def reached(path: Path, names: list[str]) -> list[str]:
    """The bodies that calls of functions may run, those of functions of the same file."""
    bodies, seen, waiting = [], set(), list(names)
    known = functions(path)
    while waiting:
        name = waiting.pop()
        if name in known and name not in seen:
            seen.add(name)
            for body in known[name]:
                bodies.append(body)
                waiting += called(body)
    return bodies


def bindings() -> dict[str, list[str]]:
    """Op -> the bodies of its CUDA implementation, `run_cuda` of its struct first."""
    ops = dict(
        re.findall(r'add<device, (\w+)>\(m, "(\w+)"\)', (CSRC / "registration.cpp").read_text())
    )
    run_cuda = re.compile(r"^void (\w+)::run_cuda\(\) const \{( .* |\n(?:.*\n)*?)\}$", re.M)
    found = {}
    for path in sorted(CUDA.glob("*_binding.cpp")):
        for struct, body in run_cuda.findall(re.sub(r"//.*", "", path.read_text())):
            found[ops[struct]] = [body, *reached(path, called(body))]
    return found


def test_every_op_with_a_cuda_kernel_is_in_the_table():
    assert LAUNCHERS.keys() == bindings().keys()


@pytest.mark.parametrize("op", sorted(LAUNCHERS))
def test_launchers_are_those_that_the_binding_calls(op):
    bodies = bindings()[op]
    launchers = {name for body in bodies for name in re.findall(r"\blaunch\(&(\w+)", body)}
    launchers |= {"column_sums" for body in bodies if "write_sums(" in body}
    assert launchers == set(LAUNCHERS[op])
    cleared = sum(body.count(".new_zeros(") + body.count(".zero_()") for body in bodies)
    assert cleared == CLEARED.get(op, 0)


def test_a_launcher_launches_one_kernel_or_is_named_with_two():
    """No function of a launcher has two launches, but for those of two kernels or of either."""
    assert "launch(&column_sums" in (CUDA / "binding.h").read_text()
    for launcher in {name for names in LAUNCHERS.values() for name in names}:
        path = next(p for p in sorted(CUDA.glob("*.cu")) if launcher in functions(p))
        counts = [len(re.findall(r"\blaunch<", body)) for body in reached(path, [launcher])]
        assert max(counts) == (2 if launcher in TWO_KERNELS | ONE_OF_TWO else 1), launcher


def test_limits_are_the_sources():
    sources = "\n".join(p.read_text() for p in [*CUDA.glob("*.h"), *CUDA.glob("*.cuh")])
    for name, value in (
        ("kMaxShortKeys", MAX_SHORT_KEYS),
        ("kMaxAdamwTensors", TENSORS_PER_LAUNCH["adamw_ema_"]),
        ("kMaxNormTensors", TENSORS_PER_LAUNCH["gradient_norm_into"]),
    ):
        assert re.search(rf"\b{name} = {value}[;,]", sources), name


def round_count(update: str, num_layers: int = 2, report: bool = False, **fields):
    config = replace(SBRRT, round=replace(SBRRT.round, update=update), **fields)
    shape = replace(CONFIG, num_hidden_layers=num_layers)
    return count_round(shape, config, make_round(SBRRT.tasks, 0), report)


PER_LAYER = {  # what a layer adds to a stage, in a step of one pass over all its rows
    # Products, bias of q, k and v, attention, two LayerNorms, GELU.
    "clean": 4 + 1 + 1 + 2 + 1,
    "teacher": 4 + 1 + 1 + 2 + 1,
    "ascent": 4 + 1 + 2 + 1,
    "adversarial": 4 + 1 + 1 + 2 + 1,
    # 4 products of cotangents and 4 of weights; attention; LayerNorms; GELU. All sums come later.
    "backward": 8 + 1 + 2 + 1,
}
TANGENTS = (
    1  # of attention, for SST's five outputs; LayerNorm's and GELU's are made beside the rows
)


@pytest.mark.parametrize("update", ["per_task", "joint"])
def test_what_a_layer_adds(update):
    two, three = round_count(update, 2), round_count(update, 3)
    steps = 1 if update == "joint" else 3
    assert (two.steps, two.copies) == (steps, 2 * steps)
    for stage, count in PER_LAYER.items():
        expected = steps * count + (TANGENTS if stage == "clean" else 0)
        assert three.kernels[stage] - two.kernels[stage] == expected, stage


def test_the_optimiser_of_a_step():
    """Whatever the gradients' dtypes, and whether all parameters have one or those of a task."""
    norm, counts, update, word_rows = 1 + 1, 1, 1, 1
    expected = norm + counts + update + word_rows
    assert round_count("joint").kernels["optimiser"] == expected
    assert round_count("per_task").kernels["optimiser"] == 3 * expected


def test_stages_that_are_off_have_no_kernels():
    plain = round_count("joint", smart=SmartConfig(), bregman=BregmanConfig())
    assert {"clean", "backward", "optimiser", "data", "terms"} == {
        stage for stage, count in plain.kernels.items() if count
    }
    whole = round_count("joint", report=True)
    assert whole.others > 30  # reports are launched beside the replay
    assert whole.kernels["teacher"] > 20


gelu_backward = torch.ops.sbrrt.bias_gelu_backward_into


@pytest.mark.parametrize(
    ("call", "count"),
    [
        (lambda x: x + x, 1),
        (lambda x: x.t(), 0),
        (lambda x: torch.empty_like(x), 0),
        (lambda x: x @ x, 1),
        (lambda x: torch.cat([x] * 129), 2),
        (lambda x: x[:0] + 1, 0),
        (lambda x: torch._foreach_lerp_([x] * 65, [x] * 65, 0.5), 2),
        (lambda x: gelu_backward(x, x, x[0], x + 0, x[0] + 0), 2 + 2),
        (lambda x: gelu_backward(x, x.t(), x[0], x + 0, None), 2 + 1),
        (lambda x: torch.ops.sbrrt.gradient_norm_into([x] * 1025, 1.0, x.new_empty(3)), 2 + 1),
    ],
)
def test_single_ops(call, count):
    found = []
    with PretendedGpu(has_values=False) as gpu:
        x = torch.ones(4, 4, device="cuda")
        gpu.observers.append(lambda *seen: found.append(num_kernels(*seen)))
        call(x)
    assert sum(found) == count


def test_an_op_that_the_table_does_not_have_is_told():
    with PretendedGpu(has_values=False) as gpu:
        x = torch.ones(4, 4, device="cuda")
        gpu.observers.append(num_kernels)
        with pytest.raises(UnknownOp, match=r"aten\.sort.*kernel_table"):
            x.sort()


@pytest.mark.long
def test_the_documented_table_is_the_command_s(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["kernel_count"])
    kernel_count.main()
    documented = (CUDA.parent.parent / "docs" / "performance.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out in documented


def test_the_command(monkeypatch, capsys):
    monkeypatch.setattr(kernel_count, "MODELS", {"tiny": CONFIG})
    monkeypatch.setattr("benchmarks.harness.shapes.MODELS", {"tiny": CONFIG})
    monkeypatch.setattr("sys.argv", ["kernel_count", "--update", "joint"])
    kernel_count.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| stage | tiny, joint |"
    rows = dict(re.findall(r"\| (.+?) \| (\d+) \|", "\n".join(lines)))
    stages = Counter({name: int(n) for name, n in rows.items() if name in kernel_count.ORDER})
    assert sum(stages.values()) == int(rows["kernels"])
    assert rows["graphs"] == "1" and rows["copies to the device"] == "2"
    expected = round_count("joint").kernels["optimiser"]
    assert stages["optimiser"] == expected
