"""Every kernel that ships, on the CPU under the address and undefined-behaviour sanitizers.

The ops' own tests run in a process that has them: those that between them execute every kernel.
"""

from __future__ import annotations

import pytest

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.build import build, sources
from tests.cuda_on_cpu.counts import VARIANT, executed, libraries
from tests.cuda_on_cpu.sanitized import run_sanitized

# By file of tests: the libraries it runs, and what of it runs here; 512 tokens take minutes.
RUNS = {
    "adamw": (["adamw", "gradient_norm"], "not same_bits and not many_steps"),
    "attention": (["attention"], "results and (tile or chunk or long or primes or fused or empty)"),
    "embed": (["embed", "column_sums"], "not same_bits and not masks_are and not work_grows"),
    "gelu": (["gelu", "column_sums"], "not same_bits and not everywhere"),
    "layernorm": (["layernorm", "column_sums"], "not same_bits and not masks_are"),
    "philox_ops": (["philox_ops"], "not same_bits"),
    "smart_ascend": (["smart_ascend"], "not same_bits"),
    "symmetric_kl": (["symmetric_kl"], "not same_bits"),
}


def test_every_library_is_run():
    assert {op for ops, _ in RUNS.values() for op in ops} == set(libraries())


@pytest.mark.parametrize("name", RUNS)
def test_every_kernel_runs_clean(name, tmp_path):
    ops, chosen = RUNS[name]
    for op in ops:
        build(op, sources(op), "sanitized")  # here: the compiler is no subject of the sanitizers
    options = ("-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", chosen)
    file = f"tests/test_cuda_{name}.py"
    result = run_sanitized("pytest", *options, file, SBRRT_KERNEL_COUNTS=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    built = {kernel for op in ops for kernel in library(op, VARIANT).kernels()}
    assert executed(tmp_path).keys() >= built
