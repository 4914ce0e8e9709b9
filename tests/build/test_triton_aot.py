"""Ahead-of-time compilation of the Triton kernels: it works, and it tells what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sbrrt_fast.kernels import aot


def run_python(*arguments: str) -> subprocess.CompletedProcess:
    """Another process compiles, for here kernels may be interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def compiled(*arguments: str) -> subprocess.CompletedProcess:
    return run_python("-m", "sbrrt_fast.kernels.aot", "--only", "attention", *arguments)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_compiles_for_two_chips(dtype, tmp_path):
    path = tmp_path / "table.json"
    match = f"^{dtype} 64 x 64 dropout (forward|backward)"
    told = compiled("--match", match, "--json", str(path)).stdout
    rows = json.loads(path.read_text())
    num_calls = 3 if dtype == "bfloat16" else 2  # a backward into parts of one tensor, and apart
    assert [row["arch"] for row in rows] == [80, 90] * num_calls
    assert f"{2 * num_calls} launches compiled, 0 with a fault" in told
    for row in rows:
        assert row["spills"] == 0 < row["registers"] <= 255
        assert ("HGMMA" if row["arch"] == 90 else "HMMA") in row["matrix"]


def test_every_kernel_is_among_the_launches():
    """A kernel that no ``aot_calls`` reaches would never be compiled."""
    code = (
        "from importlib import import_module; import triton; from sbrrt_fast.kernels import aot\n"
        "defined, reached = set(), set()\n"
        "for name in set(aot.modules()) - {'aot'}:\n"
        "    module = import_module(f'sbrrt_fast.kernels.{name}')\n"
        "    defined |= {k for k, v in vars(module).items() if isinstance(v, triton.JITFunction)"
        " and k.endswith('_kernel')}\n"
        "    reached |= {launch.kernel.__name__ for _, launch in aot.recorded(name)}\n"
        "print(sorted(defined - reached), len(defined))"
    )
    told = run_python("-c", code)
    missed, _, count = told.stdout.rpartition(" ")
    assert missed == "[]" and int(count) >= 9, told.stdout + told.stderr


def test_nothing_that_matches_is_a_failure():
    told = compiled("--match", "no such launch")
    assert told.returncode == 1 and "0 launches compiled" in told.stdout


FAULTS = {
    "": {},
    "spills 8 bytes": {"spills": 8},
    "needs 166913 bytes of shared memory, over 166912": {"shared": 163 * 1024 + 1},
    "multiplies 16-bit matrices without matrix instructions": {"matrix": "none"},
    "touches global memory without await_previous()": {"arch": 90, "waits": False},
    "CompilationError: no": {"error": "CompilationError: no"},
}


@pytest.mark.parametrize(("fault", "facts"), FAULTS.items())
def test_faults_are_told(fault, facts):
    row = aot.Row("attention", "a call", "a_kernel", **{"arch": 80} | facts)
    assert "; ".join(row.faults()) == fault
    assert aot.table([row]).splitlines()[1].startswith("!" if fault else " ")


def test_older_chips_need_no_wait():
    assert not aot.Row("attention", "a call", "a_kernel", 80, waits=False).faults()


@pytest.mark.parametrize(
    ("assembly", "waits"),
    [("ACQBULK ; LDG.E R0", True), ("LDG.E R0 ; ACQBULK", False), ("LDS R0 ; EXIT", False)],
)
def test_the_wait_comes_first(assembly, waits):
    assert aot.waits_first(assembly) == waits
