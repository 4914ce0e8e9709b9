"""mm_into: torch's product, cut over the threads; in float32 where bf16 would be emulated."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.ops import written_out  # noqa: F401 - defines mm_into
from tests.ops.op_checks import num_threads

assert extension is not None, extension_error


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.full((a.shape[0], b.shape[1]), torch.nan, dtype=a.dtype)
    torch.ops.sbrrt.mm_into(a, b, out)
    return out


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 384, 1152), (33, 7, 401), (448, 1536, 384), (0, 8, 300)])
@pytest.mark.parametrize("layout", ["plain", "right transposed", "left transposed"])
def test_product(layout, shape, dtype, count):
    torch.manual_seed(0)
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    expected, stock = a.double() @ b.double(), a @ b
    if layout == "right transposed":
        b = b.t().contiguous().t()
    if layout == "left transposed":
        a = a.t().contiguous().t()
    with num_threads(count):
        found = product(a, b)
        assert torch.equal(found, product(a, b))
    error, bound = (found - expected).abs(), (stock - expected).abs()
    assert found.shape == expected.shape
    assert rows == 0 or error.max() <= 2 * bound.max() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(224, 384, 1152), (33, 7, 401), (1536, 224, 384)])
@pytest.mark.parametrize("layout", ["plain", "right transposed", "left transposed"])
def test_threads_do_not_change_the_result(layout, shape, dtype):
    torch.manual_seed(0)
    rows, inner, columns = shape
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    a = a.t().contiguous().t() if layout == "left transposed" else a
    b = b.t().contiguous().t() if layout == "right transposed" else b
    found = []
    for count in (1, 2):
        with num_threads(count):
            found.append(product(a, b))
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_larger_tensors(dtype):
    torch.manual_seed(0)
    a, b = torch.randn(37, 30).to(dtype)[::2, 3:26], torch.randn(23, 40).to(dtype)[:, ::3]
    memory = torch.full((19, 20), torch.nan, dtype=dtype)
    torch.ops.sbrrt.mm_into(a, b, memory[:, 2:16])
    assert torch.equal(memory[:, 2:16], product(a.contiguous(), b.contiguous()))
    assert memory[:, :2].isnan().all() and memory[:, 16:].isnan().all()


def test_bf16_is_the_rounded_product():
    """Sums of few small whole numbers are exact in float32, so all that is left is one rounding."""
    torch.manual_seed(0)
    a, b = (torch.randint(-9, 10, size).bfloat16() for size in ((65, 64), (64, 300)))
    for left, right in ((a, b), (a[:3, :5], b[:5])):  # the second in the memory of the first
        assert torch.equal(product(left, right), (left.float() @ right.float()).bfloat16())


def test_opcheck():
    arguments = torch.randn(7, 5), torch.randn(5, 6), torch.randn(7, 6)
    torch.library.opcheck(torch.ops.sbrrt.mm_into.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": torch.ones(4, 5)}, "b must be a dense tensor of shape"),
        ({"out": torch.ones(5, 3)}, "out must be a dense tensor of shape"),
        ({"b": torch.ones(3, 5).double()}, "b must have dtype"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"a": torch.ones(2, 3), "b": torch.ones(3, 5), "out": torch.ones(2, 5)} | change
    with pytest.raises((TypeError, ValueError), match=f"sbrrt::mm_into: {message}"):
        torch.ops.sbrrt.mm_into(*arguments.values())
