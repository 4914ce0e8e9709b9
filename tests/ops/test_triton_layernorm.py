"""dropout_add_layernorm in Triton: values, gradients, tangents, masks, and how it refuses."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.errors import BackendError
from sbrrt_fast.kernels import layernorm as kernels
from sbrrt_fast.kernels import rows
from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.layernorm import dropout_add_layernorm
from tests.ops.op_checks import (
    BF16,
    F32,
    F64,
    RNG,
    SITE,
    assert_as_good_as_stock,
    float_tangent,
    gradients,
)
from tests.ops.test_layernorm import EPS, Case
from tests.ops.triton_checks import (
    F16,
    assert_compiles_once,
    assert_same_bits,
    here,
    interpreted,
    on_device,
    poisoned,
)
from tests.ops.triton_only import NORM, equal_but_for_order

ops = torch.ops.sbrrt_triton

# rows, width, dtype of x, dtype of the residual, p, layout
SAMPLES = {
    "one token": (1, 384, F32, F32, 0.1, "dense"),
    "bert-base": (7, 768, F32, F32, 0.1, "dense"),
    "bert-base in fp16": (5, 768, F16, F32, 0.1, "dense"),
    "minilm in fp16": (13, 384, F16, F32, 0.1, "dense"),
    "two tiles of rows": (32, 32, F32, F32, 0.5, "dense"),
    "a row more": (33, 32, F16, F16, 0.5, "dense"),
    "a row less": (31, 32, F32, F32, 0.5, "dense"),
    "primes": (37, 131, F32, F32, 0.1, "dense"),
    "primes in fp16": (17, 37, F16, F16, 0.1, "dense"),
    "width of a block": (9, 512, F32, F32, 0.1, "dense"),
    "a feature more": (3, 513, F32, F32, 0.1, "dense"),
    "no dropout": (9, 384, F16, F32, 0.0, "dense"),
    "no rows": (0, 64, F32, F32, 0.1, "dense"),
    "gaps between rows": (11, 96, F32, F32, 0.1, "strided"),
    "transposed": (19, 33, F32, F32, 0.1, "transposed"),
    "one feature": (5, 1, F32, F32, 0.1, "dense"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
SMALL = SAMPLES["a row more"]


class TritonCase(Case):
    """A sample that runs where the kernels do."""

    def ours(self, *inputs):
        return on_device(dropout_add_layernorm, *inputs, EPS, *self.dropout, backend="triton")

    def everything(self, need_weight_grads: bool = True):
        """Result, statistics, gradients and tangent of the ops themselves, on the CPU."""
        x, bias, residual, weight, _ = self.inputs
        forward = on_device(ops.dropout_add_layernorm_forward, *self.inputs, EPS, *self.dropout)
        row = (x, bias, residual, weight, *forward[1:], *self.dropout)
        backward = ops.dropout_add_layernorm_backward
        grads = on_device(backward, self.grad, *row, need_weight_grads)
        tangents = [t.to(y.dtype) for t, y in zip(self.tangents, (x, residual), strict=True)]
        return [*forward, *grads, on_device(ops.dropout_add_layernorm_jvp, *tangents, *row)]


@samples
def test_values_gradients_and_tangents(sample):
    case = TritonCase(sample)
    exact = case.exact_inputs()
    out, _, _, dx, dresidual, *weights, tangent = case.everything()
    assert_as_good_as_stock(out, case.stock(*case.inputs), case.stock(*exact), NORM)
    stock_grads = gradients(case.stock, case.inputs, case.grad)
    exact_grads = gradients(case.stock, exact, case.grad.double())
    found = dx, weights[0], dresidual, *weights[1:]
    for triple in zip(found, stock_grads, exact_grads, strict=True):
        assert_as_good_as_stock(*triple, NORM)
    results = []
    for inputs in (case.inputs, exact):
        primals = [inputs[0], inputs[2]]
        tangents = [t.to(x.dtype) for t, x in zip(case.tangents, primals, strict=True)]
        results.append(float_tangent(case.along(case.stock, inputs), primals, tangents))
    assert_as_good_as_stock(tangent, *results, NORM)


@pytest.mark.parametrize("name", ["bert-base", "primes", "no dropout"])
def test_statistics(name):
    case = TritonCase(SAMPLES[name])
    x, bias, residual, *_ = case.exact_inputs()
    s = residual + (x + bias) * case.kept / (1 - case.p)
    _, mean, rstd, *_ = case.everything()
    torch.testing.assert_close(mean.double(), s.mean(1), rtol=1e-6, atol=1e-6)
    exact = (s.var(1, correction=0) + EPS).rsqrt()
    torch.testing.assert_close(rstd.double(), exact, rtol=1e-6, atol=0)


def wrong_elements(sample: tuple, offsets: torch.Tensor | None = None) -> int:
    """Elements that forward, backward or tangent drop where the reference does not, or reverse."""
    num_rows, width, _, _, p, _ = sample
    case = TritonCase((num_rows, width, F32, F32, p, "dense"))
    if offsets is not None:
        case.dropout = (*case.dropout[:3], offsets)
    case.inputs[0] = case.inputs[0].abs() + 1  # nothing that is kept is 0
    case.inputs[1] = torch.zeros(width)
    case.inputs[2] = torch.zeros(num_rows, width)
    case.inputs[3], case.inputs[4] = torch.ones(width), torch.zeros(width)
    expected = dropout_mask(case.dropout[3], width, p, RNG, SITE)
    out, mean, rstd, dx, dresidual, *_ = case.everything()
    kept = out != (0 - mean[:, None]) * rstd[:, None]
    flags = (kept != (expected != 0)) | (dx != dresidual * expected)
    return int(flags.sum())


MASKED = ["bert-base", "two tiles of rows", "a row more", "primes", "width of a block"]


@pytest.mark.parametrize("name", [*MASKED, "a feature more"])
def test_masks_are_those_of_dropout_mask(name):
    assert wrong_elements(SAMPLES[name]) == 0


def test_a_tile_with_one_row_at_an_odd_index():
    """Rows at multiples of four share Philox blocks; one that does not must not be forced to."""
    offsets = torch.arange(33) * 64
    offsets[17] += 3
    assert wrong_elements(SAMPLES["a row more"], offsets) == 0
    assert wrong_elements(SAMPLES["a row more"], torch.arange(33) * 32 + 2**34 - 8) == 0


@triton.jit
def _flip_last_of_tile(
    p_offsets, o_row, num_rows, dropout, BLOCK: tl.constexpr, DROPS: tl.constexpr
):
    """A planted bug: the mask is wrong at the last feature of the last row of each tile."""
    b_factor = rows.row_factors(p_offsets, o_row, num_rows, dropout, BLOCK, DROPS)
    num_in_tile = o_row.shape[0]
    is_last = (o_row % num_in_tile == num_in_tile - 1) & (tl.arange(0, BLOCK) == 31)[None, :]
    return tl.where(is_last, dropout[2] - b_factor, b_factor)


@triton.jit
def _always_aligned(p_offsets, o_row, num_rows, dropout, BLOCK: tl.constexpr, DROPS: tl.constexpr):
    """A planted bug: every row begins a Philox block."""
    i_first = tl.reshape(o_row, (o_row.shape[0],))
    i_first = tl.load(p_offsets + i_first, mask=i_first < num_rows, other=0)
    b_words = rows.row_words(i_first, BLOCK, dropout[0], True)
    return rows.dropout_factors(b_words, dropout[1], dropout[2])


@interpreted
def test_planted_bugs_in_the_masks_are_caught(monkeypatch):
    monkeypatch.setattr(kernels, "row_factors", _flip_last_of_tile)
    assert wrong_elements(SAMPLES["two tiles of rows"]) == 2
    assert wrong_elements(SAMPLES["a row less"]) == 1
    with pytest.raises(AssertionError):
        test_values_gradients_and_tangents(SAMPLES["two tiles of rows"])
    monkeypatch.setattr(kernels, "row_factors", _always_aligned)
    assert wrong_elements(SAMPLES["two tiles of rows"]) == 0
    assert wrong_elements(SAMPLES["primes"]) > 300


def test_bfloat16_is_read_exactly():
    """Stores of bfloat16 are truncated by the interpreter; here what is stored is float32."""
    narrow = TritonCase((9, 384, BF16, F32, 0.1, "dense"))
    wide = TritonCase((9, 384, F32, F32, 0.1, "dense"))
    wide.inputs[0] = narrow.inputs[0].float()
    wide.tangents[0] = narrow.tangents[0].float()
    for i, (a, b) in enumerate(zip(narrow.everything(), wide.everything(), strict=True)):
        if i == 3:  # dx
            torch.testing.assert_close(a.float(), b, rtol=2**-7, atol=1e-30)
        else:
            assert equal_but_for_order(a, b)


def test_weight_gradients_are_left_out():
    case = TritonCase(SMALL)
    whole, bare = case.everything(), case.everything(need_weight_grads=False)
    assert all(x.numel() == 0 for x in bare[5:8])
    for i in (3, 4):
        assert equal_but_for_order(whole[i], bare[i])
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    with input_gradients_only():
        case.ours(*leaves).backward(case.grad)
    assert [x.grad is not None for x in leaves] == [True, False, True, False, False]


def test_the_same_bits_every_time():
    assert_same_bits(TritonCase(SAMPLES["primes"]).everything)


def test_every_result_is_written(monkeypatch):
    for name in ("a row more", "a feature more"):
        case = TritonCase(SAMPLES[name])
        with poisoned(monkeypatch):
            assert not any(x.isnan().any() for x in case.everything())


def test_nan_stays_in_its_row():
    case = TritonCase(SMALL)
    clean = case.ours(*case.inputs)
    case.inputs[0] = case.inputs[0].clone()
    place = 5, int(case.kept[5].nonzero()[0])
    case.inputs[0][place] = float("nan")
    out = case.ours(*case.inputs)
    assert out[5].isnan().all()
    rest = torch.arange(33) != 5
    assert torch.equal(out[rest], clean[rest])


def test_a_large_mean_costs_no_digits():
    case = TritonCase((5, 384, F32, F32, 0.0, "dense"))
    case.inputs[2] = case.inputs[2] + 1000
    exact = case.stock(*case.exact_inputs())
    assert_as_good_as_stock(case.ours(*case.inputs), case.stock(*case.inputs), exact, NORM)


def test_autograd():
    case = TritonCase(SMALL)
    _, _, _, dx, dresidual, dbias, dweight, dshift, tangent = case.everything()
    found = gradients(case.ours, case.inputs, case.grad)
    for got, expected in zip(found, (dx, dbias, dresidual, dweight, dshift), strict=True):
        assert torch.equal(got, expected)
    f, primals = case.along(case.ours, case.inputs), [case.inputs[0], case.inputs[2]]
    assert torch.equal(float_tangent(f, primals, case.tangents), tangent)
    with torch.no_grad():  # else the tangent could be differentiated
        assert torch.equal(torch.func.jvp(f, tuple(primals), tuple(case.tangents))[1], tangent)
        alone = torch.func.jvp(lambda x: f(x, primals[1]), (primals[0],), (case.tangents[0],))[1]
    zero = torch.zeros_like(primals[1])
    assert torch.equal(alone, float_tangent(f, primals, [case.tangents[0], zero]))


def test_opcheck():
    case = TritonCase(SMALL)
    x, bias, residual, weight, _ = case.inputs
    tensors, dropout = here([*case.inputs, EPS]), here(list(case.dropout))
    _, mean, rstd = ops.dropout_add_layernorm_forward(*tensors, *dropout)
    row = (*here([x, bias, residual, weight]), mean, rstd, *dropout)
    grad = here(case.grad)
    torch.library.opcheck(ops.dropout_add_layernorm_forward.default, (*tensors, *dropout))
    for needed in (True, False):
        arguments = (grad, *row, needed)
        torch.library.opcheck(ops.dropout_add_layernorm_backward.default, arguments)
    torch.library.opcheck(ops.dropout_add_layernorm_jvp.default, (row[0], row[2], *row))


def test_compiled_in_one_graph():
    case = TritonCase(SMALL)
    compiled = torch.compile(case.ours, backend="aot_eager", fullgraph=True)
    got = gradients(compiled, case.inputs, case.grad)
    for a, b in zip(got, gradients(case.ours, case.inputs, case.grad), strict=True):
        assert torch.equal(a, b)


def test_a_batch_of_another_size_compiles_nothing():
    def run(num_rows: int):
        case = Case((num_rows, 96, F16, F32, 0.1, "dense"))
        x, bias, residual, weight, _ = inputs = [t.to("meta") for t in case.inputs]
        dropout = [t.to("meta") if isinstance(t, torch.Tensor) else t for t in case.dropout]
        dropout[2] = num_rows  # the site
        _, mean, rstd = kernels.forward(*inputs, EPS, *dropout)
        row = (x, bias, residual, weight, mean, rstd, *dropout)
        kernels.backward(residual, *row, True)
        kernels.backward(residual, *row, False)
        kernels.jvp(x, residual, *row)

    assert_compiles_once(*(lambda n=n: run(n) for n in (1, 17, 32, 5000)))


@pytest.mark.parametrize("width", [1, 15, 16, 131, 384, 512, 513, 768, 1024, 4096, 8192])
def test_tiles_hold_whole_rows_and_programs_enough_of_them(width):
    tile = rows.row_tile("layernorm backward", width)
    assert tile["BLOCK"] >= width > tile["BLOCK"] // 2 or tile["BLOCK"] == 16
    assert tile["num_warps"] in (1, 2, 4, 8, 16)
    assert tile["ROWS"] * tile["BLOCK"] <= 16 * 32 * tile["num_warps"]
    for num_rows in (1, 5, 650, 2048, 2049, 100_000):
        num_tiles = rows.tiles_per_program(num_rows, tile["ROWS"])
        num_programs = triton.cdiv(num_rows, num_tiles * tile["ROWS"])
        assert num_tiles * tile["ROWS"] >= 4
        assert num_programs <= 512


def test_backend_choice():
    case = TritonCase(SMALL)
    inputs = here(case.inputs)
    with pytest.raises(BackendError, match="x is float64, which runs on the reference"):
        dropout_add_layernorm(inputs[0].double(), *inputs[1:], EPS, backend="triton")
    wide = here(torch.zeros(2, 8193))
    arguments = (wide, wide[0], wide, wide[0], wide[0], EPS)
    with pytest.raises(BackendError, match="rows of 8193 features are above 8192"):
        dropout_add_layernorm(*arguments, backend="triton")


NAMES = ["x", "bias", "residual", "weight", "shift", "eps", "p", "rng", "site", "offsets"]
BAD = [
    ("x", torch.zeros(3, 8, dtype=F64), TypeError, "x must have dtype float32, bfloat16 or"),
    ("x", torch.zeros(3), ValueError, "x must have 2 dimensions"),
    ("x", torch.zeros(3, 0), ValueError, "x must have at least one feature"),
    ("bias", torch.zeros(7), ValueError, r"bias must be a dense tensor of shape \[8\]"),
    ("residual", torch.zeros(4, 8), ValueError, r"residual must be .* \[3, 8\]"),
    ("weight", torch.zeros(8).long(), TypeError, "weight must have dtype float32"),
    ("shift", torch.zeros(8, device="meta"), ValueError, "shift must be on"),
    ("eps", -1.0, ValueError, "eps must be finite and not negative, got -1.0"),
    ("p", 1.0, ValueError, r"p must be in \[0, 1\), got 1.0"),
    ("rng", torch.zeros(3).long(), ValueError, r"rng must be a dense tensor of shape \[2\]"),
    ("site", -1, ValueError, r"site must be in \[0, 2\^32\), got -1"),
    ("offsets", torch.zeros(2).long(), ValueError, r"offsets must be .* \[3\]"),
    ("offsets", torch.zeros(3), TypeError, r"offsets must have dtype torch\.int64"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    x, vector = torch.zeros(3, 8), torch.zeros(8)
    good = [x, vector, x, vector, vector, EPS, 0.1, RNG, SITE, torch.arange(3)]
    good[NAMES.index(argument)] = value
    with pytest.raises(error, match=f"dropout_add_layernorm_forward: {message}"):
        kernels.forward(*good)
    if argument not in ("shift", "eps"):
        row = (*good[:4], torch.zeros(3), torch.zeros(3), *good[6:])
        with pytest.raises(error, match=f"dropout_add_layernorm_backward: {message}"):
            kernels.backward(x, *row, True)
        with pytest.raises(error, match=f"dropout_add_layernorm_jvp: {message}"):
            kernels.jvp(x, x, *row)
