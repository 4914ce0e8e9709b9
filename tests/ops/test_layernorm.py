"""dropout_add_layernorm's own: masks, statistics, large means, NaN, autocast."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.ops.layernorm import dropout_add_layernorm
from tests.ops.backends import backends_of, run
from tests.ops.cases import OPS
from tests.ops.cases.layernorm import EPS, LayerNormCase
from tests.ops.op_checks import (
    BF16,
    F32,
    RNG,
    SITE,
    Calls,
    assert_as_good_as_stock,
    num_threads,
)
from tests.ops.op_references import layernorm_backward
from tests.ops.triton_only import DEVICE, NORM, equal_but_for_order

OP = OPS["dropout_add_layernorm"]
every_backend = backends_of("dropout_add_layernorm", "cuda_on_cpu")


def wrong_elements(backend, sample, offsets=None) -> int:
    """Elements that forward or backward drop where the reference does not, or reverse."""
    rows, width, _, _, p, layout = sample
    case = LayerNormCase((rows, width, F32, F32, p, layout))
    if offsets is not None:
        case.offsets = offsets
    x, ones, zeros = case.inputs[0].abs() + 1, torch.ones(width), torch.zeros(width)
    case.inputs = [x, zeros, torch.zeros(rows, width), ones, zeros]  # nothing that is kept is 0
    expected, found = case.factors(), run(OP, backend, case)
    out, (dx, _, dresidual, *_) = found.value[0].cpu(), (g.cpu() for g in found.gradients)
    is_wrong = dx != dresidual * expected
    is_dropped = out == out.amin(1, keepdim=True)  # where one is, for it is the smallest
    is_told = (expected == 0).any(1, keepdim=True) & (width > 1)
    is_wrong |= is_told & (is_dropped != (expected == 0))
    return int(is_wrong.sum())


MASKED = ["primes", "primes in a half", "no dropout", "gaps between rows", "transposed"]
MASKED += ["one token", "one feature"]


@every_backend
@pytest.mark.parametrize("name", MASKED)
def test_masks_are_those_of_dropout_mask(name, backend):
    assert wrong_elements(backend, OP.samples[name]) == 0


@every_backend
@pytest.mark.parametrize("name", ["two tiles of rows", "a row more", "width of a block",
                                  "a feature more", "bert-base"])  # fmt: skip
def test_masks_at_the_edges_of_tiles(name, backend):
    assert wrong_elements(backend, OP.triton[name]) == 0


@every_backend
def test_one_row_at_an_odd_index(backend):
    """Rows at multiples of four share Philox blocks; one that does not must not be forced to."""
    offsets = torch.arange(33) * 64
    offsets[17] += 3
    assert wrong_elements(backend, OP.triton["a row more"], offsets) == 0
    assert wrong_elements(backend, OP.triton["a row more"], torch.arange(33) * 32 + 2**34 - 8) == 0


@every_backend
@pytest.mark.parametrize("name", ["one token", "primes", "no dropout"])
def test_statistics(name, backend):
    """What the forward op writes besides its result."""
    case = LayerNormCase(OP.samples[name].__class__(
        BF16 if x is BF16 and backend != "triton" else F32 if x is BF16 else x
        for x in OP.samples[name]
    ))  # fmt: skip
    found = run(OP, backend, case)
    if backend == "cuda_on_cpu":
        mean, rstd = found.statistics
    else:
        with Calls() as calls:
            assert found.value
        mean, rstd = calls.argument("mean"), calls.argument("rstd")
    x, bias, residual, *_ = case.exact_inputs()
    s = residual + (x + bias) * case.factors(torch.float64)
    torch.testing.assert_close(mean.cpu().double(), s.mean(1), rtol=1e-6, atol=1e-6)
    exact = (s.var(1, correction=0) + EPS).rsqrt()
    torch.testing.assert_close(rstd.cpu().double(), exact, rtol=1e-6, atol=0)


@every_backend
def test_a_large_mean_costs_no_digits(backend):
    case = LayerNormCase((5, 384, F32, F32, 0.0, "dense"))
    case.inputs[2] = case.inputs[2] + 1000
    exact = case.stock(*case.exact_inputs())
    found = run(OP, backend, case).value[0].cpu()
    slack = NORM if backend == "triton" else 0.0
    assert_as_good_as_stock(found, case.stock(*case.inputs), exact, slack)
    assert (found - exact).abs().max() < 2e-4


@every_backend
def test_nan_stays_in_its_row(backend):
    case = LayerNormCase(OP.samples["primes"])
    (clean,) = run(OP, backend, case).value
    case.inputs[0] = case.inputs[0].clone()
    case.inputs[0][5, int(case.factors()[5].nonzero()[0])] = float("nan")
    (out,) = run(OP, backend, case).value
    assert out[5].isnan().all()
    rest = torch.arange(len(out)) != 5
    assert torch.equal(out[rest], clean[rest])


BOUNDS = torch.tensor([0, 0, 1, 34, 34, 98, 131, 131], dtype=torch.int32)


def backward_arguments(width: int, bounds: torch.Tensor) -> list[torch.Tensor]:
    """Of dropout_add_layernorm_backward_into: as many rows as the bounds have, none written."""
    rows = int(bounds[-1])
    case = LayerNormCase((rows, width, F32, F32, 0.1, "dense"))
    statistics = torch.randn(rows), torch.rand(rows)
    read = case.grad, torch.randn(rows, width), *case.inputs[:4], *statistics
    dropout = 0.1, RNG, SITE, case.offsets
    dx, dresidual = torch.empty(rows, width), torch.empty(rows, width)
    sums = torch.full((3, len(bounds) - 1, 3 * width), float("nan"))
    return [*read, *dropout, dx, dresidual, bounds, sums[1].unflatten(1, (3, width))]


@pytest.mark.parametrize("width", [33, 384])
@pytest.mark.parametrize("library", ["sbrrt", "sbrrt_triton"])
def test_sums_of_segments(width, library):
    """Empty, of one row, of more rows than are added at once; in the middle of a buffer."""
    arguments = backward_arguments(width, BOUNDS)
    moved = [x.to(DEVICE) if library != "sbrrt" and torch.is_tensor(x) else x for x in arguments]
    getattr(torch.ops, library).dropout_add_layernorm_backward_into(*moved)
    *_, exact = layernorm_backward(*arguments[:12], BOUNDS)
    torch.testing.assert_close(moved[-1].cpu().double(), exact, rtol=1e-5, atol=1e-4)
    assert not moved[-1][BOUNDS.diff() == 0].any()


def test_sums_of_segments_do_not_depend_on_threads_or_neighbours():
    """A segment's sums are those of a call for its rows alone."""
    arguments, found = backward_arguments(384, BOUNDS), []
    for count in (1, 2, 3):
        with num_threads(count):
            arguments[-1] = torch.full((len(BOUNDS) - 1, 3, 384), float("nan"))
            torch.ops.sbrrt.dropout_add_layernorm_backward_into(*arguments)
            found.append(arguments[-1])
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    grad, product, x, bias, residual, weight, mean, rstd, *dropout, dx, dresidual, _, _ = arguments
    rows, alone = slice(34, 98), torch.empty(1, 3, 384)
    torch.ops.sbrrt.dropout_add_layernorm_backward_into(
        grad[rows], product[rows], x[rows], bias, residual[rows], weight, mean[rows], rstd[rows],
        *dropout[:3], dropout[3][rows], dx[rows], dresidual[rows],
        torch.tensor([0, 64], dtype=torch.int32), alone,
    )  # fmt: skip
    assert torch.equal(alone[0], found[0][4])


# library, dtype, rows, width; the interpreter has no bfloat16 and is slow
CALLS = [("sbrrt", dtype, 67, width) for dtype in (F32, BF16) for width in (33, 384, 776)]
CALLS += [("sbrrt_triton", dtype, 7, 33) for dtype in (F32, torch.float16)]


def written_by(library: str, op: str, read: list, written: list) -> list[torch.Tensor]:
    """Results like these, by one op of a library on its device; where it is None there is none."""
    device = "cpu" if library == "sbrrt" else DEVICE
    read = [x.to(device) if torch.is_tensor(x) else x for x in read]
    results = [x if x is None else torch.full_like(x, float("nan"), device=device) for x in written]
    getattr(getattr(torch.ops, library), f"dropout_add_layernorm_{op}_into")(*read, *results)
    return [x if x is None else x.cpu() for x in results]


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("first", [0, 3, 41, 66, 67])
@pytest.mark.parametrize(("library", "dtype", "num_rows", "width"), CALLS)
def test_forward_and_tangent_at_once(library, dtype, num_rows, width, first, p):
    """The bits of the two ops, from any row on and with dropout's offsets not multiples of 4."""
    case = LayerNormCase((num_rows, width, dtype, F32, p, "dense"))
    rows, residual = slice(first, None), case.inputs[2]
    dropout, low = (p, RNG, SITE, case.offsets), residual.to(dtype)
    wanted_low = None if dtype is F32 else low
    read = [*case.inputs, EPS, *dropout]
    results = [residual, wanted_low, residual[:, 0].contiguous(), residual[:, 0].contiguous()]
    forward = written_by(library, "forward", read, results)
    tangents = [t[rows] for t in case.tangents.values()]
    last = [*(x if x.dim() == 1 else x[rows] for x in case.inputs[:4])]
    saved = *(x[rows] for x in forward[2:]), *dropout[:3], case.offsets[rows]
    like = [residual[rows], None if wanted_low is None else low[rows]]
    expected = [*forward, *written_by(library, "jvp", [*tangents, *last, *saved], like)]
    found = at_once(library, read, results, tangents, like)
    for mine, other in zip(found, expected, strict=True):
        assert mine is other is None or equal_but_for_order(mine, other)


def at_once(library: str, read: list, results: list, tangents: list, like: list) -> list:
    """What one forward op writes with tangents."""
    device = "cpu" if library == "sbrrt" else DEVICE
    moved = [x.to(device) if torch.is_tensor(x) else x for x in [*read, *tangents]]
    memory = [
        x if x is None else torch.full_like(x, float("nan"), device=device)
        for x in [*results, *like]
    ]
    op = getattr(torch.ops, library).dropout_add_layernorm_forward_into
    op(*moved[: len(read)], *memory[:4], *moved[len(read) :], *memory[4:])
    return [x if x is None else x.cpu() for x in memory]


def test_tangents_do_not_depend_on_threads():
    case, found = LayerNormCase((131, 384, BF16, F32, 0.1, "dense")), []
    tangents = [t[60:] for t in case.tangents.values()]
    for count in (1, 2, 3):
        memory = [torch.full((131, 384), float("nan")), torch.empty(131), torch.empty(131)]
        out_tangent = torch.full((71, 384), float("nan"))
        with num_threads(count):
            torch.ops.sbrrt.dropout_add_layernorm_forward_into(
                *case.inputs, EPS, 0.1, RNG, SITE, case.offsets, memory[0], None, *memory[1:],
                *tangents, out_tangent,
            )  # fmt: skip
        found.append([*memory, out_tangent])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_opcheck_of_a_forward_with_tangents():
    case = LayerNormCase((5, 33, BF16, F32, 0.1, "dense"))
    out, low = torch.empty(5, 33), torch.empty(5, 33, dtype=BF16)
    read = *case.inputs, EPS, 0.1, RNG, SITE, case.offsets
    written = out, low, torch.empty(5), torch.empty(5)
    tangents = [t[2:] for t in case.tangents.values()]
    arguments = *read, *written, *tangents, torch.empty(3, 33), torch.empty(3, 33, dtype=BF16)
    torch.library.opcheck(torch.ops.sbrrt.dropout_add_layernorm_forward_into.default, arguments)


def test_autocast_keeps_the_residual_in_float32():
    case = LayerNormCase(OP.native["512 tokens"])
    with torch.autocast("cpu", dtype=BF16):
        product = torch.nn.functional.linear(case.inputs[0], torch.eye(384))
        y = case.call(product, *case.inputs[1:], backend="cpu")
    assert product.dtype == BF16
    assert y.dtype == F32


def test_auto_leaves_float64_to_the_reference():
    case = LayerNormCase(OP.samples["primes"])
    exact = case.exact_inputs()
    by_auto = case.call(*exact, backend="auto")
    assert torch.equal(by_auto, case.call(*exact, backend="reference"))
    assert (case.call(*case.inputs, backend="auto") - by_auto).abs().max() < 1e-5


def test_missing_dropout_arguments():
    inputs = LayerNormCase(OP.samples["primes"]).inputs
    with pytest.raises(ValueError, match=r"p = 0.1 needs rng \(seed, step\) and offsets"):
        dropout_add_layernorm(*inputs, EPS, 0.1, RNG)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1.0"):
        dropout_add_layernorm(*inputs, EPS, 1.0, RNG)
