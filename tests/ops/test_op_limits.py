"""What an op says it cannot take is what its kernels refuse, on every backend."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sbrrt_fast.ops._backend import backends
from sbrrt_fast.ops.attention import HEAD_DIMS, MAX_LENGTH
from sbrrt_fast.ops.objective import MAX_CUDA_TASKS, LossSpec, ObjectiveTable
from sbrrt_fast.ops.task_heads import MAX_CUDA_HEADS, MAX_PASSES
from tests.ops.op_limits import BY_NAME, CALLS, F32, implementation, refusal

CSRC = Path(__file__).parents[2] / "csrc"
ops = pytest.mark.parametrize("op", CALLS)


def test_the_grid_has_every_op_that_takes_numbers():
    of_indices = {"dropout_mask", "philox_bits", "smart_noise"}  # any count of any rows
    assert CALLS.keys() | of_indices == BY_NAME.keys()


@ops
def test_the_cpu_takes_what_it_says_and_nothing_else(op):
    why_not, seen = implementation(op, "cpu").why_not, set()
    for what, args, kwargs in CALLS[op]("cpu"):
        reason, error = why_not(*args, **kwargs), refusal(op, "cpu", args, kwargs)
        seen.add(reason is None)
        if reason is None:
            assert error is None, (what, error)
        else:
            assert error is not None, (what, reason)
    assert seen == {True, False}


@ops
def test_the_reference_takes_everything(op):
    why_not = implementation(op, "reference").why_not
    for what, args, kwargs in CALLS[op]("cpu"):
        assert why_not(*args, **kwargs) is None, what


def constant(header: str, name: str) -> int:
    found = re.search(rf"constexpr \w+ {name} = (\d+);", (CSRC / header).read_text())
    return int(found[1])


def test_limits_are_those_of_the_headers():
    """The launchers refuse more; ``test_cuda_attention``, ``..._layernorm`` and ``..._embed``."""
    assert constant("common/attention.h", "kMaxAttentionLength") == MAX_LENGTH
    assert constant("cuda/layernorm.h", "kMaxLayerNormWidth") == backends.CUDA.max_width
    assert constant("cuda/embed.h", "kMaxEmbedWidth") == backends.CUDA.max_width
    assert constant("cuda/task_heads.h", "kMaxHeads") == MAX_CUDA_HEADS
    assert constant("cuda/task_heads.h", "kMaxPasses") == MAX_PASSES
    assert constant("cuda/objective.h", "kMaxTasks") == MAX_CUDA_TASKS
    launch = (CSRC / "cuda/attention_launch.cuh").read_text()
    assert tuple(map(int, re.findall(r"batch\.head_dim == (\d+)", launch))) == HEAD_DIMS


@ops
def test_cuda_takes_what_its_checks_take(op):
    """Tracing runs the checks that all devices share; the bindings of CUDA have three more."""
    on_meta = list(CALLS[op]("meta"))
    with FakeTensorMode():
        reasons = [implementation(op, "cuda").why_not(*a, **k) for _, a, k in CALLS[op]("cuda")]
    for (what, args, kwargs), reason in zip(on_meta, reasons, strict=True):
        error = refusal(op, "cuda", args, kwargs) or cuda_alone_refuses(op, args)
        if reason is None:
            assert error is None, (what, error)
        else:
            assert error is not None, (what, reason)
    assert None in reasons


def cuda_alone_refuses(op: str, args: tuple) -> str | None:
    """``check_kernel`` of csrc/cuda/layernorm_binding.cpp and embed_binding.cpp."""
    if op == "dropout_add_layernorm":
        x, _, residual, *_ = args
        if residual.dtype not in (F32, x.dtype):
            return "residual must have dtype float32 or that of x"
        return (
            "too wide" if x.shape[1] > constant("cuda/layernorm.h", "kMaxLayerNormWidth") else None
        )
    if op == "embed":
        word, *others = args[3:6]
        if any(table.dtype != word.dtype for table in others):
            return "word, position and type must have one dtype"
        return "too wide" if word.shape[1] > constant("cuda/embed.h", "kMaxEmbedWidth") else None
    if op.startswith("heads"):  # list_of of csrc/cuda/task_heads_binding.cpp
        is_many = len(args[0].specs) > constant("cuda/task_heads.h", "kMaxHeads")
        return "too many" if is_many else None
    return None


@pytest.mark.parametrize("op", ["objective", "smoothness_cotangents", "smoothness_values"])
@pytest.mark.parametrize("count", [MAX_CUDA_TASKS, MAX_CUDA_TASKS + 1])
def test_a_gpu_takes_so_many_tasks(op, count):
    """Beside the grid, for Triton's interpreter takes long for them."""
    table = ObjectiveTable([LossSpec("squared", 1, 1, 1.0)] * count, 1.0, 1.0, "cpu")
    others = (None, None, 1.0, None) if op == "objective" else ()
    with FakeTensorMode():
        x = torch.ones(count, device="cuda")
        reason = implementation(op, "cuda").why_not(table, x, x, *others)
    assert reason == (None if count == MAX_CUDA_TASKS else "65 tasks are above 64")


@pytest.mark.parametrize(
    ("op", "what", "reason"),
    [
        ("attention", "head_dim 26, 2 heads, 3 of 1024", "neither 32 nor 64"),
        ("attention", "head_dim 64, 2 heads, 513 of 1024", "max_length is 513, above 512"),
        ("dropout_add_layernorm", "width 2049", "above 2048"),
        ("embed", "width 2049", "above 2048"),
    ],
)
def test_a_gpu_s_reasons(op, what, reason):
    with FakeTensorMode():
        args = next(args for name, args, _ in CALLS[op]("cuda") if name.startswith(what))
        assert reason in implementation(op, "cuda").why_not(*args)
