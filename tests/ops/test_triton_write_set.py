"""Triton's ops into given memory: strided results, aliases, what is refused, what is left out."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.kernels import matmul
from sbrrt_fast.ops import registry, written_out
from tests.ops.on_device import moved
from tests.ops.test_fuzz_into import IN_PLACE, state
from tests.ops.test_write_set import filled, overlapping, pairs
from tests.ops.triton_only import DEVICE, equal_but_for_order
from tests.ops.write_samples import put, tensors, writing_ops, written

pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero|overflow):RuntimeWarning"  # of what masks leave out
)
assert registry and written_out  # whose modules define all ops
F32, F16, NAN = torch.float32, torch.float16, float("nan")
OPS = writing_ops("sbrrt_triton")
WRITERS = [op for op in OPS if not op.startswith("adamw")]  # the others update in place
CONTIGUOUS = {"logsumexp", "dword", "dposition", "dtype"}  # among the matrices
each_op = pytest.mark.parametrize("op", OPS)


def call(op: str, values: dict) -> None:
    assert getattr(torch.ops.sbrrt_triton, op)(*values.values()) is None


def arguments(op: str, dtype: torch.dtype | None = None) -> dict:
    return moved(filled(op, dtype), DEVICE)


def results(op: str, values: dict) -> dict[str, torch.Tensor]:
    return {name: values[name] for name in written(op) if values[name] is not None}


def name_of(op: str) -> str:
    """What errors call it."""
    return op if op == "mm_into" else op.removesuffix("_into")


def test_the_libraries_have_the_same_ops():
    assert writing_ops("sbrrt") == OPS


@pytest.mark.parametrize("op", WRITERS)
def test_results_that_are_columns_of_a_wider_matrix(op):
    apart, values = arguments(op), arguments(op)
    memory = {}
    for name, x in results(op, values).items():
        if x.dim() == 2 and name not in CONTIGUOUS:
            fill = NAN if x.is_floating_point() else -7
            size = len(x), x.shape[1] + 7 + len(memory)  # no two have the same stride
            memory[name] = torch.full(size, fill, dtype=x.dtype, device=DEVICE)
            first = len(memory) + 2
            values[name] = memory[name][:, first:-4]
    call(op, apart)
    call(op, values)
    for name, x in results(op, values).items():
        assert equal_but_for_order(x, apart[name]), name
    for name, wide in memory.items():
        values[name].fill_(-7)
        assert (wide.isnan() | (wide == -7)).all()


@pytest.mark.parametrize("op", WRITERS)
def test_rows_with_gaps_or_in_common_are_refused(op):
    for name, x in results(op, arguments(op)).items():
        if x.dim() != 2:
            continue
        in_common = x.new_zeros(1, x.shape[1]).expand(x.shape)
        gaps = x.new_zeros(len(x), 2 * x.shape[1])[:, ::2]
        # a single row has none in common, a single column no gaps
        for bad in [in_common] * (len(x) > 1) + [gaps] * (x.shape[1] > 1):
            values = arguments(op) | {name: bad}
            with pytest.raises(ValueError, match=f"{name_of(op)}: {name} is written and .*strides"):
                call(op, values)


def test_gradients_that_are_the_parts_of_one_tensor():
    op = "attention_backward_into"
    apart, values = arguments(op), arguments(op)
    names, num_tokens, hidden = list(results(op, values)), *values["query"].shape
    fused = values["query"].new_zeros(num_tokens, 3 * hidden)
    values |= dict(zip(names, fused.chunk(3, 1), strict=True))
    call(op, apart)
    call(op, values)
    assert equal_but_for_order(fused, torch.cat([apart[name] for name in names], dim=1))
    values["dkey"] = fused[:, 1 : 1 + hidden]
    with pytest.raises(ValueError, match="dkey and dquery share memory, and both are written"):
        call(op, values)


@pytest.mark.parametrize(("op", "result"), IN_PLACE)
def test_an_input_itself(op, result):
    for name in IN_PLACE[op, result]:
        values, apart = arguments(op, F32), arguments(op, F32)
        values[result] = values[name]
        call(op, values)
        call(op, apart)
        for each, x in results(op, values).items():
            assert torch.equal(x, apart[each]), (name, each)


@each_op
def test_no_other_input_itself(op):
    for (result, _), (other, i) in pairs(op):
        values = arguments(op)
        x, y = values[result], tensors(values)[other, i]
        if isinstance(x, list) or x is None or (x.shape, x.dtype) != (y.shape, y.dtype):
            continue
        if other in written(op) or other in IN_PLACE.get((op, result), ()):
            continue
        values[result] = y
        with pytest.raises(ValueError, match=f"{result} shares memory with {other}"):
            call(op, values)


def test_an_input_of_another_layout():
    memory = torch.randn(8, 8, device=DEVICE)
    with pytest.raises(ValueError, match=r"out overlaps x, .* or exactly that of x"):
        call("bias_gelu_forward_into", {"x": memory.t(), "bias": memory[0] + 0, "out": memory})


@each_op
def test_results_overlap_nothing(op):
    for result, other in pairs(op):
        values = overlapping(arguments(op), result, other)
        before = state(values)
        with pytest.raises(ValueError, match=f"^{name_of(op)}: .*memory of its own") as error:
            call(op, values)
        names = [name if i < 0 else f"{name}[{i}]" for name, i in (result, other)]
        assert all(name in str(error.value) for name in names)
        assert state(values) == before


@each_op
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_versions_count_each_call(op, mode):
    values = arguments(op)
    before = {place: x._version for place, x in tensors(values).items()}
    with mode():
        call(op, values)
    for place, x in tensors(values).items():
        assert x._version == before[place] + (place[0] in written(op)), place


@each_op
def test_tensors_that_require_grad_or_are_of_inference_mode(op):
    for place, x in tensors(arguments(op)).items():
        if x.is_floating_point():
            values = arguments(op)
            put(values, place, x.clone().requires_grad_())
            name = place[0] if place[1] < 0 else rf"{place[0]}\[{place[1]}\]"
            with pytest.raises(ValueError, match=rf"{name} .*torch.no_grad\(\)"):
                call(op, values)
        if place[0] in written(op):
            values = arguments(op)
            with torch.inference_mode():
                put(values, place, x.clone())
            with pytest.raises(ValueError, match=r"inference_mode.*clone"):
                call(op, values)


NORM = "dropout_add_layernorm"


@pytest.mark.parametrize("op", [f"{NORM}_forward_into", f"{NORM}_jvp_into"])
def test_a_copy_in_another_dtype(op):
    for dtype in (F16, F32):
        values = arguments(op, F32)
        values["low"] = torch.full_like(values["out"], NAN, dtype=dtype)
        call(op, values)
        assert torch.equal(values["low"], values["out"].to(dtype))
        alone = values | {"low": None, "out": torch.full_like(values["out"], NAN)}
        call(op, alone)
        assert equal_but_for_order(alone["out"], values["out"])


def test_a_product_is_added_to_the_gradient():
    op = f"{NORM}_backward_into"
    values, together = arguments(op, F32), arguments(op, F32)
    product = torch.randn_like(values["grad"])
    values["product"], together["product"] = product, None
    together["grad"] = together["grad"] + product
    call(op, values)
    call(op, together)
    for name, x in results(op, values).items():
        assert equal_but_for_order(x, together[name]), name


def test_gradients_that_are_not_wanted():
    for op in ("bias_gelu_backward_into", f"{NORM}_backward_into", "embed_backward_into"):
        whole = arguments(op)
        call(op, whole)
        optional = [name for name in results(op, whole) if name not in ("dx", "dresidual")]
        optional += ["segments"] if "segments" in whole else []
        alone = [[name] for name in optional] if op.startswith("embed") else []
        for left_out in (optional, *alone):
            values = arguments(op) | dict.fromkeys(left_out)
            call(op, values)
            for name, x in results(op, values).items():
                assert equal_but_for_order(x, whole[name]), (op, name)


BAD = [
    ("a", torch.zeros(3, 4, 1), ValueError, "a must have 2 dimensions"),
    ("b", torch.zeros(4), ValueError, "b must have 2 dimensions"),
    ("b", torch.zeros(3, 2), ValueError, r"b must be .* \[4, 2\]"),
    ("b", torch.zeros(4, 2, dtype=F16), TypeError, r"b must have dtype torch\.float32"),
    ("out", torch.zeros(3, 3), ValueError, r"out must be .* \[3, 2\]"),
    ("out", torch.zeros(3, 2, device="meta"), ValueError, "out must be on"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_a_product_s_bad_argument(argument, value, error, message):
    values = {"a": torch.zeros(3, 4), "b": torch.zeros(4, 2), "out": torch.zeros(3, 2)}
    with pytest.raises(error, match=f"mm_into: {message}"):
        matmul.mm_into(**{**values, argument: value})
