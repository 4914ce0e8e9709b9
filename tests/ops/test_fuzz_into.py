"""Ops into given memory, on results that share memory with anything, in any layout.

Whether a call is to be refused is found by listing the bytes of every tensor. A refused call says
the op and both arguments, and changes nothing; an accepted one leaves the reference's values.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from sbrrt_fast._extension import extension, extension_error
from tests.ops.op_references import OF_THE_RESULT, REFERENCES, assert_close
from tests.ops.test_fuzz_ops import answer_of, is_named, like
from tests.ops.write_samples import put, sample, tensors, writing_ops, written

assert extension is not None, extension_error
ops = torch.ops.sbrrt
OPS = writing_ops()
# A result that may be exactly an input, by op and result.
IN_PLACE = {
    ("bias_gelu_forward_into", "out"): ["x"],
    ("bias_gelu_forward_into", "out_tangent"): ["x_tangent"],
    ("bias_gelu_backward_into", "dx"): ["grad", "x"],
    ("bias_gelu_jvp_into", "out"): ["x_tangent", "x"],
    ("dropout_add_layernorm_backward_into", "dresidual"): ["grad"],
}


# What is no row of features is contiguous.
WHOLE = (
    "adamw", "dropout_mask", "heads", "objective", "philox", "smart", "smoothness", "symmetric_kl",
)  # fmt: skip
CONTIGUOUS = [("attention_forward_into", "logsumexp")]
CONTIGUOUS += [("embed_backward_into", name) for name in ("dword", "dposition", "dtype")]


def addresses(x: Tensor) -> Tensor:
    """Of every byte of every element."""
    places = torch.tensor([x.data_ptr()])
    for size, stride in zip(x.shape, x.stride(), strict=True):
        places = (places[:, None] + torch.arange(size) * stride * x.itemsize).flatten()
    return (places[:, None] + torch.arange(x.itemsize)).flatten()


def extent(x: Tensor) -> tuple[int, int]:
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.itemsize if x.numel() else 0


def share_a_byte(x: Tensor, y: Tensor) -> bool:
    (begin, end), (other_begin, other_end) = extent(x), extent(y)
    if begin >= other_end or other_begin >= end:
        return False
    return bool(torch.isin(addresses(x), addresses(y)).any())


def meets_itself(x: Tensor) -> bool:
    places = addresses(x)
    return len(places.unique()) < len(places)


def is_same(x: Tensor, y: Tensor) -> bool:
    return x.dtype == y.dtype and torch.equal(addresses(x), addresses(y)) and x.shape == y.shape


def is_writable(op: str, name: str, x: Tensor) -> bool:
    """Whether the layout is one that the op writes."""
    if x.dim() == 2 and (op, name) not in CONTIGUOUS and not op.startswith(WHOLE):
        (rows, width), (apart, step) = x.shape, x.stride()
        return (step == 1 or width == 1) and (apart >= width or rows <= 1)
    if name == "sums":
        (segments, parts, width), (apart, *dense) = x.shape, x.stride()
        is_dense = dense[0] == width and (dense[1] == 1 or width == 1)
        return is_dense and (apart >= parts * width or segments <= 1)
    return x.is_contiguous()


def conflicts(op: str, values: dict) -> list[tuple[str, str]]:
    """Pairs of arguments that share memory where they may not."""
    found, names = [], written(op)
    everything = sorted(tensors(values).items(), key=lambda item: extent(item[1]))
    for i, ((name, place), x) in enumerate(everything):
        for (other, other_place), y in everything[i + 1 :]:
            if extent(y)[0] >= extent(x)[1]:
                break  # and so are those behind it
            if (name not in names and other not in names) or not share_a_byte(x, y):
                continue
            pairs = [(name, other), (other, name)]
            if is_same(x, y) and any(b in IN_PLACE.get((op, a), ()) for a, b in pairs):
                continue
            found.append((said(name, place), said(other, other_place)))
    return found


def said(name: str, place: int) -> str:
    return name if place < 0 else f"{name}[{place}]"


def overlay(draw: random.Random, target: Tensor, result: Tensor) -> tuple[Tensor, Tensor]:
    """The target's values and a tensor of the result's shape and dtype, in one piece of memory."""
    span = sum((n - 1) * s for n, s in zip(target.shape, target.stride(), strict=True)) + 1
    strides = list(result.stride())
    if result.dim() == 2:
        width = result.shape[1]
        strides[0] = draw.choice([0, max(width - 1, 0), width, width, width + 3, 2 * width])
        if draw.random() < 0.2:
            strides = draw.choice([list(target.stride())[:2], [1, result.shape[0]], [2 * width, 2]])
            strides = strides if len(strides) == 2 else list(result.stride())
    size = sum((max(n, 1) - 1) * s for n, s in zip(result.shape, strides, strict=True)) + 1
    num_bytes = 2 * (span * target.itemsize + size * result.itemsize) + 256
    memory = torch.rand(num_bytes // 8 * 2 + 2)  # whole int64
    first = draw.randrange(0, size * result.itemsize // target.itemsize + 9)
    moved = memory.view(target.dtype).as_strided(target.shape, target.stride(), first)
    moved.copy_(target)
    row = (target.stride(0) if target.dim() else 1) * target.itemsize
    begin = first * target.itemsize
    places = [begin, begin + row, begin - row, begin + span * target.itemsize]
    places += [begin + target.shape[-1] * target.itemsize] if target.dim() else []
    places += [draw.randrange(num_bytes)]
    last = memory.nbytes // result.itemsize - size
    start = min(max(draw.choice(places) // result.itemsize, 0), last)
    return moved, memory.view(result.dtype).as_strided(result.shape, strides, start)


def alias(draw: random.Random, op: str, values: dict) -> None:
    """Puts some results into the memory of another argument."""
    for _ in range(draw.choice([0, 1, 1, 2])):
        places = tensors(values)
        results = [p for p in places if p[0] in written(op)]
        if not results:
            return
        to = draw.choice(results)
        target = draw.choice([p for p in places if p != to])
        x, y = places[target], places[to]
        if 0 in (x.numel(), y.numel()) or meets_itself(x):
            continue
        if x.shape == y.shape and x.dtype == y.dtype and draw.random() < 0.3:
            put(values, to, x)
            continue
        x, result = overlay(draw, x, y)
        reads_it = op.startswith("adamw")
        if reads_it and not share_a_byte(x, result) and not meets_itself(result):
            result.copy_(y)
        put(values, target, x)
        put(values, to, result)
    if "touched" in values and not conflicts(op, values):
        values["touched"].fill_(True)  # as the moments have it


def snapshot(values: dict) -> dict:
    return {k: [x.clone() for x in v] if isinstance(v, list) and v and isinstance(v[0], Tensor)
            else v.clone() if isinstance(v, Tensor) else v for k, v in values.items()}  # fmt: skip


def state(values: dict) -> list:
    """Bits and versions of all tensors."""
    found = tensors(values).values()
    dense = [x.clone(memory_format=torch.contiguous_format).flatten() for x in found]
    return [*(x.view(torch.uint8).tolist() for x in dense), *(x._version for x in found)]


def expected(op: str, values: dict) -> list[Tensor]:
    is_read = op.startswith("adamw") or op in OF_THE_RESULT
    reads = [v for name, v in values.items() if is_read or name not in written(op)]
    return REFERENCES[op](*reads)


def answered(op: str, values: dict) -> list[Tensor | None]:
    """Results in the reference's order; low is a copy of out, and that of its tangent too."""
    if op.startswith("adamw"):
        return [x for (name, _), x in tensors(values).items() if name in written(op)]
    return [values[name] for name in written(op) if not name.startswith("low")]


def check_call(draw: random.Random, op: str) -> bool:
    """One call; returns whether it was accepted."""
    values = sample(op, draw)
    alias(draw, op, values)
    spoilt = draw.random() < 0.1 and spoil(draw, op, values)
    found = tensors(values)
    is_plain = all(x.layout == torch.strided and not x.is_meta for x in found.values())
    layouts = [is_writable(op, name, x) for (name, _), x in found.items() if name in written(op)]
    pairs = conflicts(op, values) if is_plain else []
    before, inputs = (state(values), snapshot(values)) if is_plain else (None, None)
    error = answer_of(getattr(ops, op), [*values.values()])
    if isinstance(error, Exception):
        assert is_named(error, op), error
        assert not is_plain or state(values) == before
        is_told = any(a in str(error) and b in str(error) for a, b in pairs)
        assert spoilt or not all(layouts) or (isinstance(error, ValueError) and is_told)
        return False
    assert is_plain and all(layouts) and not pairs, (op, pairs)
    exact, read = expected(op, inputs), [*tensors(inputs).values()]
    assert_close(answered(op, values), exact, read)
    return True


def spoil(draw: random.Random, op: str, values: dict) -> bool:
    """Another dtype, shape, device or value of a result; ``touched`` must fit the moments."""
    results = {*written(op)} - {"touched"}
    places = [p for p, x in tensors(values).items() if p[0] in results and x.numel()]
    if not places:
        return False
    place = draw.choice(places)
    put(values, place, like(draw, tensors(values)[place]))
    return True


def fuzz(op: str, num_calls: int, seed: int) -> int:
    """Returns how many of the calls were accepted."""
    draw = random.Random(f"{op} {seed}")
    torch.manual_seed(seed)
    return sum(check_call(draw, op) for _ in range(num_calls))


def test_every_writing_op_has_a_reference():
    assert sorted(REFERENCES) == OPS


@pytest.mark.parametrize("op", OPS)
def test_results_anywhere(op):
    assert 10 <= fuzz(op, 60, seed=0) <= 50


@pytest.mark.long
@pytest.mark.parametrize("op", OPS)
def test_results_anywhere_many_times(op):
    num_accepted = fuzz(op, 8500, seed=1)
    print(op, "accepted", num_accepted, "of 8500")
    assert 2000 <= num_accepted <= 7000
