"""attention in Triton: a planted bug at the edges of blocks, the choice of tiles, launches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.kernels import attention_loop, attention_parts, attention_tile
from sbrrt_fast.kernels.attention_launch import TILES, choose
from sbrrt_fast.kernels.launch import recording
from tests.ops.backends import assert_all_right
from tests.ops.cases import OPS
from tests.ops.op_checks import BF16, F32
from tests.ops.test_attention import drawn_mask
from tests.ops.triton_checks import F16, by_name, interpreted, triton_calls

pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero):RuntimeWarning")


@triton.jit
def _flip_last_of_block(
    dropout, place, o_query, i_key, NUM_KEYS: tl.constexpr, ALIGNED: tl.constexpr
):
    """A planted bug: the last query's mask is wrong at the last key of each block."""
    m_kept = attention_parts.kept_probabilities(dropout, place, o_query, i_key, NUM_KEYS, ALIGNED)
    m_edge = (tl.arange(0, NUM_KEYS) == NUM_KEYS - 1)[None, :]
    return m_kept ^ (m_edge & (o_query == place[3] - 1)[:, None])


@interpreted
@pytest.mark.parametrize(
    ("length", "module", "num_blocks"), [(32, attention_tile, 1), (96, attention_loop, 3)]
)
def test_a_planted_bug_at_the_edge_of_a_block_is_caught(length, module, num_blocks, monkeypatch):
    monkeypatch.setattr(module, "kept_probabilities", _flip_last_of_block)
    got, expected = drawn_mask("triton", length, 512)
    assert (got ^ expected).sum() == 2 * num_blocks
    with pytest.raises(AssertionError):
        assert_all_right(OPS["attention"], "triton", ((length,), 1, 32, F32, 0.3, 512, "dense"))


@pytest.mark.parametrize(
    ("direction", "dtype", "unaligned", "longest"),
    [
        ("forward", BF16, False, 128),
        ("backward", F16, False, 128),
        ("jvp", BF16, False, 64),
        ("forward", F16, True, 64),
        ("backward", BF16, True, 64),
        ("forward", F32, False, 32),
        ("backward", F32, True, 32),
        ("jvp", F32, False, 32),
    ],
)
def test_the_smallest_tile_that_holds_the_longest_sequence(direction, dtype, unaligned, longest):
    for length in range(513):
        blocks = choose(direction, length, dtype, unaligned)
        if length <= longest:
            assert blocks.is_tile and blocks.key == min(tile for tile in TILES if tile >= length)
            assert blocks.query == blocks.key or (direction, blocks.key) == ("forward", 128)
        else:
            assert blocks is None if direction == "backward" else not blocks.is_tile


def test_a_batch_of_other_sizes_compiles_nothing():
    """All that Triton compiles for is equal: constants, and numbers it may specialise."""
    launched = []
    for site, lengths in enumerate([(17, 32, 1), (16, 30, 20, 25, 16, 21)]):
        sample = lengths, 2, 32, BF16, 0.1, 512, "fused"
        calls = triton_calls(OPS["attention"], sample)
        with recording() as launches:
            for call, arguments in calls:
                call(**by_name(call, arguments) | {"site": site})
        launched.append(launches)
    assert launched[0]
    for one, other in zip(*launched, strict=True):
        assert replace(one, arguments=()) == replace(other, arguments=())
        for name, a, b in zip(one.kernel.arg_names, one.arguments, other.arguments, strict=False):
            assert isinstance(a, torch.Tensor) or name == "site" or a == b
