"""smart_ascend's CUDA kernel on the CPU: tokens of no sequence, which C++ refuses."""

from __future__ import annotations

import pytest
import torch

from tests.cuda_on_cpu.kernels.smart import AscendKernels
from tests.ops.cases.smart import SIZES, AscendCase, ascent


@pytest.mark.parametrize("level", [0, 1])
def test_tokens_of_no_sequence_are_not_perturbed(level):
    def value(**change):
        case = AscendCase(ascent(SIZES["prime sizes"], options=(level,), radii=(0.5,)))
        vars(case).update(change)
        return AscendKernels(case).value[0]

    case = AscendCase(ascent(SIZES["prime sizes"]))
    inside = case.sequence < case.num_sequences - 1
    expected = value(mask=case.mask & inside)
    moved = torch.where(inside, case.sequence, torch.full_like(case.sequence, -1))
    assert torch.equal(value(sequence=moved), expected)
    assert torch.equal(value(num_sequences=case.num_sequences - 1), expected)
