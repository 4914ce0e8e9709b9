"""symmetric_kl and its Fisher product in Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.errors import BackendError
from sbrrt_fast.kernels import symmetric_kl as kernels
from sbrrt_fast.ops.symmetric_kl import (
    symmetric_kl_delta,
    symmetric_kl_fisher,
    symmetric_kl_reference,
)
from tests.ops.op_checks import (
    BF16,
    F32,
    F64,
    assert_as_good_as_stock,
    float_tangent,
    gradients,
    laid_out,
)
from tests.ops.triton_checks import (
    F16,
    assert_compiles_once,
    assert_same_bits,
    here,
    interpreted,
    on_device,
    poisoned,
)

ops = torch.ops.sbrrt_triton

# examples, classes, layout; a program has 16 examples
SAMPLES = {
    "one example": (1, 2, "dense"),
    "no examples": (0, 5, "dense"),
    "batch of 8": (8, 5, "dense"),
    "whole programs": (32, 4, "dense"),
    "an example more": (33, 3, "dense"),
    "prime sizes": (31, 17, "dense"),
    "many classes": (3, 1009, "dense"),
    "strided rows": (24, 5, "strided"),
    "transposed": (13, 32, "transposed"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
# from far below the resolution of log-softmax to one class taking over from another
SCALES = (1e-8, 1e-5, 1e-2, 0.5, 3.0, 60.0)
# The interpreter warns of rows beyond the last and of branches that are not taken.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(invalid value|divide by zero|overflow):RuntimeWarning"
)


def inputs(sample, scale=1.0, dtypes=(F32, F32)):
    num_examples, num_classes, layout = sample
    w = 2 * torch.randn(num_examples, num_classes)
    d = scale * torch.randn(num_examples, num_classes)
    return [laid_out(x.to(dtype), layout) for x, dtype in zip((w, d), dtypes, strict=True)]


def ours(logits, delta):
    return on_device(symmetric_kl_delta, logits, delta, backend="triton")


def doubled(tensors):
    return [x.detach().double() for x in tensors]


def compare(sample, scale, dtypes=(F32, F32)):
    """Value and both gradients against float64, with stock torch's error beside."""
    primals, grad = inputs(sample, scale, dtypes), torch.randn(sample[0])
    exact = symmetric_kl_reference(*doubled(primals))
    out = on_device(ops.symmetric_kl_forward, *primals)
    assert_as_good_as_stock(out, symmetric_kl_reference(*primals), exact)
    assert ((out.double() - exact).abs() <= 1.2e-7 * exact + torch.finfo(F32).tiny).all()
    found = on_device(ops.symmetric_kl_backward, grad, *primals)
    stock = gradients(symmetric_kl_reference, primals, grad)
    truth = gradients(symmetric_kl_reference, doubled(primals), grad.double())
    for triple in zip(found, stock, truth, strict=True):
        assert_as_good_as_stock(*triple)


@samples
@pytest.mark.parametrize("scale", SCALES)
def test_values_and_gradients(sample, scale):
    compare(sample, scale)


@pytest.mark.parametrize("dtypes", [(F16, F32), (F32, F16), (F16, F16)], ids=str)
def test_values_and_gradients_in_fp16(dtypes):
    for scale in SCALES[1:-1]:
        compare(SAMPLES["prime sizes"], scale, dtypes)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 2.0])
def test_gradients_keep_their_relative_precision(scale):
    """Row by row: the change's gradient is of first order in it, the logits' of second."""
    primals, ones = inputs(SAMPLES["an example more"], scale), torch.ones(33)
    found = on_device(ops.symmetric_kl_backward, ones, *primals)
    truth = gradients(symmetric_kl_reference, doubled(primals), ones.double())
    for got, expected in zip(found, truth, strict=True):
        error = (got.double() - expected).norm(dim=1)
        assert (error <= 2e-7 * expected.norm(dim=1)).all()


@samples
@pytest.mark.parametrize("dtypes", [(F32, F32), (F16, F32), (F16, F16)], ids=str)
def test_fisher_product(sample, dtypes):
    w, t = inputs(sample, 1.0, dtypes)
    found = on_device(symmetric_kl_fisher, w, t, backend="triton")
    exact = symmetric_kl_fisher(w.double(), t.double())
    assert_as_good_as_stock(found, symmetric_kl_fisher(w, t), exact)


def test_bfloat16_is_read_exactly():
    w, d = inputs(SAMPLES["an example more"], 0.3, (BF16, BF16))
    for op in (ops.symmetric_kl_forward, ops.symmetric_kl_fisher):
        assert torch.equal(on_device(op, w, d), on_device(op, w.float(), d.float()))


def test_autograd_and_leading_dimensions():
    primals, grad = inputs((6, 5, "dense"), 0.5), torch.randn(6)
    tangents = [torch.randn_like(x) for x in primals]
    found = gradients(ours, primals, grad)
    expected = on_device(ops.symmetric_kl_backward, grad, *primals)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    truth = float_tangent(symmetric_kl_reference, doubled(primals), doubled(tangents))
    stock = float_tangent(symmetric_kl_reference, primals, tangents)
    assert_as_good_as_stock(float_tangent(ours, primals, tangents), stock, truth)
    deep = [x.view(2, 3, 5) for x in primals]
    assert torch.equal(ours(*deep).flatten(), ours(*primals))
    product = on_device(symmetric_kl_fisher, *deep, backend="triton")
    assert product.shape == (2, 3, 5)


def test_second_derivatives_are_the_reference_s():
    w, d = (x.requires_grad_() for x in inputs(SAMPLES["batch of 8"], 0.5))
    found = []
    for function in (symmetric_kl_reference, ours):
        (first,) = torch.autograd.grad(function(w, d).sum(), d, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), [w, d]))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


def test_one_class_has_nothing_to_diverge():
    primals = inputs((7, 1, "dense"), 0.5)
    for x in (ours(*primals), *gradients(ours, primals, torch.ones(7))):
        assert x.eq(0).all()


def test_masked_classes_and_no_change():
    w, d = inputs(SAMPLES["batch of 8"], 0.5)
    w[:, 2] = -torch.inf
    for x in (ours(w, d), *gradients(ours, [w, d], torch.ones(8))):
        assert torch.isfinite(x).all()
    fewer = [x[:, [0, 1, 3, 4]] for x in (w, d)]
    assert torch.allclose(ours(w, d), ours(*fewer), rtol=1e-6)
    assert ours(w, torch.zeros_like(d)).eq(0).all()


_places = kernels._places


@triton.jit
def _class_too_few(num_rows, num_classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """A planted bug: the last class of each row is masked."""
    o_row, o, m = _places(num_rows, num_classes, ROWS, CLASSES)
    return o_row, o, m & (o % num_classes < num_classes - 1)


@triton.jit
def _row_too_few(num_rows, num_classes, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """A planted bug: the last row is masked."""
    return _places(num_rows - 1, num_classes, ROWS, CLASSES)


@interpreted
@pytest.mark.parametrize("bug", [_class_too_few, _row_too_few])
@pytest.mark.parametrize("name", ["whole programs", "an example more"])
def test_planted_bugs_at_the_edges_are_caught(bug, name, monkeypatch):
    monkeypatch.setattr(kernels, "_places", bug)
    with poisoned(monkeypatch), pytest.raises(AssertionError):
        compare(SAMPLES[name], 0.5)


def test_the_same_bits_every_time():
    w, d = inputs(SAMPLES["an example more"], 0.5)
    grad = torch.randn(33)
    assert_same_bits(
        lambda: [
            on_device(ops.symmetric_kl_forward, w, d),
            *on_device(ops.symmetric_kl_backward, grad, w, d),
            on_device(ops.symmetric_kl_fisher, w, d),
        ]
    )


def test_opcheck():
    w, d = here(inputs(SAMPLES["batch of 8"]))
    torch.library.opcheck(ops.symmetric_kl_forward.default, (w, d))
    torch.library.opcheck(ops.symmetric_kl_backward.default, (here(torch.ones(8)), w, d))
    torch.library.opcheck(ops.symmetric_kl_fisher.default, (w, d))


def test_compiled_in_one_graph():
    primals, grad = inputs(SAMPLES["batch of 8"], 0.5), torch.randn(8)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    got = gradients(compiled, primals, grad)
    for a, b in zip(got, gradients(ours, primals, grad), strict=True):
        assert torch.equal(a, b)


def test_a_batch_of_another_size_compiles_nothing():
    def run(num_rows: int):
        x = torch.empty(num_rows, 5, device="meta")
        kernels.backward(kernels.forward(x, x), x, x)
        kernels.fisher(x, x)

    assert_compiles_once(*(lambda n=n: run(n) for n in (1, 8, 16, 5000)))


def test_backend_choice():
    w, d = here(inputs(SAMPLES["batch of 8"]))
    for bad, reason in (
        ((w.double(), d), "logits is float64, which runs on the reference"),
        ((w[:, :1].expand(8, 5000), w[:, :1].expand(8, 5000)), "5000 classes are above 4096"),
    ):
        with pytest.raises(BackendError, match=reason):
            symmetric_kl_delta(*bad, backend="triton")
    with pytest.raises(BackendError, match="the product's own derivative"):
        symmetric_kl_fisher(w, d.requires_grad_(), backend="triton")


BAD = [
    ("logits", torch.zeros(8, 5, dtype=F64), TypeError, "logits must have dtype float32, bfloat16"),
    ("logits", torch.zeros(8), ValueError, "logits must have 2 dimensions"),
    ("logits", torch.zeros(8, 0), ValueError, "logits must have at least one feature"),
    ("delta", torch.zeros(8, 4), ValueError, r"delta must be .* \[8, 5\]"),
    ("delta", torch.zeros(8, 5).long(), TypeError, "delta must have dtype float32"),
    ("grad", torch.zeros(7), ValueError, r"grad must be .* \[8\]"),
    ("grad", torch.zeros(8, dtype=F64), TypeError, r"grad must have dtype torch\.float32"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    good = {"grad": torch.ones(8), "logits": torch.zeros(8, 5), "delta": torch.zeros(8, 5)}
    grad, logits, delta = {**good, argument: value}.values()
    with pytest.raises(error, match=f"symmetric_kl_backward: {message}"):
        kernels.backward(grad, logits, delta)
    if argument != "grad":
        with pytest.raises(error, match=f"symmetric_kl_forward: {message}"):
            kernels.forward(logits, delta)
        with pytest.raises(error, match="symmetric_kl_fisher: "):
            kernels.fisher(logits, delta)
