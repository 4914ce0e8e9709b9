"""Ops into given memory: what may share memory, what autograd is told, on every device there is."""

from __future__ import annotations

import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.ops.adamw_ema import RowGradient, adamw_ema_, adamw_ema_rows_
from sbrrt_fast.ops.gradient_norm import gradient_norm
from tests.ops.on_device import devices, moved
from tests.ops.op_checks import BF16, F32
from tests.ops.test_fuzz_into import IN_PLACE
from tests.ops.write_samples import put, sample, tensors, writing_ops, written

assert extension is not None, extension_error
ops = torch.ops.sbrrt
OPS = writing_ops()
each_op = pytest.mark.parametrize("op", OPS)


# Lists of which no call can have every entry: tasks have class weights or units of labels.
PARTIAL = ("class_weights", "label_means", "label_scales")


def is_full(found: dict) -> bool:
    """Whether every tensor has elements, or some of a list that has never all."""
    partial = {name for name, _ in found} & {*PARTIAL}
    there = {place: x for place, x in found.items() if place[0] not in partial or x.numel()}
    has_all = partial <= {name for name, _ in there}
    return bool(there) and has_all and all(x.numel() > 1 or x.dim() == 0 for x in there.values())


def filled(op: str, dtype: torch.dtype | None = None) -> dict:
    """All arguments; every tensor has elements, and this dtype where there is a choice."""
    draw = random.Random(op)
    torch.manual_seed(0)
    while True:
        values = sample(op, draw)
        found = tensors(values)
        dtypes = {x.dtype for (name, _), x in found.items() if name in written(op)}
        has_all = is_full(found) and all(value is not None for value in values.values())
        if has_all and (dtype is None or dtype in dtypes):
            return values


def call(op: str, values: dict):
    return getattr(ops, op)(*values.values())


def said(op: str) -> str:
    """What errors call it."""
    return op if op == "mm_into" else op.removesuffix("_into")


def pairs(op: str) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Every result with every other argument."""
    places = [place for place, x in tensors(filled(op)).items() if x.numel()]
    return [(a, b) for a in places if a[0] in written(op) for b in places if a != b]


def overlapping(values: dict, result, other) -> dict:
    """The same with the result's first element inside the other's last one."""
    x, y = tensors(values)[result], tensors(values)[other]
    size = (x.nbytes + y.nbytes + 15) // 8 * 8
    memory = torch.zeros(size, dtype=torch.uint8, device=x.device)
    last = (y.nbytes - y.itemsize) // 8 * 8
    for place, tensor, begin in ((other, y, 0), (result, x, last)):
        part = memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        put(values, place, part)
    tensors(values)[result].copy_(x)
    tensors(values)[other].copy_(y)
    return values


@devices
@each_op
def test_results_overlap_nothing(op, device):
    for result, other in pairs(op):
        values = overlapping(moved(filled(op), device), result, other)
        versions = [x._version for x in tensors(values).values()]
        with pytest.raises(ValueError, match=rf"sbrrt::{said(op)}: .*memory of its own") as error:
            call(op, values)
        names = [name if i < 0 else f"{name}[{i}]" for name, i in (result, other)]
        assert all(name in str(error.value) for name in names)
        assert versions == [x._version for x in tensors(values).values()]


@each_op
def test_tracing_refuses_the_same(op):
    for result, other in pairs(op):
        values = overlapping(filled(op), result, other)
        storage = tensors(values)[result].untyped_storage().nbytes()
        memory = torch.empty(storage, dtype=torch.uint8, device="meta")
        for place, x in tensors(values).items():
            if place in (result, other):
                flat = memory.view(x.dtype)
                put(values, place, flat.as_strided(x.shape, x.stride(), x.storage_offset()))
            else:
                put(values, place, x.to("meta"))
        with pytest.raises(ValueError, match=rf"sbrrt::{said(op)}: .*memory of its own"):
            call(op, values)


def test_fake_tensors():
    with FakeTensorMode():
        a, b = torch.randn(4, 4), torch.randn(4, 4)
        ops.mm_into(a, b, torch.empty(4, 4))
        with pytest.raises(ValueError, match="mm_into: out shares memory with a"):
            ops.mm_into(a, b, a)


@devices
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("op", "result"), IN_PLACE)
def test_an_input_itself(op, result, dtype, device):
    """Row after row is read before it is written."""
    for name in IN_PLACE[op, result]:
        values, apart = moved(filled(op, dtype), device), moved(filled(op, dtype), device)
        assert values[name].dtype == values[result].dtype
        values[result] = values[name]
        call(op, values)
        call(op, apart)
        for each in written(op):
            assert values[each] is None or torch.equal(values[each], apart[each])


def test_an_input_of_another_layout_or_dtype():
    memory = torch.randn(8, 8)
    with pytest.raises(ValueError, match=r"out overlaps x, .* or exactly that of x"):
        ops.bias_gelu_forward_into(memory.t(), torch.zeros(8), memory)
    x, grad = torch.randn(4, 8), torch.randn(4, 8).bfloat16()
    with pytest.raises(ValueError, match="dx overlaps grad"):
        ops.bias_gelu_backward_into(grad, x, torch.zeros(8), as_floats(grad), None)


def as_floats(x: torch.Tensor) -> torch.Tensor:
    """float32 of the same shape whose memory begins with that of x."""
    memory = torch.empty(2 * x.numel(), dtype=x.dtype)
    x.set_(memory.untyped_storage(), 0, x.shape, x.stride())
    return memory.view(torch.float32).view(x.shape)


def test_memory_that_is_in_each_other_s_gaps():
    """Rows of one tensor lie between those of another, with the same distance and with another."""
    memory = torch.randn(6, 24)
    a, b = memory[:, 3:11], torch.randn(8, 5)
    for out in (memory[:, 11:16], memory[:, 19:24], memory.view(12, 12)[1::2, 5:10]):
        expected = a @ b
        ops.mm_into(a, b, out)
        torch.testing.assert_close(out, expected)
    for out in (memory[:, 10:15], memory.view(12, 12)[:6, 1:6], memory.view(-1)[30:60].view(6, 5)):
        with pytest.raises(ValueError, match="mm_into: out shares memory with a"):
            ops.mm_into(a, b, out)


def test_two_storages_of_one_memory():
    array = torch.randn(36).numpy()
    a, out = torch.from_numpy(array[:16]).view(4, 4), torch.from_numpy(array[12:28]).view(4, 4)
    with pytest.raises(ValueError, match="mm_into: out shares memory with a"):
        ops.mm_into(a, torch.eye(4), out)


@devices
@each_op
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_versions_count_each_call(op, mode, device):
    values = moved(filled(op), device)
    before = {place: x._version for place, x in tensors(values).items()}
    with mode():
        call(op, values)
    for place, x in tensors(values).items():
        assert x._version == before[place] + (place[0] in written(op)), place


@each_op
def test_a_graph_notices_that_a_tensor_it_saved_was_written(op):
    values = filled(op)
    for place, x in tensors(values).items():
        if place[0] not in written(op) or not x.is_floating_point():
            continue
        factor = torch.ones_like(x, requires_grad=True)
        product = (x * factor).sum()
        call(op, values)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()


@each_op
def test_tensors_that_require_grad(op):
    for place, x in tensors(filled(op)).items():
        if not x.is_floating_point():
            continue
        values = filled(op)
        put(values, place, x.clone().requires_grad_())
        name = place[0] if place[1] < 0 else rf"{place[0]}\[{place[1]}\]"
        with pytest.raises(ValueError, match=rf"sbrrt::{said(op)}: {name} .*torch.no_grad\(\)"):
            call(op, values)
        with torch.no_grad():
            call(op, values)


@each_op
def test_tensors_of_inference_mode(op):
    for place, x in tensors(filled(op)).items():
        if place[0] not in written(op):
            continue
        values = filled(op)
        with torch.inference_mode():
            put(values, place, x.clone())
            call(op, values)
        with pytest.raises(ValueError, match=f"sbrrt::{said(op)}: .*inference_mode.*clone"):
            call(op, values)


def update(count: int = 2) -> tuple[list, dict]:
    """Lists and numbers of the public function."""
    lists = [[torch.rand(3, 4) for _ in range(count)] for _ in range(4)]
    numbers = {
        "learning_rate": torch.tensor(0.1), "weight_decay": [0.0] * count,
        "clip_factor": torch.tensor(1.0), "step": torch.tensor(1), "ema_beta": 0.9,
        "ema": [torch.rand(3, 4) for _ in range(count)],
    }  # fmt: skip
    return lists, numbers


# Which entry of which list is taken as which other: params, grads, exp_avg, exp_avg_sq.
TWICE = {
    "a gradient is another's moment": ((1, 1), (2, 0), r"exp_avg\[0\] shares .* with grads\[1\]"),
    "a gradient is its parameter": ((1, 0), (0, 0), r"params\[0\] shares .* with grads\[0\]"),
    "a parameter twice": ((0, 1), (0, 0), r"params\[[01]\] and params\[[01]\] share memory"),
    "both moments": ((2, 0), (3, 0), r"exp_avg(_sq)?\[0\] and exp_avg(_sq)?\[0\] share memory"),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("count", [2, 30])
@pytest.mark.parametrize(("to", "source", "message"), TWICE.values(), ids=TWICE)
def test_an_optimiser_s_tensors(to, source, message, count, backend):
    lists, numbers = update(count)
    adamw_ema_(*lists, **numbers, backend=backend)
    apart = lists[to[0]][to[1]]
    lists[to[0]][to[1]] = lists[source[0]][source[1]]
    with pytest.raises(ValueError, match=message):
        adamw_ema_(*lists, **numbers, backend=backend)
    lists[to[0]][to[1]] = apart
    adamw_ema_(*lists, **numbers, backend=backend)


def test_a_step_that_is_a_moment_s_first_element():
    lists, numbers = update()
    numbers["step"] = lists[2][1][0, 0].fill_(1)
    with pytest.raises(ValueError, match=r"exp_avg\[1\] shares memory with step"):
        adamw_ema_(*lists, **numbers, backend="cpu")


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_gradients_may_share_memory(backend):
    """They are only read: parameters with one gradient get it once."""
    lists, numbers = update()
    lists[1] = [lists[1][0].expand(3, 4)] * 2
    adamw_ema_(*lists, **numbers, backend=backend)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rows_of_a_table(backend):
    table, moment, square = torch.rand(3, 6, 4)
    rows, numbers = torch.tensor([1, 4]), update(1)[1]
    numbers = {k: v for k, v in numbers.items() if k != "ema"} | {"weight_decay": 0.0}
    touched = torch.zeros(6, dtype=torch.bool)
    with pytest.raises(ValueError, match="exp_avg shares memory with grad"):
        adamw_ema_rows_(
            table, RowGradient(rows, moment[:2]), touched, moment, square, **numbers,
            backend=backend,
        )  # fmt: skip


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_nothing_to_do(backend):
    assert gradient_norm([], backend=backend) == 0
    lists, numbers = update(0)
    adamw_ema_(*lists, **numbers, backend=backend)


def test_gradients_of_a_kind_without_a_kernel():
    with pytest.raises(ValueError, match="sbrrt::gradient_norm: grads must be dense tensors on"):
        ops.gradient_norm_into([torch.eye(3).to_sparse()], 0.0, torch.zeros(3))
