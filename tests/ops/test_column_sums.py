"""column_sums_into: of several layers at once, by weights, against sums in float64."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.ops import column_sums
from tests.ops.op_checks import BF16, F32, F64, num_threads
from tests.ops.op_references import REFERENCES
from tests.ops.triton_only import DEVICE

assert extension is not None, extension_error
assert column_sums  # which defines the op
NAN = float("nan")
# layers, rows, width: odd ones, one row, none, more than are added at once, a block of columns
SHAPES = [(1, 1, 1), (3, 0, 5), (2, 1, 33), (3, 67, 257), (1, 700, 384), (2, 131, 1152), (0, 4, 8)]
LIBRARIES = {"cpu": torch.ops.sbrrt, "triton": torch.ops.sbrrt_triton}


def sums_by(backend: str, x, weights, out) -> None:
    """Into ``out``, by the library of a backend, on its device."""
    if backend == "cpu":
        torch.ops.sbrrt.column_sums_into(x, weights, out)
        return
    moved = out.to(DEVICE)
    weights = None if weights is None else weights.to(DEVICE)
    torch.ops.sbrrt_triton.column_sums_into(x.to(DEVICE), weights, moved)
    out.copy_(moved)


def error_bound(x, weights) -> torch.Tensor:
    """A rounding of each product, and one of each of up to sqrt(rows) sums of each sign's size."""
    weights = torch.ones(0) if weights is None else weights
    weights = torch.cat([weights, torch.ones(x.shape[1] - len(weights))])
    size = (weights.double()[:, None] * x.double()).abs().sum(1)
    return torch.finfo(F32).eps * (2 + x.shape[1] ** 0.5) * size + 1e-30


@pytest.mark.parametrize("backend", LIBRARIES)
@pytest.mark.parametrize("share", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums(shape, dtype, share, backend):
    """Layers that lie between each other's rows, into rows with gaps; weights of some rows."""
    if backend == "triton" and dtype is BF16:
        dtype = torch.float16  # the interpreter truncates bfloat16
    torch.manual_seed(0)
    layers, rows, width = shape
    x = torch.randn(rows, layers, width + 3).to(dtype)[..., :width].transpose(0, 1)
    weights = None if share is None else torch.randn(int(share * rows), 2)[:, 0]
    memory = torch.full((layers, width + 7), NAN)
    sums_by(backend, x, weights, memory[:, 2 : 2 + width])
    (exact,) = REFERENCES["column_sums_into"](x, weights)
    assert ((memory[:, 2 : 2 + width] - exact).abs() <= error_bound(x, weights)).all()
    assert memory[:, :2].isnan().all() and memory[:, 2 + width :].isnan().all()


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_any_strides_of_x(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 40, 70).to(dtype)
    expected, found = torch.empty(3, 70), torch.empty(3, 70)
    torch.ops.sbrrt.column_sums_into(x, None, expected)
    for view in (x.mT.contiguous().mT, x.repeat_interleave(2, 2)[..., ::2]):
        torch.ops.sbrrt.column_sums_into(view, None, found)
        assert torch.equal(found, expected)
    torch.ops.sbrrt.column_sums_into(x[:1].expand(3, 40, 70), None, found)
    assert torch.equal(found, expected[:1].expand(3, 70))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("shape", SHAPES)
def test_threads_do_not_change_the_result(shape, dtype):
    torch.manual_seed(0)
    layers, rows, width = shape
    x, weights, found = torch.randn(shape).to(dtype), torch.randn(rows), []
    for count in (1, 2, 3):
        with num_threads(count):
            found.append(torch.full((layers, width), NAN))
            torch.ops.sbrrt.column_sums_into(x, weights, found[-1])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_rounding_does_not_grow_with_all_rows():
    """Partial sums come first: added one after the other these are 8e-6 off."""
    torch.manual_seed(0)
    x, found = torch.rand(1, 60000, 64), torch.empty(1, 64)
    torch.ops.sbrrt.column_sums_into(x, None, found)
    exact = x.to(F64).sum(1)
    assert ((found - exact).abs() / exact).max() < 3e-6


def test_opcheck():
    arguments = torch.randn(2, 7, 5), torch.randn(7), torch.randn(2, 5)
    torch.library.opcheck(torch.ops.sbrrt.column_sums_into.default, arguments)


GOOD = {"x": torch.ones(2, 3, 5), "weights": torch.ones(3), "out": torch.ones(2, 5)}
BAD = [
    ("x", torch.ones(3, 5), ValueError, "x must (be a dense tensor of shape|have 3 dimensions)"),
    ("x", torch.ones(2, 3, 5, dtype=F64), TypeError, "x must have dtype"),
    ("weights", torch.ones(4), ValueError, "weights must be a dense tensor of shape"),
    ("weights", torch.ones(3, dtype=BF16), TypeError, "weights must have dtype"),
    ("out", torch.ones(2, 4), ValueError, "out must be a dense tensor of shape"),
    ("out", torch.ones(2, 5, dtype=BF16), TypeError, "out must have dtype"),
    ("out", torch.ones(1, 5).expand(2, 5), ValueError, "out is written and needs dense rows"),
]


@pytest.mark.parametrize("backend", LIBRARIES)
@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_wrong_arguments(argument, value, error, message, backend):
    values = GOOD | {argument: value}
    if backend == "triton" and DEVICE != "cpu":
        values = {name: x if x.is_meta else x.to(DEVICE) for name, x in values.items()}
    with pytest.raises(error, match=f"column_sums: {message}"):
        LIBRARIES[backend].column_sums_into(*values.values())
