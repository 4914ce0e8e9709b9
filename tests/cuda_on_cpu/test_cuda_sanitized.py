"""Every kernel that ships, on the CPU under the address and undefined-behaviour sanitizers.

The ops' tests run in a process that has them: those that between them execute every kernel.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.build import build, sources
from tests.cuda_on_cpu.counts import VARIANT, executed, libraries
from tests.cuda_on_cpu.sanitized import run_sanitized

# By name: the libraries it runs, and what of the ops' tests runs here; 512 tokens take minutes. The
# gradients' tests run the forward where they need what it leaves.
RUNS = {
    "adamw": (["adamw", "gradient_norm"], "adamw_ema or gradient_norm"),
    "attention": (["attention"], "attention and (tile or chunk or long or primes or empty)"),
    "column_sums": (["column_sums"], "column_sums"),
    "embed": (["embed", "column_sums"], "embed and not masks_are and not work_grows"),
    "gelu": (["gelu", "column_sums"], "gelu"),
    "layernorm": (["layernorm", "column_sums"], "layernorm"),
    "objective": (["objective"], "objective or smoothness"),
    "philox_ops": (["philox_ops"], "dropout_mask or philox_bits or smart_noise"),
    "smart_ascend": (["smart_ascend"], "smart_ascend"),
    "symmetric_kl": (["symmetric_kl"], "symmetric_kl"),
    "task_heads": (["task_heads"], "heads"),
}
VALUES, GRADIENTS, TANGENTS = (
    f"tests/ops/test_{name}.py" for name in ("values", "gradients", "tangents")
)
FILES = {
    "attention": (GRADIENTS, TANGENTS), "embed": (GRADIENTS,), "layernorm": (GRADIENTS, TANGENTS),
    "column_sums": (), "gelu": (VALUES, GRADIENTS, TANGENTS), "symmetric_kl": (VALUES, GRADIENTS),
}  # fmt: skip


def test_every_library_is_run():
    assert {op for ops, _ in RUNS.values() for op in ops} == set(libraries())


@pytest.mark.parametrize("name", RUNS)
def test_every_kernel_runs_clean(name, tmp_path):
    ops, chosen = RUNS[name]
    for op in ops:
        build(op, sources(op), "sanitized")  # here: the compiler is no subject of the sanitizers
    options = ("-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider")
    chosen, own = f"cuda_on_cpu and ({chosen})", Path(__file__).parent / f"test_cuda_{name}.py"
    files = [*FILES.get(name, (VALUES,)), *([str(own)] if own.exists() else [])]
    where = {"SBRRT_KERNEL_COUNTS": str(tmp_path)}
    result = run_sanitized("pytest", *options, "-k", chosen, *files, **where)
    assert result.returncode == 0, result.stdout + result.stderr
    own = [op for op in ops if op == name or op not in RUNS]  # others serve it
    built = {kernel for op in own for kernel in library(op, VARIANT).kernels()}
    assert executed(tmp_path).keys() >= built
