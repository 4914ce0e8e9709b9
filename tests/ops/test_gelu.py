"""bias_gelu in C++: values, gradients, tangents, extreme arguments, and how it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.ops.gelu import bias_gelu, bias_gelu_reference
from tests.ops.op_checks import (
    BF16,
    F32,
    F64,
    Calls,
    assert_as_good_as_stock,
    float_tangent,
    fuzz,
    gradients,
    laid_out,
    num_threads,
    run_with_capability,
)

ops = torch.ops.sbrrt

# rows, features, dtype, scale of x, layout
SAMPLES = {
    "one token": (1, 1536, F32, 1.0, "dense"),
    "512 tokens": (512, 384, BF16, 1.0, "dense"),
    "bert-base": (33, 3072, F32, 1.0, "dense"),
    "batch of 200": (200, 64, F32, 3.0, "dense"),
    "primes": (67, 131, F32, 1.0, "dense"),
    "primes in bf16": (17, 37, BF16, 1.0, "dense"),
    "small values": (19, 48, F32, 1e-3, "dense"),
    "large values": (19, 53, F32, 50.0, "dense"),
    "no rows": (0, 64, F32, 1.0, "dense"),
    "gaps between rows": (40, 96, F32, 1.0, "strided"),
    "gaps in bf16": (40, 90, BF16, 1.0, "strided"),
    "transposed": (19, 33, F32, 1.0, "transposed"),
    "one feature": (5, 1, F32, 1.0, "dense"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


def ours(x, bias):
    return bias_gelu(x, bias, backend="cpu")


class Case:
    """Inputs of a sample."""

    def __init__(self, sample: tuple):
        rows, features, dtype, scale, layout = sample
        generator = torch.Generator().manual_seed(rows * features)

        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=F64)

        x = laid_out((draw(rows, features) * scale).to(dtype), layout)
        self.inputs = [x, (draw(features) * 0.5 * scale).to(F32)]
        self.grad = laid_out(draw(rows, features).to(dtype), layout)

    def exact_inputs(self):
        return [x.double() for x in self.inputs]


def assert_values(sample):
    case = Case(sample)
    exact = bias_gelu_reference(*case.exact_inputs())
    assert_as_good_as_stock(ours(*case.inputs), bias_gelu_reference(*case.inputs), exact)


def assert_gradients(sample):
    case = Case(sample)
    exact = gradients(bias_gelu_reference, case.exact_inputs(), case.grad.double())
    stock = gradients(bias_gelu_reference, case.inputs, case.grad)
    for triple in zip(gradients(ours, case.inputs, case.grad), stock, exact, strict=True):
        assert_as_good_as_stock(*triple)


def assert_tangents(sample):
    case, results = Case(sample), []
    for f, (x, bias) in (
        (ours, case.inputs),
        (bias_gelu_reference, case.inputs),
        (bias_gelu_reference, case.exact_inputs()),
    ):
        tangent = case.grad.to(x.dtype)
        results.append(float_tangent(lambda x, f=f, bias=bias: f(x, bias), [x], [tangent]))
    assert_as_good_as_stock(*results)


@samples
def test_values(sample):
    assert_values(sample)


@samples
def test_gradients(sample):
    assert_gradients(sample)


@samples
def test_tangents(sample):
    assert_tangents(sample)


def check_values():
    for sample in SAMPLES.values():
        assert_values(sample)
        assert_gradients(sample)
        assert_tangents(sample)
    assert_everywhere_accurate()


@pytest.mark.parametrize(("capability", "name"), [("default", "plain"), ("avx2", "AVX2")])
def test_other_instruction_sets(capability, name):
    assert run_with_capability("tests.ops.test_gelu", capability) == name


def assert_everywhere_accurate():
    """A dense grid against erfc in float64: two ulp of the argument's or the value's size."""
    t = torch.linspace(-14, 14, 200_003)[None]
    zero = torch.zeros(t.shape[1])
    exact = t.double() * torch.special.erfc(-t.double() / math.sqrt(2)) / 2
    bound = 2.4e-7 * t.double().abs().clamp(max=1.0) + 1.2e-7 * exact.abs() + 1e-38
    assert ((ours(t, zero) - exact).abs() <= bound).all()
    slope, _ = ops.bias_gelu_backward(torch.ones_like(t), t, zero, False)
    density = torch.exp(-t.double().square() / 2) / math.sqrt(2 * math.pi)
    exact = torch.special.erfc(-t.double() / math.sqrt(2)) / 2 + t.double() * density
    assert (slope - exact).abs().max() < 4.8e-7


def test_accurate_everywhere():
    assert_everywhere_accurate()


def test_extreme_arguments():
    x = torch.tensor([[math.inf, 3e38, 88.0, -88.0, -3e38, 0.0, -0.0, 1e-40, math.nan]])
    got = ours(x, torch.zeros(9))[0]
    assert got[:7].tolist() == [math.inf, *x[0, 1:3].tolist(), 0.0, 0.0, 0.0, 0.0]
    assert 0 <= got[7] <= 1e-40
    assert got[8].isnan()
    slope, _ = ops.bias_gelu_backward(torch.ones(1, 9), x, torch.zeros(9), False)
    assert slope[0, 1:7].tolist() == [1.0, 1.0, 0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("name", ["512 tokens", "primes"])
def test_same_bits_for_any_number_of_threads(name):
    case, results = Case(SAMPLES[name]), []
    for count in (1, 2, 3, 1):
        with num_threads(count):
            dx, dbias = ops.bias_gelu_backward(case.grad, *case.inputs, True)
            tangent = ops.bias_gelu_jvp(case.grad, *case.inputs)
            results.append([ours(*case.inputs), dx, dbias, tangent])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_only_input_gradients_are_computed_where_asked():
    case = Case(SAMPLES["primes"])
    x, bias = (t.clone().requires_grad_() for t in case.inputs)
    whole = torch.autograd.grad(ours(x, bias), [x, bias], case.grad)
    with Calls() as calls, input_gradients_only():
        (part,) = torch.autograd.grad(ours(x, bias), x, case.grad)
    ours(x, bias.detach()).backward(case.grad)
    wanted = [args[-1] for name, args in calls.seen if name.endswith("backward")]
    assert wanted == [False]
    assert torch.equal(part, whole[0])
    assert torch.equal(x.grad, whole[0])


@pytest.mark.parametrize("name", ["primes", "no rows", "gaps in bf16"])
def test_opcheck(name):
    case = Case(SAMPLES[name])
    torch.library.opcheck(ops.bias_gelu_forward.default, tuple(case.inputs))
    torch.library.opcheck(ops.bias_gelu_jvp.default, (case.grad, *case.inputs))
    for needed in (True, False):
        torch.library.opcheck(ops.bias_gelu_backward.default, (case.grad, *case.inputs, needed))


def test_compiled_in_one_graph():
    case = Case(SAMPLES["primes in bf16"])
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for a, b in zip(
        gradients(compiled, case.inputs, case.grad),
        gradients(ours, case.inputs, case.grad),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_backend_choice():
    case = Case(SAMPLES["primes"])
    with pytest.raises(BackendError, match="x is float64, which runs on the reference"):
        ours(*case.exact_inputs())
    exact = bias_gelu_reference(*case.exact_inputs())
    assert torch.equal(bias_gelu(*case.exact_inputs()), exact)
    with pytest.raises(BackendError, match="bias has a tangent"):
        float_tangent(lambda bias: ours(case.inputs[0], bias), [case.inputs[1]], [case.inputs[1]])


BAD = [
    ("x", torch.zeros(2, 8, dtype=F64), TypeError, "x must have dtype float32 or bfloat16"),
    ("x", torch.zeros(8), ValueError, "x must be a dense tensor of shape"),
    ("x", torch.zeros(2, 0), ValueError, "x must be a dense tensor of shape"),
    ("bias", torch.zeros(7), ValueError, r"bias must be a dense tensor of shape \[8\]"),
    ("bias", torch.zeros(8, dtype=torch.int32), TypeError, "bias must have dtype"),
    ("bias", torch.zeros(8, device="meta"), ValueError, "must be on meta"),
    ("grad", torch.zeros(3, 8), ValueError, r"must be a dense tensor of shape \[2, 8\]"),
    ("grad", torch.zeros(2, 8, dtype=torch.float16), TypeError, "must have dtype"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    good = {"grad": torch.zeros(2, 8), "x": torch.zeros(2, 8), "bias": torch.zeros(8)}
    grad, x, bias = {**good, argument: value}.values()
    if argument != "grad":
        with pytest.raises(error, match=f"sbrrt::bias_gelu_forward: .*{message}"):
            ops.bias_gelu_forward(x, bias)
    with pytest.raises(error, match=f"sbrrt::bias_gelu_backward: .*{message}"):
        ops.bias_gelu_backward(grad, x, bias, True)
    with pytest.raises(error, match=f"sbrrt::bias_gelu_jvp: .*{message}"):
        ops.bias_gelu_jvp(grad, x, bias)


def test_fuzzed_calls_answer_or_raise():
    def good():
        return [torch.randn(5, 16), torch.randn(5, 16), torch.randn(16), True]

    assert fuzz(ops.bias_gelu_backward, good, 1500) > 300
    assert fuzz(ops.bias_gelu_forward, lambda: good()[1:3], 1000) > 200
    assert fuzz(ops.bias_gelu_jvp, lambda: good()[:3], 1000) > 200
