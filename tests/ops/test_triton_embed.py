"""embed in Triton: values, gradients of tables, masks, and how it refuses."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.errors import BackendError
from sbrrt_fast.kernels import embed as kernels
from sbrrt_fast.kernels import embed_tables, rows
from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.embed import embed
from tests.ops.op_checks import BF16, F32, F64, RNG, SITE, assert_as_good_as_stock, gradients
from tests.ops.test_embed import EPS, Case
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

# tokens, hidden, rows of the word and the position table, dtype of the tables, p, layout
SAMPLES = {
    "one token": (1, 384, 50, 8, F32, 0.1, "dense"),
    "bert-base": (9, 768, 100, 64, F32, 0.1, "dense"),
    "bert-base in fp16": (5, 768, 100, 64, F16, 0.1, "dense"),
    "every token the same": (65, 64, 1, 1, F32, 0.1, "dense"),
    "primes": (37, 131, 31, 17, F32, 0.5, "dense"),
    "primes in fp16": (37, 37, 31, 17, F16, 0.1, "dense"),
    "no dropout": (9, 384, 40, 20, F32, 0.0, "dense"),
    "no tokens": (0, 64, 5, 5, F32, 0.1, "dense"),
    "gaps between rows": (20, 96, 30, 9, F32, 0.1, "strided"),
    "transposed": (19, 33, 7, 11, F32, 0.1, "transposed"),
    "one feature": (5, 1, 3, 3, F32, 0.1, "dense"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())
SMALL = SAMPLES["primes in fp16"]


class TritonCase(Case):
    """A sample that runs where the kernels do."""

    def ours(self, *inputs):
        dropout = (EPS, *self.dropout)
        return on_device(embed, *self.tokens, *inputs, *dropout, backend="triton")

    def forward(self):
        return on_device(ops.embed_forward, *self.tokens, *self.inputs, EPS, *self.dropout)

    def backward(self, needs=(True,) * 5, order=None):
        *tables, weight, _ = self.inputs
        row = (*self.tokens, *tables, weight, *self.forward()[1:], *self.dropout)
        return on_device(ops.embed_backward, self.grad, *row, list(needs), order)

    def everything(self):
        return [*self.forward(), *self.backward()]


@samples
def test_values_and_gradients(sample):
    case = TritonCase(sample)
    exact = case.exact_inputs()
    out = case.forward()[0]
    assert_as_good_as_stock(out, case.stock(*case.inputs), case.stock(*exact), NORM)
    stock_grads = gradients(case.stock, case.inputs, case.grad)
    exact_grads = gradients(case.stock, exact, case.grad.double())
    for triple in zip(case.backward(), stock_grads, exact_grads, strict=True):
        assert_as_good_as_stock(*triple, NORM)


def wrong_elements(sample: tuple) -> int:
    """Elements that are dropped where the reference keeps them, or the reverse."""
    num_tokens, hidden, *sizes, _, p, _ = sample
    case = TritonCase((num_tokens, hidden, *sizes, F32, p, "dense"))
    case.inputs[3], case.inputs[4] = torch.zeros(hidden), torch.ones(hidden)
    expected = dropout_mask(case.offsets, hidden, p, RNG, SITE)
    return int((case.forward()[0] != expected).sum())


@pytest.mark.parametrize("name", ["bert-base", "primes", "every token the same"])
def test_masks_are_those_of_dropout_mask(name):
    assert wrong_elements(SAMPLES[name]) == 0


@triton.jit
def _flip_last_of_tile(
    p_offsets, o_row, num_rows, dropout, BLOCK: tl.constexpr, DROPS: tl.constexpr
):
    """A planted bug: the mask is wrong at the last feature of the last row of each tile."""
    b_factor = rows.row_factors(p_offsets, o_row, num_rows, dropout, BLOCK, DROPS)
    num_in_tile = o_row.shape[0]
    is_last = (o_row % num_in_tile == num_in_tile - 1) & (tl.arange(0, BLOCK) == 63)[None, :]
    return tl.where(is_last, dropout[2] - b_factor, b_factor)


@interpreted
def test_a_planted_bug_in_the_masks_is_caught(monkeypatch):
    monkeypatch.setattr(kernels, "row_factors", _flip_last_of_tile)
    assert wrong_elements(SAMPLES["every token the same"]) == 8
    with pytest.raises(AssertionError):
        test_values_and_gradients(SAMPLES["every token the same"])


CHUNK = embed_tables.CHUNK
SMALL_CHUNK = 8  # as good for sums of several chunks, and the interpreter is slow
# Runs begin anywhere in a chunk; 32 partial sums are added up at a time.
RUNS = [1, 2, 7, 8, 9, 0, 15, 16, 17, 8 * 40, 3, 31, 33]


def sums_by_row(runs: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """A table's gradient where rows are read so often, and the exact one: ds are whole numbers."""
    torch.manual_seed(0)
    index = torch.repeat_interleave(torch.arange(len(runs)) * 2, torch.tensor(runs))
    index = index[torch.randperm(len(index))]
    ds, table = torch.randint(-99, 100, (len(index), 5)).float(), torch.empty(2 * len(runs), 5)
    got = embed_tables.table_gradient(*here([ds, index, table]), True).cpu()
    return got, torch.zeros(2 * len(runs), 5).index_add(0, index, ds)


@pytest.mark.parametrize("runs", [RUNS, RUNS[::-1], [8] * 5, [1] * 20])
def test_rows_that_are_read_any_number_of_times(runs, monkeypatch):
    monkeypatch.setattr(embed_tables, "CHUNK", SMALL_CHUNK)
    got, expected = sums_by_row(runs)
    assert torch.equal(got, expected)


def test_tiles_of_a_sum_end_with_their_chunk():
    got, expected = sums_by_row([1, 33, CHUNK, 65])
    assert torch.equal(got, expected)


@interpreted
def test_a_sum_that_stops_at_its_chunk_is_caught(monkeypatch):
    """A planted bug: nobody adds up the sums of chunks."""
    monkeypatch.setattr(embed_tables, "CHUNK", SMALL_CHUNK)
    ends = torch.tensor(RUNS).cumsum(0)
    first, last = (ends - torch.tensor(RUNS)) // SMALL_CHUNK, (ends - 1) // SMALL_CHUNK
    monkeypatch.setattr(embed_tables, "_join_kernel", _joins_nothing)
    got, expected = sums_by_row(RUNS)
    wrong = (got != expected).any(dim=1)[::2].tolist()
    assert wrong == [bool(run > 0 and a < b) for run, a, b in zip(RUNS, first, last, strict=True)]


@triton.jit
def _joins_nothing(
    p_partial, p_index, p_order, p_table, num_tokens, num_chunks, num_rows, width,
    CHUNK: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    tl.load(p_partial)


def test_nan_of_one_token_stays_in_its_row():
    index, ds = torch.arange(150) % 2, torch.ones(150, 5)
    ds[12] = float("nan")
    got = embed_tables.table_gradient(*here([ds, index, torch.empty(2, 5)]), True).cpu()
    assert got.isnan().all(dim=1).tolist() == [True, False]
    assert got[1].tolist() == [75.0] * 5


@interpreted
def test_a_wrong_order_touches_no_other_memory():
    index, order = torch.arange(40) % 9, torch.arange(40)
    order[3], order[4] = -1, 10**12
    got = embed_tables.table_gradient(torch.ones(40, 5), index, torch.empty(9, 5), True, order)
    assert got.shape == (9, 5)


def test_an_index_outside_its_table_reads_nan_and_gets_no_gradient():
    case = TritonCase(SAMPLES["primes"])
    clean, expected = case.forward()[0], case.backward()
    bad = {3: -1, 11: case.inputs[0].shape[0], 20: 2**40}
    for token, index in bad.items():
        case.tokens[0][token] = index
    out, found = case.forward()[0], case.backward()
    is_bad = torch.tensor([i in bad for i in range(len(out))])
    assert (out[is_bad].isnan() | (case.kept[is_bad] == 0)).all()
    assert torch.equal(out[~is_bad], clean[~is_bad])
    assert found[0].shape == expected[0].shape
    unread = ~torch.isin(torch.arange(31), case.tokens[0])
    assert found[0][unread].eq(0).all()


@pytest.mark.parametrize("missing", range(5))
def test_gradients_are_left_out_one_by_one(missing):
    case = TritonCase(SMALL)
    whole = case.backward()
    found = case.backward([i != missing for i in range(5)])
    for i, (got, expected) in enumerate(zip(found, whole, strict=True)):
        assert got.numel() == 0 if i == missing else equal_but_for_order(got, expected)


def test_the_order_of_the_tokens_may_be_given():
    case = TritonCase(SAMPLES["primes"])
    order = torch.stack([index.argsort(stable=True) for index in case.tokens])
    for got, expected in zip(case.backward(order=order), case.backward(), strict=True):
        assert torch.equal(got, expected)
    with pytest.raises(ValueError, match=r"embed_backward: order must be .* \[3, 37\]"):
        case.backward(order=order[:, 1:])


def test_weight_gradients_are_left_out():
    case = TritonCase(SMALL)
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    with input_gradients_only():
        out = case.ours(*leaves)
        out.backward(case.grad)
    assert all(x.grad is None for x in leaves)
    leaves[0].requires_grad_(False)
    case.ours(*leaves).backward(case.grad)
    assert [x.grad is not None for x in leaves] == [False, True, True, True, True]


def test_bfloat16_is_read_exactly():
    narrow = TritonCase((9, 64, 20, 9, BF16, 0.1, "dense"))
    wide = TritonCase((9, 64, 20, 9, F32, 0.1, "dense"))
    wide.inputs = [x.float() for x in narrow.inputs]
    wide.grad = narrow.grad.float()
    for a, b in zip(narrow.everything(), wide.everything(), strict=True):
        if a.dtype == F32:
            assert equal_but_for_order(a, b)
        else:  # the interpreter truncates what is stored in bfloat16
            torch.testing.assert_close(a.float(), b, rtol=2**-7, atol=1e-30)


def test_the_same_bits_every_time():
    assert_same_bits(TritonCase(SAMPLES["every token the same"]).everything)


def test_every_result_is_written(monkeypatch):
    case = TritonCase(SAMPLES["primes"])
    with poisoned(monkeypatch):
        assert not any(x.isnan().any() for x in case.everything())


def test_autograd():
    case = TritonCase(SMALL)
    found = gradients(case.ours, case.inputs, case.grad)
    for got, expected in zip(found, case.backward(), strict=True):
        assert torch.equal(got, expected)


def test_opcheck():
    case = TritonCase(SMALL)
    tokens, inputs, dropout = here([case.tokens, case.inputs, list(case.dropout)])
    torch.library.opcheck(ops.embed_forward.default, (*tokens, *inputs, EPS, *dropout))
    _, mean, rstd = ops.embed_forward(*tokens, *inputs, EPS, *dropout)
    row = (here(case.grad), *tokens, *inputs[:4], mean, rstd, *dropout)
    for needs in ([True] * 5, [False, True, False, True, False]):
        torch.library.opcheck(ops.embed_backward.default, (*row, needs))


def test_compiled_in_one_graph():
    case = TritonCase(SMALL)
    compiled = torch.compile(case.ours, backend="aot_eager", fullgraph=True)
    got = gradients(compiled, case.inputs, case.grad)
    for a, b in zip(got, gradients(case.ours, case.inputs, case.grad), strict=True):
        assert torch.equal(a, b)


def test_a_batch_of_another_size_compiles_nothing():
    def run(num_tokens: int):
        case = Case((num_tokens, 96, 50, 20, F32, 0.1, "dense"))
        inputs, tokens = ([t.to("meta") for t in x] for x in (case.inputs, case.tokens))
        dropout = [t.to("meta") if isinstance(t, torch.Tensor) else t for t in case.dropout]
        dropout[2] = num_tokens  # the site
        out, mean, rstd = kernels.forward(*tokens, *inputs, EPS, *dropout)
        row = (out, *tokens, *inputs[:4], mean, rstd, *dropout)
        kernels.backward(*row, [True] * 5)

    for sizes in ((1, 17, 32, CHUNK), (CHUNK + 1, 5000)):  # the second has sums to join
        assert_compiles_once(*(lambda n=n: run(n) for n in sizes))


def test_backend_choice():
    case = TritonCase(SMALL)
    tokens, inputs = here([case.tokens, case.inputs])
    with pytest.raises(BackendError, match="word is float64, which runs on the reference"):
        embed(*tokens, inputs[0].double(), *inputs[1:], EPS, backend="triton")


NAMES = ["ids", "positions", "types", "word", "position", "type", "weight", "shift", "eps"]
BAD = [
    ("ids", torch.zeros(3), TypeError, r"ids must have dtype torch\.int64"),
    ("positions", torch.zeros(2).long(), ValueError, r"positions must be .* \[3\]"),
    ("types", torch.zeros(3, 1).long(), ValueError, r"types must be .* \[3\]"),
    ("word", torch.zeros(5, 8, dtype=F64), TypeError, "word must have dtype float32, bfloat16 or"),
    ("word", torch.zeros(5), ValueError, "word must have 2 dimensions"),
    ("position", torch.zeros(5, 7), ValueError, r"position must be .* \[5, 8\]"),
    ("type", torch.zeros(5, 8).int(), TypeError, "type must have dtype float32"),
    ("weight", torch.zeros(7), ValueError, r"weight must be .* \[8\]"),
    ("shift", torch.zeros(8, device="meta"), ValueError, "shift must be on"),
    ("eps", float("nan"), ValueError, "eps must be finite and not negative, got nan"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    index, table, vector = torch.zeros(3).long(), torch.zeros(5, 8), torch.zeros(8)
    good = [index, index, index, table, table, table, vector, vector, EPS]
    good[NAMES.index(argument)] = value
    dropout = (0.1, RNG, SITE, torch.arange(3))
    with pytest.raises(error, match=f"embed_forward: {message}"):
        kernels.forward(*good, *dropout)
    if argument not in ("shift", "eps"):
        statistics = torch.zeros(3), torch.zeros(3)
        with pytest.raises(error, match=f"embed_backward: {message}"):
            kernels.backward(torch.zeros(3, 8), *good[:7], *statistics, *dropout, [True] * 5)
