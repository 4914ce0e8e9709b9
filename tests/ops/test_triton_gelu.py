"""bias_gelu in Triton: values, gradients, tangents, extreme arguments, and how it refuses."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.errors import BackendError
from sbrrt_fast.kernels import gelu as kernels
from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.ops.gelu import bias_gelu, bias_gelu_reference
from tests.ops.op_checks import BF16, F32, F64, assert_as_good_as_stock, float_tangent, gradients
from tests.ops.test_gelu import Case
from tests.ops.triton_checks import (
    F16,
    assert_compiles_once,
    assert_same_bits,
    here,
    interpreted,
    on_device,
    poisoned,
)
from tests.ops.triton_only import GELU, equal_but_for_order

ops = torch.ops.sbrrt_triton

# rows, features, dtype, scale of x, layout; a tile has 16 rows and 256 features
SAMPLES = {
    "one token": (1, 1536, F32, 1.0, "dense"),
    "bert-base": (9, 3072, F32, 1.0, "dense"),
    "bert-base in fp16": (5, 3072, F16, 1.0, "dense"),
    "whole tiles": (32, 256, F32, 1.0, "dense"),
    "a row and a feature more": (33, 257, F32, 1.0, "dense"),
    "a row and a feature less": (15, 255, F16, 1.0, "dense"),
    "primes": (67, 131, F32, 3.0, "dense"),
    "primes in fp16": (17, 37, F16, 1.0, "dense"),
    "small values": (19, 48, F32, 1e-3, "dense"),
    "large values": (19, 53, F32, 50.0, "dense"),
    "no rows": (0, 64, F32, 1.0, "dense"),
    "gaps between rows": (40, 96, F32, 1.0, "strided"),
    "transposed": (19, 33, F16, 1.0, "transposed"),
    "one feature": (5, 1, F32, 1.0, "dense"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
SMALL = SAMPLES["primes in fp16"]


def ours(x, bias):
    return on_device(bias_gelu, x, bias, backend="triton")


def everything(case):
    """Result, gradients and tangent of the ops themselves, on the CPU."""
    tangent = on_device(ops.bias_gelu_jvp, case.grad, *case.inputs)
    grads = on_device(ops.bias_gelu_backward, case.grad, *case.inputs, True)
    return [on_device(ops.bias_gelu_forward, *case.inputs), *grads, tangent]


@samples
def test_values_gradients_and_tangents(sample):
    case = Case(sample)
    exact = case.exact_inputs()
    out, dx, dbias, tangent = everything(case)
    values = bias_gelu_reference(*case.inputs), bias_gelu_reference(*exact)
    assert_as_good_as_stock(out, *values, GELU)
    stock_grads = gradients(bias_gelu_reference, case.inputs, case.grad)
    exact_grads = gradients(bias_gelu_reference, exact, case.grad.double())
    for triple in zip((dx, dbias), stock_grads, exact_grads, strict=True):
        assert_as_good_as_stock(*triple, GELU)
    results = [
        float_tangent(
            lambda x, bias=bias: bias_gelu_reference(x, bias), [x], [case.grad.to(x.dtype)]
        )
        for x, bias in (case.inputs, exact)
    ]
    assert_as_good_as_stock(tangent, *results, GELU)


def test_value_and_derivative_over_all_arguments():
    x = torch.linspace(-14, 14, 160 * 256 - 6)
    x = torch.cat([x, torch.tensor([0.0, -0.0, 1e-38, -1e-38, 1e18, -1e18])]).view(160, 256)
    zeros, ones = torch.zeros(256), torch.ones_like(x)
    y, dx, _, _ = (r.double() for r in everything(_Given(x, zeros, ones)))
    t = x.double()
    cdf = 0.5 * torch.erfc(-t / 2**0.5)
    density = torch.exp(-t * t / 2) / (2 * torch.pi) ** 0.5
    assert ((y - t * cdf).abs() <= 2.4e-7 * t.abs() + 1e-30).all()
    assert ((dx - (cdf + t * density)).abs() <= 4.8e-7).all()


class _Given:
    def __init__(self, x, bias, grad):
        self.inputs, self.grad = [x, bias], grad


NAN, INF = float("nan"), float("inf")


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter: -inf * 0
@pytest.mark.parametrize(("value", "expected"), [(NAN, NAN), (INF, INF), (-INF, NAN)])
def test_what_is_not_finite_stays_in_its_element(value, expected):
    case = Case(SAMPLES["primes"])
    clean, _, _, _ = everything(case)
    case.inputs[0] = case.inputs[0].clone()
    case.inputs[0][3, 5] = value
    out, _, _, _ = everything(case)
    assert out[3, 5].item() == pytest.approx(expected, nan_ok=True)
    out[3, 5] = clean[3, 5]
    assert torch.equal(out, clean)


@triton.jit
def _forgets_the_last_column(num_rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A planted bug: a tile's mask leaves out its last column."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = (o_column < width) & (tl.arange(0, COLUMNS) < COLUMNS - 1)
    return o_row, o_column, (o_row < num_rows) & m_column[None, :]


@triton.jit
def _forgets_the_last_row(num_rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A planted bug: the mask leaves out the last row."""
    o_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    o_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    return o_row, o_column, (o_row < num_rows - 1) & (o_column < width)[None, :]


@interpreted
@pytest.mark.parametrize(
    ("bug", "name"),
    [
        (_forgets_the_last_column, "whole tiles"),
        (_forgets_the_last_column, "a row and a feature more"),
        (_forgets_the_last_row, "whole tiles"),
        (_forgets_the_last_row, "a row and a feature more"),
    ],
)
def test_planted_bugs_at_the_edges_of_tiles_are_caught(bug, name, monkeypatch):
    monkeypatch.setattr(kernels, "_tile", bug)
    with poisoned(monkeypatch), pytest.raises(AssertionError):
        test_values_gradients_and_tangents(SAMPLES[name])


def test_bfloat16_is_read_exactly():
    narrow, wide = Case((9, 300, BF16, 1.0, "dense")), Case((9, 300, F32, 1.0, "dense"))
    wide.inputs[0], wide.grad = narrow.inputs[0].float(), narrow.grad.float()
    for i, (a, b) in enumerate(zip(everything(narrow), everything(wide), strict=True)):
        if i == 2:  # dbias is float32; the interpreter truncates what is stored in bfloat16
            assert equal_but_for_order(a, b)
        else:
            torch.testing.assert_close(a.float(), b, rtol=2**-7, atol=1e-30)


def test_weight_gradients_are_left_out():
    case = Case(SMALL)
    dx, dbias = on_device(ops.bias_gelu_backward, case.grad, *case.inputs, False)
    assert dbias.numel() == 0
    assert equal_but_for_order(dx, everything(case)[1])
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    with input_gradients_only():
        ours(*leaves).backward(case.grad)
    assert leaves[0].grad is not None and leaves[1].grad is None


def test_the_same_bits_every_time():
    assert_same_bits(lambda: everything(Case(SAMPLES["primes"])))


def test_every_result_is_written(monkeypatch):
    case = Case(SAMPLES["a row and a feature more"])
    with poisoned(monkeypatch):
        assert not any(x.isnan().any() for x in everything(case))


def test_autograd():
    case = Case(SMALL)
    _, dx, dbias, tangent = everything(case)
    found = gradients(ours, case.inputs, case.grad)
    assert torch.equal(found[0], dx) and torch.equal(found[1], dbias)
    x, bias = case.inputs
    assert torch.equal(float_tangent(lambda x: ours(x, bias), [x], [case.grad]), tangent)
    with torch.no_grad():
        pushed = torch.func.jvp(lambda x: ours(x, bias), (x,), (case.grad,))[1]
    assert torch.equal(pushed, tangent)


def test_opcheck():
    case = Case(SMALL)
    inputs, grad = here(case.inputs), here(case.grad)
    torch.library.opcheck(ops.bias_gelu_forward.default, tuple(inputs))
    for needed in (True, False):
        torch.library.opcheck(ops.bias_gelu_backward.default, (grad, *inputs, needed))
    torch.library.opcheck(ops.bias_gelu_jvp.default, (grad, *inputs))


def test_compiled_in_one_graph():
    case = Case(SMALL)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    got = gradients(compiled, case.inputs, case.grad)
    for a, b in zip(got, gradients(ours, case.inputs, case.grad), strict=True):
        assert torch.equal(a, b)


def test_a_batch_of_another_size_compiles_nothing():
    def run(num_rows: int):
        x = torch.empty(num_rows, 300, dtype=F16, device="meta")
        bias = torch.empty(300, device="meta")
        kernels.forward(x, bias)
        kernels.backward(x, x, bias, True)
        kernels.backward(x, x, bias, False)
        kernels.jvp(x, x, bias)

    assert_compiles_once(*(lambda n=n: run(n) for n in (1, 17, 32, 5000)))


def test_backend_choice():
    x, bias = here([torch.zeros(3, 8, dtype=F64), torch.zeros(8)])
    with pytest.raises(BackendError, match="x is float64, which runs on the reference"):
        bias_gelu(x, bias, backend="triton")


BAD = [
    ("x", torch.zeros(3, 8).int(), TypeError, "x must have dtype float32, bfloat16 or"),
    ("x", torch.zeros(3), ValueError, "x must have 2 dimensions"),
    ("bias", torch.zeros(7), ValueError, r"bias must be a dense tensor of shape \[8\]"),
    ("bias", torch.zeros(8, device="meta"), ValueError, "bias must be on"),
    ("grad", torch.zeros(3, 7), ValueError, r"(grad|x_tangent) must be a dense tensor of shape"),
    ("grad", torch.zeros(3, 8).bool(), TypeError, "(grad|x_tangent) must have dtype float32"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    good = {"grad": torch.zeros(3, 8), "x": torch.zeros(3, 8), "bias": torch.zeros(8)}
    grad, x, bias = {**good, argument: value}.values()
    with pytest.raises(error, match=f"bias_gelu_backward: {message}"):
        kernels.backward(grad, x, bias, True)
    with pytest.raises(error, match=f"bias_gelu_jvp: {message}"):
        kernels.jvp(grad, x, bias)
    if argument != "grad":
        with pytest.raises(error, match=f"bias_gelu_forward: {message}"):
            kernels.forward(x, bias)
