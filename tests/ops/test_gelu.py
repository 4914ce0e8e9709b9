"""bias_gelu's own: accuracy on a grid, extreme arguments, and what is not finite."""

from __future__ import annotations

import math

import pytest
import torch

from tests.ops.backends import backends_of, run
from tests.ops.cases import OPS
from tests.ops.cases.gelu import GeluCase
from tests.ops.op_checks import BF16, F32, num_threads
from tests.ops.triton_only import DEVICE, equal_but_for_order

OP = OPS["bias_gelu"]
NAN, INF = float("nan"), float("inf")


def given(x, backend):
    """gelu and its derivative at rows of x: no bias, gradient and tangent of ones."""
    case = GeluCase((*x.shape, F32, 1.0, "dense"))
    case.inputs, case.grad = [x, torch.zeros(x.shape[1])], torch.ones_like(x)
    case.tangents = {0: case.grad}
    found = run(OP, backend, case)
    assert torch.equal(found.gradients[0].nan_to_num(7.0), found.tangent[0].nan_to_num(7.0))
    return found.value[0].cpu(), found.gradients[0].cpu()


def assert_accurate_everywhere(backend):
    """A grid against erfc in float64: two ulp of the argument's or the value's size."""
    rows = 1100 if backend == "cpu" else 160
    x = torch.linspace(-14, 14, rows * 181)[: rows * 181].view(rows, 181)
    y, slope = given(x, backend)
    t = x.double()
    exact = t * torch.special.erfc(-t / math.sqrt(2)) / 2
    bound = 2.4e-7 * t.abs().clamp(max=1.0) + 1.2e-7 * exact.abs() + 1e-38
    if backend == "triton":  # erf loses digits where the distribution is small
        bound = 2.4e-7 * t.abs() + 1e-30
    assert ((y - exact).abs() <= bound).all()
    density = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    exact = torch.special.erfc(-t / math.sqrt(2)) / 2 + t * density
    assert ((slope - exact).abs() <= 4.8e-7).all()


@backends_of("bias_gelu", "cuda_on_cpu")
def test_accurate_everywhere(backend):
    assert_accurate_everywhere(backend)


@backends_of("bias_gelu", "cuda_on_cpu")
def test_extreme_arguments(backend):
    x = torch.tensor([[3e38, 88.0, -88.0, 0.0, -0.0, 1e-40, 1e18, -1e18, NAN]])
    y, slope = (row[0] for row in given(x, backend))
    assert y[:5].tolist() == [*x[0, :2].tolist(), 0.0, 0.0, 0.0]
    assert 0 <= y[5] <= 1e-40
    assert y[6:8].tolist() == [x[0, 6].item(), 0.0]
    assert slope[:5].tolist() == [1.0, 1.0, 0.0, 0.5, 0.5]
    assert slope[6:8].tolist() == [1.0, 0.0]
    assert y[8].isnan() and slope[8].isnan()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter: -inf * 0
@pytest.mark.parametrize(("value", "expected"), [(NAN, NAN), (INF, INF), (-INF, NAN)])
@backends_of("bias_gelu", "cuda_on_cpu")
def test_what_is_not_finite_stays_in_its_element(backend, value, expected):
    case = GeluCase(OP.samples["primes"])
    (clean,) = run(OP, backend, case).value
    case.inputs[0] = case.inputs[0].clone()
    case.inputs[0][3, 5] = value
    (out,) = run(OP, backend, case).value
    got = out[3, 5].item()
    assert got == pytest.approx(expected, nan_ok=True) or (value == -INF and got == 0)
    out[3, 5] = clean[3, 5]
    assert torch.equal(out, clean)


# library, dtype, width; the interpreter has no bfloat16 and is slow
CALLS = [("sbrrt", dtype, width) for dtype in (F32, BF16) for width in (33, 1536)]
CALLS += [("sbrrt_triton", dtype, 33) for dtype in (F32, torch.float16)]


@pytest.mark.parametrize("first", [0, 3, 41, 66, 67])
@pytest.mark.parametrize(("library", "dtype", "width"), CALLS)
def test_forward_and_tangent_at_once(library, dtype, width, first):
    """The bits of the two ops, from any row on; into other memory and in place."""
    ops, device = getattr(torch.ops, library), "cpu" if library == "sbrrt" else DEVICE
    x, tangent = (torch.randn(67, width).to(dtype).to(device) for _ in range(2))
    bias, last = torch.randn(width, device=device), slice(first, None)
    tangent = tangent[last]
    expected, expected_tangent = torch.full_like(x, NAN), torch.full_like(tangent, NAN)
    ops.bias_gelu_forward_into(x, bias, expected)
    ops.bias_gelu_jvp_into(tangent, x[last].contiguous(), bias, expected_tangent)
    apart = torch.full_like(x, NAN), torch.full_like(tangent, NAN)
    for out, out_tangent in (apart, (x, tangent)):
        ops.bias_gelu_forward_into(x, bias, out, tangent, out_tangent)
        assert equal_but_for_order(out, expected)
        assert equal_but_for_order(out_tangent, expected_tangent)


def test_tangents_do_not_depend_on_threads():
    x, found = torch.randn(131, 384).bfloat16(), []
    for count in (1, 2, 3):
        results = torch.full_like(x, NAN), torch.full_like(x[60:], NAN)
        with num_threads(count):
            torch.ops.sbrrt.bias_gelu_forward_into(x, x[0], results[0], x[:71], results[1])
        found.append(results)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_opcheck_of_a_forward_with_tangents():
    x = torch.randn(5, 33).bfloat16()
    arguments = x, x[0], torch.empty_like(x), x[3:], torch.empty_like(x[3:])
    torch.library.opcheck(torch.ops.sbrrt.bias_gelu_forward_into.default, arguments)
