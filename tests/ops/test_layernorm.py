"""dropout_add_layernorm in C++: values, gradients, tangents, masks, and how it refuses."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.layernorm import dropout_add_layernorm, dropout_add_layernorm_reference
from tests.ops.op_checks import (
    BF16,
    F32,
    F64,
    RNG,
    SITE,
    Calls,
    assert_as_good_as_stock,
    float_tangent,
    fuzz,
    gradients,
    laid_out,
    num_threads,
    run_with_capability,
)

EPS = 1e-12
ops = torch.ops.sbrrt

# rows, width, dtype of x, dtype of the residual, p, layout
SAMPLES = {
    "one token": (1, 384, F32, F32, 0.1, "dense"),
    "512 tokens": (512, 384, BF16, F32, 0.1, "dense"),
    "bert-base": (33, 768, F32, F32, 0.1, "dense"),
    "batch of 200": (200, 64, F32, F32, 0.5, "dense"),
    "primes": (67, 131, F32, F32, 0.1, "dense"),
    "primes in bf16": (17, 37, BF16, F32, 0.1, "dense"),
    "bf16 residual": (29, 64, BF16, BF16, 0.1, "dense"),
    "no dropout": (31, 384, BF16, F32, 0.0, "dense"),
    "no rows": (0, 64, F32, F32, 0.1, "dense"),
    "gaps between rows": (40, 96, F32, F32, 0.1, "strided"),
    "gaps in bf16": (40, 90, BF16, F32, 0.0, "strided"),
    "transposed": (19, 33, F32, F32, 0.1, "transposed"),
    "one feature": (5, 1, F32, F32, 0.1, "dense"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


class Case:
    """Inputs of a sample, and the three ways to compute."""

    def __init__(self, sample: tuple):
        rows, width, dtype, residual_dtype, self.p, layout = sample
        generator = torch.Generator().manual_seed(rows * width)

        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=F64)

        self.inputs = [
            laid_out(draw(rows, width).to(dtype), layout),
            draw(width).to(F32),
            laid_out((draw(rows, width) * 2 + 0.5).to(residual_dtype), layout),
            (draw(width) * 0.2 + 1).to(F32),
            draw(width).to(F32),
        ]
        self.grad = laid_out(draw(rows, width).to(residual_dtype), layout)
        self.tangents = [draw(rows, width).to(dtype), draw(rows, width).to(residual_dtype)]
        self.offsets = torch.arange(rows) * (3 * width) + width % 4
        self.kept = dropout_mask(self.offsets, width, self.p, RNG, SITE) != 0
        self.dropout = (self.p, RNG, SITE, self.offsets)

    def ours(self, *inputs):
        return dropout_add_layernorm(*inputs, EPS, *self.dropout, backend="cpu")

    def stock(self, *inputs):
        factors = self.kept.to(inputs[0].dtype) * (1 / (1 - self.p))
        return dropout_add_layernorm_reference(*inputs, EPS, factors).to(inputs[2].dtype)

    def exact_inputs(self):
        return [x.double() for x in self.inputs]

    def along(self, f, inputs):
        """f as a function of x and the residual alone."""
        return lambda x, residual: f(x, inputs[1], residual, *inputs[3:])

    def op_inputs(self):
        x, bias, residual, weight, _ = self.inputs
        _, mean, rstd = ops.dropout_add_layernorm_forward(*self.inputs, EPS, *self.dropout)
        return [x, bias, residual, weight, mean, rstd, *self.dropout]


def assert_values(sample):
    case = Case(sample)
    exact = case.stock(*case.exact_inputs())
    assert_as_good_as_stock(case.ours(*case.inputs), case.stock(*case.inputs), exact)


def assert_gradients(sample):
    case = Case(sample)
    exact = gradients(case.stock, case.exact_inputs(), case.grad.double())
    stock = gradients(case.stock, case.inputs, case.grad)
    ours = gradients(case.ours, case.inputs, case.grad)
    for triple in zip(ours, stock, exact, strict=True):
        assert_as_good_as_stock(*triple)


def assert_tangents(sample):
    case, results = Case(sample), []
    for f, inputs in (
        (case.ours, case.inputs),
        (case.stock, case.inputs),
        (case.stock, case.exact_inputs()),
    ):
        primals = [inputs[0], inputs[2]]
        tangents = [t.to(x.dtype) for t, x in zip(case.tangents, primals, strict=True)]
        results.append(float_tangent(case.along(f, inputs), primals, tangents))
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


@pytest.mark.parametrize(("capability", "name"), [("default", "plain"), ("avx2", "AVX2")])
def test_other_instruction_sets(capability, name):
    assert run_with_capability("tests.ops.test_layernorm", capability) == name


@samples
def test_masks_are_those_of_dropout_mask(sample):
    rows, width, _, _, p, layout = sample
    case = Case((rows, width, F32, F32, p, layout))
    dx, _, dresidual, *_ = gradients(case.ours, case.inputs, case.grad)
    assert torch.equal(dx, dresidual * dropout_mask(case.offsets, width, p, RNG, SITE))


def everything(case):
    inputs = case.op_inputs()
    return [
        case.ours(*case.inputs),
        *ops.dropout_add_layernorm_backward(case.grad, *inputs, True),
        ops.dropout_add_layernorm_jvp(*case.tangents, *inputs),
    ]


@pytest.mark.parametrize("name", ["512 tokens", "primes"])
def test_same_bits_for_any_number_of_threads(name):
    case = Case(SAMPLES[name])
    results = []
    for count in (1, 2, 3, 1):
        with num_threads(count):
            results.append(everything(case))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_large_means_keep_their_precision():
    x, residual = torch.zeros(3, 384), torch.randn(3, 384) + 1000
    ones, zeros = torch.ones(384), torch.zeros(384)
    got = dropout_add_layernorm(x, zeros, residual, ones, zeros, EPS)
    exact = torch.nn.functional.layer_norm(residual.double(), (384,))
    assert (got - exact).abs().max() < 2e-4  # inputs' ulp of 6e-5 over a deviation near 1


def test_only_input_gradients_are_computed_where_asked():
    case = Case(SAMPLES["primes"])
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    whole = torch.autograd.grad(case.ours(*leaves), leaves, case.grad)
    with Calls() as calls, input_gradients_only():
        y = case.ours(*leaves)
        part = torch.autograd.grad(y, [leaves[0], leaves[2]], case.grad)
        assert (
            torch.autograd.grad(case.ours(*leaves), leaves, case.grad, allow_unused=True)[1] is None
        )
    wanted = [args[-1] for name, args in calls.seen if name.endswith("backward")]
    assert wanted == [False, False]
    assert torch.equal(part[0], whole[0])
    assert torch.equal(part[1], whole[2])


def test_frozen_weights_get_no_gradient_computed():
    case = Case(SAMPLES["primes"])
    x = case.inputs[0].clone().requires_grad_()
    with Calls() as calls:
        case.ours(x, *case.inputs[1:]).backward(case.grad)
    assert [args[-1] for name, args in calls.seen if name.endswith("backward")] == [False]


@pytest.mark.parametrize("name", ["primes", "no rows", "gaps in bf16"])
def test_opcheck(name):
    case = Case(SAMPLES[name])
    inputs = case.op_inputs()
    checks = [
        ("forward", (*case.inputs, EPS, *case.dropout)),
        ("backward", (case.grad, *inputs, True)),
        ("backward", (case.grad, *inputs, False)),
        ("jvp", (*case.tangents, *inputs)),
    ]
    for part, arguments in checks:
        torch.library.opcheck(getattr(ops, f"dropout_add_layernorm_{part}").default, arguments)


def test_compiled_in_one_graph():
    case = Case(SAMPLES["primes in bf16"])
    compiled = torch.compile(case.ours, backend="aot_eager", fullgraph=True)
    for a, b in zip(
        gradients(compiled, case.inputs, case.grad),
        gradients(case.ours, case.inputs, case.grad),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_function_transforms():
    case = Case(SAMPLES["primes"])
    primals = (case.inputs[0], case.inputs[2])
    f = case.along(case.ours, case.inputs)
    with torch.no_grad():  # else the tangent could be differentiated
        _, tangent = torch.func.jvp(f, primals, tuple(case.tangents))
    assert torch.equal(tangent, float_tangent(f, list(primals), case.tangents))
    _, pull = torch.func.vjp(f, *primals)
    dx, _, dresidual, *_ = gradients(case.ours, case.inputs, case.grad)
    got = pull(case.grad)
    assert torch.equal(got[0], dx)
    assert torch.equal(got[1], dresidual)


def test_autocast_keeps_the_residual_in_float32():
    case = Case(SAMPLES["512 tokens"])
    with torch.autocast("cpu", dtype=BF16):
        product = torch.nn.functional.linear(case.inputs[0], torch.eye(384))
        y = case.ours(product, *case.inputs[1:])
    assert product.dtype == BF16
    assert y.dtype == F32


def test_backend_choice():
    case = Case(SAMPLES["primes"])
    exact = case.exact_inputs()
    with pytest.raises(BackendError, match="x is float64, which runs on the reference"):
        case.ours(*exact)
    by_auto = dropout_add_layernorm(*exact, EPS, *case.dropout)
    assert (by_auto - case.stock(*exact)).abs().max() < 1e-13
    by_reference = dropout_add_layernorm(*case.inputs, EPS, *case.dropout, backend="reference")
    assert (by_reference - case.ours(*case.inputs)).abs().max() < 1e-5

    def of_weight(weight):
        return case.ours(*case.inputs[:3], weight, case.inputs[4])

    with pytest.raises(BackendError, match="weight has a tangent"):
        float_tangent(of_weight, [case.inputs[3]], [case.inputs[3]])


def test_a_differentiated_tangent_is_left_to_the_reference():
    case = Case(SAMPLES["primes"])
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(case.inputs[0], case.tangents[0])
        with pytest.raises(BackendError, match="tangent of x is itself being differentiated"):
            case.ours(x, *case.inputs[1:])


def test_missing_dropout_arguments():
    inputs = Case(SAMPLES["primes"]).inputs
    with pytest.raises(ValueError, match=r"p = 0.1 needs rng \(seed, step\) and offsets"):
        dropout_add_layernorm(*inputs, EPS, 0.1, RNG)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1.0"):
        dropout_add_layernorm(*inputs, EPS, 1.0, RNG)


NAMES = ["x", "bias", "residual", "weight", "shift", "eps", "p", "rng", "site", "offsets"]
BAD = [
    ("x", torch.zeros(2, 8, dtype=F64), TypeError, "x must have dtype float32 or bfloat16"),
    ("x", torch.zeros(8), ValueError, "x must be a dense tensor of shape"),
    ("x", torch.zeros(2, 0), ValueError, "x must be a dense tensor of shape"),
    ("bias", torch.zeros(7), ValueError, r"bias must be a dense tensor of shape \[8\]"),
    ("bias", torch.zeros(1, 8), ValueError, r"bias must be a dense tensor of shape \[8\]"),
    ("residual", torch.zeros(3, 8), ValueError, r"residual must be .* shape \[2, 8\], got"),
    ("residual", torch.zeros(2, 8, dtype=torch.int64), TypeError, "residual must have dtype"),
    ("residual", torch.zeros(2, 8, device="meta"), ValueError, "must be on"),
    ("weight", torch.zeros(8, dtype=torch.float16), TypeError, "weight must have dtype"),
    ("shift", torch.zeros(9), ValueError, r"shift must be a dense tensor of shape \[8\]"),
    ("eps", -1.0, ValueError, "eps must be finite and not negative"),
    ("eps", float("nan"), ValueError, "eps must be finite and not negative"),
    ("p", 1.0, ValueError, r"p must be in \[0, 1\)"),
    ("rng", torch.tensor([1.0, 2.0]), TypeError, "rng must have dtype"),
    ("rng", torch.tensor([1, -2]), ValueError, "step, the second value of rng"),
    ("site", -1, ValueError, r"site must be in \[0, 2\^32\)"),
    ("offsets", torch.tensor([0]), ValueError, r"offsets must be a dense tensor of shape \[2\]"),
    ("offsets", torch.tensor([0, -1]), ValueError, "offsets must not be negative, got -1"),
    ("offsets", torch.tensor([0, 2**63 - 2]), ValueError, r"offsets \+ width must be below"),
]


def good_forward():
    rows = [torch.randn(2, 8), torch.randn(8), torch.randn(2, 8), torch.randn(8), torch.randn(8)]
    return [*rows, EPS, 0.1, RNG, SITE, torch.tensor([0, 8])]


def good_backward():
    x, bias, residual, weight, *_ = good_forward()
    statistics = [torch.zeros(2), torch.ones(2)]
    return [x, x, bias, residual, weight, *statistics, 0.1, RNG, SITE, torch.tensor([0, 8])]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    arguments = good_forward()
    arguments[NAMES.index(argument)] = value
    with pytest.raises(error, match=f"sbrrt::dropout_add_layernorm_forward: .*{message}"):
        ops.dropout_add_layernorm_forward(*arguments)


def test_bad_gradient_and_statistics():
    for index, name in ((0, "grad"), (5, "mean"), (6, "rstd")):
        arguments = [*good_backward(), True]
        arguments[index] = torch.zeros(3)
        with pytest.raises(ValueError, match=f"layernorm_backward: {name} must be a dense"):
            ops.dropout_add_layernorm_backward(*arguments)
    arguments = good_backward()
    for index, name in ((0, "x_tangent"), (1, "residual_tangent")):
        tangents = [torch.zeros(2, 8), torch.zeros(2, 8)]
        tangents[index] = torch.zeros(2, 7)
        with pytest.raises(ValueError, match=f"layernorm_jvp: {name} must be a dense"):
            ops.dropout_add_layernorm_jvp(*tangents, *arguments[1:])


def test_fuzzed_calls_answer_or_raise():
    assert fuzz(ops.dropout_add_layernorm_forward, good_forward, 1500) > 300
    assert fuzz(ops.dropout_add_layernorm_backward, lambda: [*good_backward(), True], 1500) > 300

    def good_jvp():
        return [torch.randn(2, 8), *good_backward()]

    assert fuzz(ops.dropout_add_layernorm_jvp, good_jvp, 1500) > 300
