"""adamw_ema_ and gradient_norm in Triton: planted bugs at the edges of tiles, launches."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.kernels import adamw_ema as kernels
from sbrrt_fast.kernels import gradient_norm as norm_kernels
from sbrrt_fast.ops.gradient_norm import gradient_norm
from tests.ops.backends import assert_all_right
from tests.ops.cases import OPS
from tests.ops.cases.adamw import good_update
from tests.ops.triton_checks import assert_caught, assert_compiles_once, interpreted

OP = OPS["adamw_ema_"]


@triton.jit
def _forgets_the_end(p_tensor, o, i_end, WHOLE: tl.constexpr):
    """A planted bug: in the last tile the last element is not read."""
    return _load_tile(p_tensor, o, i_end if WHOLE else i_end - 1, WHOLE)


@triton.jit
def _never_whole(p_tensor, o, i_end, b_value, WHOLE: tl.constexpr):
    """A planted bug: a tile that ends where its piece does is one element short."""
    _store_tile(p_tensor, o, i_end - 1, b_value, False)


_load_tile, _store_tile = kernels.load_tile, kernels.store_tile


@interpreted
def test_planted_bugs_at_the_edges_of_tiles_are_caught(monkeypatch):
    whole = OP.triton["whole tiles and pieces, float32"]
    monkeypatch.setattr(kernels, "load_tile", _forgets_the_end)
    assert_all_right(OP, "triton", whole)
    for name in ("an element more, float32", "an element less, float32"):
        assert_caught("adamw_ema_", name, monkeypatch)
    monkeypatch.setattr(norm_kernels, "load_tile", _forgets_the_end)
    assert_caught("gradient_norm", "odd sizes, float32, 1.0", monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr(kernels, "store_tile", _never_whole)
    assert_caught("adamw_ema_", "whole tiles and pieces, float32", monkeypatch)


def test_other_values_of_the_same_tensors_compile_nothing():
    def run(sizes, rate, step):
        tensors = [torch.empty(size, device="meta") for size in sizes]
        scalar = torch.empty((), device="meta")
        kernels.adamw_ema_(
            tensors, tensors, tensors, tensors, tensors, [], [], scalar, [rate] * len(tensors),
            0.9, 0.999, 1e-8, scalar, scalar, step,
        )  # fmt: skip
        norm_kernels.gradient_norm_into(tensors, rate, scalar.new_empty(3))

    runs = ([384], 0.01, 0.9), ([384] * 16, 0.0, 0.99), ([7, 5000, 12], 0.1, 1.0)
    assert_compiles_once(*(partial(run, *arguments) for arguments in runs))


@pytest.mark.parametrize("is_dense", [True, False])
def test_a_gradient_in_the_memory_of_a_moment_is_refused(is_dense):
    memory, x = torch.zeros(2, 4, 4), torch.zeros(3, 4)
    names = ("params", "grads", "exp_avg", "exp_avg_sq", "ema")
    given = good_update() | {name: [x.clone()] for name in names} | {"weight_decay": [0.0]}
    given |= {"low_precision": [], "ema_low_precision": [], "exp_avg": [memory[0, :3]]}
    kernels.adamw_ema_(**given)
    given["grads"] = [memory[0, 1:] if is_dense else memory.view(8, 4)[2:8:2]]
    with pytest.raises(ValueError, match=r"exp_avg\[0\] shares memory with grads\[0\]"):
        kernels.adamw_ema_(**given)


def test_no_gradients_have_norm_0():
    assert gradient_norm([], backend="triton") == 0
