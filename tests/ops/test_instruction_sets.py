"""The C++ ops of every instruction set that this processor has: all samples, in a process each."""

from __future__ import annotations

import pytest
import torch

from tests.ops.backends import assert_all_right, fitted
from tests.ops.cases import OPS
from tests.ops.op_checks import run_with_capability
from tests.ops.test_gelu import assert_accurate_everywhere

HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


def check_values():
    """Called in a process that knows one instruction set."""
    for op in OPS.values():
        for sample in op.table("cpu").values():
            ((_, sample),) = fitted(sample, "cpu")
            assert_all_right(op, "cpu", sample)
    assert_accurate_everywhere("cpu")


@pytest.mark.parametrize(("capability", "name"), [("default", "plain"), ("avx2", "AVX2")])
def test_other_instruction_sets(capability, name):
    assert run_with_capability("tests.ops.test_instruction_sets", capability) == name


@pytest.mark.skipif(not HAS_AVX512, reason="no AVX-512 here")
def test_without_the_bfloat16_instructions(monkeypatch):
    monkeypatch.setenv("SBRRT_CPU_ISA", "avx512")
    assert run_with_capability("tests.ops.test_instruction_sets", "avx512") == "AVX-512"
