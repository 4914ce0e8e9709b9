"""symmetric_kl and its Fisher product in C++ against the reference in float64."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.symmetric_kl import (
    symmetric_kl_delta,
    symmetric_kl_fisher,
    symmetric_kl_reference,
)
from tests.ops.op_checks import (
    assert_as_good_as_stock,
    float_tangent,
    fuzz,
    gradients,
    laid_out,
    num_threads,
    run_with_capability,
)

assert extension is not None, extension_error
ops = torch.ops.sbrrt
F32, BF16, F64 = torch.float32, torch.bfloat16, torch.float64

# examples, classes, layout
SAMPLES = {
    "one example": (1, 2, "dense"),
    "no examples": (0, 5, "dense"),
    "batch of 8": (8, 5, "dense"),
    "batch of 200": (200, 3, "dense"),
    "prime sizes": (31, 17, "dense"),
    "many classes": (3, 1009, "dense"),
    "strided rows": (24, 5, "strided"),
    "transposed": (13, 32, "transposed"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
# from far below the resolution of log-softmax to one class taking over from another
scales = pytest.mark.parametrize("scale", [1e-8, 1e-5, 1e-2, 0.5, 3.0, 60.0])


def inputs(sample, scale=1.0, dtypes=(F32, F32)):
    num_examples, num_classes, layout = sample
    w = 2 * torch.randn(num_examples, num_classes)
    d = scale * torch.randn(num_examples, num_classes)
    return [laid_out(x.to(dtype), layout) for x, dtype in zip((w, d), dtypes, strict=True)]


def native(logits, delta):
    return symmetric_kl_delta(logits, delta, backend="cpu")


def doubled(tensors):
    return [x.detach().double() for x in tensors]


def compare(sample, scale, dtypes=(F32, F32)):
    """Value, both gradients and the tangent against float64, with stock torch's error beside."""
    primals = inputs(sample, scale, dtypes)
    exact = symmetric_kl_reference(*doubled(primals))
    assert_as_good_as_stock(native(*primals), symmetric_kl_reference(*primals), exact)
    relative = (native(*primals).double() - exact).abs()
    assert (relative <= 1.2e-7 * exact + torch.finfo(F32).tiny).all()
    grad = torch.randn(sample[0])
    found = gradients(native, primals, grad)
    stock = gradients(symmetric_kl_reference, primals, grad)
    truth = gradients(symmetric_kl_reference, doubled(primals), grad.double())
    for ours, theirs, expected in zip(found, stock, truth, strict=True):
        assert_as_good_as_stock(ours, theirs, expected)
    tangents = [torch.randn_like(x) for x in primals]
    truth = float_tangent(symmetric_kl_reference, doubled(primals), doubled(tangents))
    stock = float_tangent(symmetric_kl_reference, primals, tangents)
    assert_as_good_as_stock(float_tangent(native, primals, tangents), stock, truth)


@samples
@scales
def test_against_float64(sample, scale):
    compare(sample, scale)


@pytest.mark.parametrize("dtypes", [(BF16, F32), (F32, BF16), (BF16, BF16)], ids=str)
def test_bf16_inputs(dtypes):
    for scale in (1e-4, 0.5, 10.0):
        compare(SAMPLES["prime sizes"], scale, dtypes)
    found = gradients(native, inputs(SAMPLES["batch of 8"], 1.0, dtypes), torch.ones(8))
    assert [g.dtype for g in found] == list(dtypes)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 2.0])
def test_gradients_keep_their_relative_precision(scale):
    """Row by row: the change's gradient is of first order in it, the logits' of second."""
    primals = inputs(SAMPLES["batch of 200"], scale)
    found = gradients(native, primals, torch.ones(200))
    truth = gradients(symmetric_kl_reference, doubled(primals), torch.ones(200, dtype=F64))
    for ours, expected in zip(found, truth, strict=True):
        error = (ours.double() - expected).norm(dim=1)
        assert (error <= 2e-7 * expected.norm(dim=1)).all()


@samples
def test_fisher_product(sample):
    for dtypes in ((F32, F32), (BF16, F32), (BF16, BF16)):
        w, t = inputs(sample, 1.0, dtypes)
        exact = symmetric_kl_fisher(w.double(), t.double())
        stock = symmetric_kl_fisher(w, t)
        assert_as_good_as_stock(symmetric_kl_fisher(w, t, backend="cpu"), stock, exact)


def test_leading_dimensions():
    w, d = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    assert native(w, d).shape == (2, 3, 4)
    assert torch.allclose(native(w, d), symmetric_kl_reference(w, d), rtol=1e-5)
    assert symmetric_kl_fisher(w, d, backend="cpu").shape == w.shape


def test_second_derivatives_are_the_reference_s():
    w, d = (x.requires_grad_() for x in inputs(SAMPLES["batch of 8"], 0.5))
    expected = None
    for function in (symmetric_kl_reference, native):
        (first,) = torch.autograd.grad(function(w, d).sum(), d, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), [w, d])
        if expected is not None:
            for ours, theirs in zip(second, expected, strict=True):
                assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
        expected = second


def test_torch_func_forward_mode():
    w, d = inputs(SAMPLES["batch of 8"], 0.5)
    with torch.no_grad():
        value, tangent = torch.func.jvp(native, (w, d), (d, w))
    assert torch.equal(value, native(w, d))
    assert torch.equal(tangent, float_tangent(native, [w, d], [d, w]))


def test_other_torch_func_transforms_run_on_the_reference():
    w, d = inputs(SAMPLES["batch of 8"], 0.5)

    def transforms(backend):
        def function(w, d):
            return symmetric_kl_delta(w, d, backend=backend)

        def loss(w, d):
            return function(w, d).sum()

        with torch.no_grad():
            batched = torch.vmap(lambda w, d: function(w[None], d[None])[0])(w, d)
        pulled_back = torch.func.vjp(function, w, d)[1](torch.ones(8))
        gradient, hessian = torch.func.grad(loss, 1)(w, d), torch.func.hessian(loss, 1)(w, d)
        return batched, *pulled_back, gradient, hessian

    for found, expected in zip(transforms("auto"), transforms("reference"), strict=True):
        assert torch.equal(found, expected)
    with pytest.raises(BackendError, match=r"torch\.func's vmap and gradients"):
        transforms("cpu")


def test_without_a_graph_no_function_is_made(monkeypatch):
    """autograd.Function costs several times the op."""
    w, d = inputs(SAMPLES["batch of 8"], 0.5)
    expected = native(w, d)

    def refuse(*args):
        raise AssertionError("a Function where autograd records nothing")

    monkeypatch.setattr(torch.autograd.Function, "apply", refuse)
    assert torch.equal(native(w, d), expected)
    with torch.no_grad():
        assert torch.equal(native(w.requires_grad_(), d), expected)
    with pytest.raises(AssertionError, match="a Function where"), torch.enable_grad():
        native(w, d)


def test_gradient_of_one_argument_alone():
    w, d = inputs(SAMPLES["batch of 8"], 0.5)
    d.requires_grad_()
    (found,) = torch.autograd.grad(native(w, d).sum(), d)
    both = gradients(native, [w, d], torch.ones(8))
    assert torch.equal(found, both[1])


def test_one_class_has_nothing_to_diverge():
    primals = inputs((7, 1, "dense"), 0.5)
    for x in (native(*primals), *gradients(native, primals, torch.ones(7))):
        assert x.eq(0).all()


def test_masked_classes_and_no_change():
    w, d = inputs(SAMPLES["batch of 8"], 0.5)
    w[:, 2] = -torch.inf
    for x in (native(w, d), *gradients(native, [w, d], torch.ones(8))):
        assert torch.isfinite(x).all()
    fewer = [x[:, [0, 1, 3, 4]] for x in (w, d)]
    assert torch.allclose(native(w, d), native(*fewer), rtol=1e-6)
    assert native(w, torch.zeros_like(d)).eq(0).all()


def test_same_bits_for_any_number_of_threads_and_again():
    w, d = inputs((2000, 5, "dense"), 0.5)
    grad, results = torch.randn(2000), []
    for count in (1, 2, 3, 1):
        with num_threads(count):
            results.append([native(w, d), *gradients(native, [w, d], grad)])
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def check_values():
    """For every instruction set."""
    torch.manual_seed(0)
    for sample in SAMPLES.values():
        compare(sample, 0.1)


def test_without_vector_instructions():
    assert run_with_capability("tests.ops.test_symmetric_kl_cpu", "default") == "plain"


def test_named_backend_gives_its_reason():
    w, d = inputs(SAMPLES["batch of 8"])
    with pytest.raises(BackendError, match="logits is float64, which runs on the reference"):
        native(w.double(), d)
    with pytest.raises(BackendError, match="the product's own derivative"):
        symmetric_kl_fisher(w, d.requires_grad_(), backend="cpu")


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_shapes_that_differ(backend):
    w, d = inputs(SAMPLES["batch of 8"])
    shapes = r"must have one shape, got \(8, 5\) and \(1, 5\)"
    with pytest.raises(ValueError, match=f"symmetric_kl: logits and delta {shapes}"):
        symmetric_kl_delta(w, d[:1], backend=backend)
    with pytest.raises(ValueError, match=f"symmetric_kl_fisher: logits and tangent {shapes}"):
        symmetric_kl_fisher(w, d[:1], backend=backend)


BAD = [
    ("logits", torch.zeros(8, 5).double(), TypeError, "logits must have dtype float32 or"),
    ("logits", torch.zeros(8), ValueError, r"logits must be .* \[num_examples, num_classes"),
    ("logits", torch.zeros(8, 0), ValueError, "logits must be"),
    ("delta", torch.zeros(8, 4), ValueError, "delta must be .* of logits"),
    ("delta", torch.zeros(8, 5).long(), TypeError, "delta must have dtype float32 or"),
    ("grad", torch.zeros(7), ValueError, r"grad must be .* \[num_examples\]"),
    ("grad", torch.zeros(8).double(), TypeError, "grad must have dtype Float"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    w, d = inputs(SAMPLES["batch of 8"])
    arguments = {"grad": torch.ones(8), "logits": w, "delta": d, argument: value}
    with pytest.raises(error, match=f"sbrrt::symmetric_kl_backward: {message}"):
        ops.symmetric_kl_backward(**arguments)
    if argument != "grad":
        with pytest.raises(error, match=f"sbrrt::symmetric_kl_forward: {message}"):
            ops.symmetric_kl_forward(arguments["logits"], arguments["delta"])
        with pytest.raises(error, match="sbrrt::symmetric_kl_fisher: "):
            ops.symmetric_kl_fisher(arguments["logits"], arguments["delta"])


@samples
def test_opcheck(sample):
    w, d = inputs(sample)
    torch.library.opcheck(ops.symmetric_kl_forward.default, (w, d))
    torch.library.opcheck(ops.symmetric_kl_backward.default, (torch.ones(sample[0]), w, d))
    torch.library.opcheck(ops.symmetric_kl_fisher.default, (w, d))


def test_compiled():
    primals, grad = inputs(SAMPLES["batch of 8"], 0.5), torch.randn(8)
    compiled = torch.compile(native, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(
        gradients(compiled, primals, grad), gradients(native, primals, grad), strict=True
    ):
        assert torch.equal(ours, expected)


def test_fuzzed_calls_answer_or_raise():
    def good():
        w, d = inputs(SAMPLES["batch of 8"])
        return [torch.ones(8), w, d]

    assert fuzz(ops.symmetric_kl_backward, good, 2000) > 300
    assert fuzz(ops.symmetric_kl_forward, lambda: good()[1:], 1000) > 150
    assert fuzz(ops.symmetric_kl_fisher, lambda: good()[1:], 1000) > 150
