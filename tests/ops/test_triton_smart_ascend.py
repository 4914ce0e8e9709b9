"""smart_ascend in Triton: norms over sequences that several tiles hold, and planted bugs there."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.kernels import smart_ascend as kernels
from tests.ops.backends import run
from tests.ops.cases import OPS
from tests.ops.cases.smart import AscendCase, ascent
from tests.ops.triton_checks import interpreted

OP = OPS["smart_ascend"]
COMBINED = {"step_size": 0.7, "normalize_gradient": True, "projection": "normalize"}
COMBINED |= {"radius": 2.0, "level": "sequence"}


def many_tokens(count: int, norm: str) -> AscendCase:
    """Norms over one long sequence among others, with sizes that combine over several tiles."""
    case = AscendCase(ascent(((count,), 3, "dense")))
    case.sequence = torch.where(torch.arange(count) % 5 == 0, 7, 2)
    case.num_sequences, case.settings = count, [COMBINED | {"norm": norm}]
    return case


def compare(case: AscendCase) -> None:
    exact, stock = (case.stock(*x) for x in (case.exact_inputs(), case.inputs))
    found = [x.cpu() for x in run(OP, "triton", case).value]
    case.check(found, stock, exact, 0.0)
    case.check_value(found, exact)


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("count", [15, 16, 17, 33])
def test_sizes_combine_over_tiles(norm, count, monkeypatch):
    monkeypatch.setattr(kernels, "TOKENS", 16)
    compare(many_tokens(count, norm))


@triton.jit
def _first_tile_only(
    p_sizes, p_sequence, i_token, num_tokens, IS_SUP: tl.constexpr, TOKENS: tl.constexpr
):
    """A planted bug: sizes behind the first tile do not count."""
    num_seen = tl.minimum(num_tokens, TOKENS)
    return _group_size(p_sizes, p_sequence, i_token, num_seen, IS_SUP, TOKENS)


@triton.jit
def _other_sequences_too(
    p_sizes, p_sequence, i_token, num_tokens, IS_SUP: tl.constexpr, TOKENS: tl.constexpr
):
    """A planted bug: the last token of a tile counts for every sequence."""
    size = _group_size(p_sizes, p_sequence, i_token, num_tokens, IS_SUP, TOKENS)
    stray = tl.load(p_sizes + TOKENS - 1)
    return tl.maximum(size, stray) if IS_SUP else size + stray


_group_size = kernels._group_size


@interpreted
@pytest.mark.parametrize("bug", [_first_tile_only, _other_sequences_too])
@pytest.mark.parametrize("norm", ["inf", "2"])
def test_planted_bugs_at_the_edges_of_tiles_are_caught(norm, bug, monkeypatch):
    monkeypatch.setattr(kernels, "TOKENS", 16)
    case = many_tokens(33, norm)
    case.mask = torch.ones_like(case.mask)
    case.inputs[1][[15, 20, 30]] *= 100
    compare(case)
    monkeypatch.setattr(kernels, "_group_size", bug)
    with pytest.raises(AssertionError):
        compare(case)


def test_numbers_of_sequences_may_be_anything():
    case = AscendCase(ascent(((2, 3, 5, 7), 37, "dense"), options=(47,), radii=(0.5,)))
    (expected,) = run(OP, "triton", case).value
    case.sequence = case.sequence + 2**40
    assert torch.equal(run(OP, "triton", case).value[0], expected)
