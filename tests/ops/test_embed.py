"""embed in C++: values, gradients of tables, masks, and how it refuses."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.autodiff import input_gradients_only
from sbrrt_fast.ops.dropout import dropout_mask
from sbrrt_fast.ops.embed import embed, embed_reference
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

# tokens, hidden, rows of the word and the position table, dtype of the tables, p, layout
SAMPLES = {
    "one token": (1, 384, 50, 8, F32, 0.1, "dense"),
    "512 tokens": (512, 384, 1000, 512, F32, 0.1, "dense"),
    "bert-base": (33, 768, 100, 64, F32, 0.1, "dense"),
    "every token the same": (200, 64, 1, 1, F32, 0.1, "dense"),
    "primes": (67, 131, 31, 17, F32, 0.5, "dense"),
    "primes in bf16": (67, 37, 31, 17, BF16, 0.1, "dense"),
    "no dropout": (31, 384, 40, 20, F32, 0.0, "dense"),
    "no tokens": (0, 64, 5, 5, F32, 0.1, "dense"),
    "gaps between rows": (40, 96, 30, 9, F32, 0.1, "strided"),
    "transposed": (19, 33, 7, 11, F32, 0.1, "transposed"),
    "one feature": (5, 1, 3, 3, F32, 0.1, "dense"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


class Case:
    """Inputs of a sample, and the three ways to compute."""

    def __init__(self, sample: tuple):
        tokens, hidden, num_words, num_positions, dtype, self.p, layout = sample
        generator = torch.Generator().manual_seed(tokens * hidden)

        def draw(*size):
            return torch.randn(*size, generator=generator, dtype=F64)

        sizes = (num_words, num_positions, 2)
        self.tokens = [torch.randint(n, (tokens,), generator=generator) for n in sizes]
        self.inputs = [
            *(laid_out(draw(n, hidden).to(dtype), layout) for n in sizes),
            (draw(hidden) * 0.2 + 1).to(F32),
            draw(hidden).to(F32),
        ]
        self.grad = laid_out(draw(tokens, hidden).to(dtype), layout)
        self.offsets = torch.arange(tokens) * (2 * hidden) + hidden % 4
        self.kept = dropout_mask(self.offsets, hidden, self.p, RNG, SITE) != 0
        self.dropout = (self.p, RNG, SITE, self.offsets)

    def ours(self, *inputs):
        return embed(*self.tokens, *inputs, EPS, *self.dropout, backend="cpu")

    def stock(self, *inputs):
        word = inputs[0]
        factors = self.kept.to(word.dtype) * (1 / (1 - self.p))
        weight, shift = (v.to(torch.promote_types(word.dtype, F32)) for v in inputs[3:])
        return embed_reference(*self.tokens, *inputs[:3], weight, shift, EPS, factors).to(
            word.dtype
        )

    def exact_inputs(self):
        return [x.double() for x in self.inputs]

    def backward_inputs(self):
        *tables, weight, _ = self.inputs
        _, mean, rstd = ops.embed_forward(*self.tokens, *self.inputs, EPS, *self.dropout)
        return [self.grad, *self.tokens, *tables, weight, mean, rstd, *self.dropout]


def assert_values(sample):
    case = Case(sample)
    exact = case.stock(*case.exact_inputs())
    assert_as_good_as_stock(case.ours(*case.inputs), case.stock(*case.inputs), exact)


def assert_gradients(sample):
    case = Case(sample)
    exact = gradients(case.stock, case.exact_inputs(), case.grad.double())
    stock = gradients(case.stock, case.inputs, case.grad)
    for triple in zip(gradients(case.ours, case.inputs, case.grad), stock, exact, strict=True):
        assert_as_good_as_stock(*triple)


@samples
def test_values(sample):
    assert_values(sample)


@samples
def test_gradients(sample):
    assert_gradients(sample)


def check_values():
    for sample in SAMPLES.values():
        assert_values(sample)
        assert_gradients(sample)


@pytest.mark.parametrize(("capability", "name"), [("default", "plain"), ("avx2", "AVX2")])
def test_other_instruction_sets(capability, name):
    assert run_with_capability("tests.ops.test_embed", capability) == name


def test_rows_that_no_token_reads_have_zero_gradient():
    case = Case(SAMPLES["512 tokens"])
    word = gradients(case.ours, case.inputs, case.grad)[0]
    is_read = torch.zeros(len(word), dtype=torch.bool)
    is_read[case.tokens[0]] = True
    assert 0 < int(is_read.sum()) < len(word)
    assert not word[~is_read].any()
    assert word[is_read].any(dim=1).all()


@samples
def test_masks_are_those_of_dropout_mask(sample):
    case = Case(sample)
    mask = dropout_mask(case.offsets, case.grad.shape[1], case.p, RNG, SITE)
    ones, zeros = torch.ones(case.grad.shape[1]), torch.zeros(case.grad.shape[1])
    tables = [torch.zeros_like(t, dtype=F32) for t in case.inputs[:3]]
    assert torch.equal(case.ours(*tables, zeros, ones), mask)  # LayerNorm gives 1 everywhere


@pytest.mark.parametrize("name", ["512 tokens", "primes in bf16", "every token the same"])
def test_same_bits_for_any_number_of_threads(name):
    case, results = Case(SAMPLES[name]), []
    for count in (1, 2, 3, 1):
        with num_threads(count):
            found = ops.embed_backward(*case.backward_inputs(), [True] * 5)
            results.append([case.ours(*case.inputs), *found])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def token_order(case):
    return torch.stack([index.argsort(stable=True) for index in case.tokens])


@pytest.mark.parametrize("name", ["512 tokens", "primes in bf16", "primes", "no tokens"])
def test_the_order_of_the_tokens_may_be_given(name):
    case = Case(SAMPLES[name])
    inputs = [*case.backward_inputs(), [True] * 5]
    for got, expected in zip(
        ops.embed_backward(*inputs, token_order(case)), ops.embed_backward(*inputs), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda order: order[:2], r"order must be a dense tensor of shape \[3, num_tokens\]"),
        (lambda order: order.int(), "order must have dtype Long"),
        (lambda order: order.flip(1), r"order\[0, 1\] = \d+, but order\[0\] must be a stable"),
        (lambda order: order - 1, r"order\[\d, \d+\] = -1, but order"),
        (lambda order: order[[0, 2, 1]], r"order\[\d, \d+\] = \d+, but order\[\d\] must be a"),
        (lambda order: order * 0, r"order\[0, 1\] = 0, but order\[0\] must be a stable argsort"),
    ],
)
def test_a_wrong_order_is_refused(change, message):
    case = Case(SAMPLES["primes"])
    inputs = [*case.backward_inputs(), [True] * 5]
    with pytest.raises((ValueError, TypeError), match=f"sbrrt::embed_backward: {message}"):
        ops.embed_backward(*inputs, change(token_order(case)))


@pytest.mark.parametrize("wanted", [[0], [1, 2], [3], [4], [0, 4]])
def test_only_wanted_gradients_are_computed(wanted):
    case = Case(SAMPLES["primes"])
    whole = gradients(case.ours, case.inputs, case.grad)
    leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(case.inputs)]
    with Calls() as calls:
        case.ours(*leaves).backward(case.grad)
    needs = [args[-1] for name, args in calls.seen if name == "embed_backward"]
    assert needs == [[i in wanted for i in range(5)]]
    for i, leaf in enumerate(leaves):
        assert leaf.grad is None if i not in wanted else torch.equal(leaf.grad, whole[i])


def test_no_gradient_where_only_inputs_are_asked():
    case = Case(SAMPLES["primes"])
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    with Calls() as calls, input_gradients_only():
        case.ours(*leaves).backward(case.grad)
    assert [args[-1] for name, args in calls.seen if name == "embed_backward"] == [[False] * 5]
    assert all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("name", ["primes", "no tokens", "primes in bf16"])
def test_opcheck(name):
    case = Case(SAMPLES[name])
    torch.library.opcheck(
        ops.embed_forward.default, (*case.tokens, *case.inputs, EPS, *case.dropout)
    )
    for needs in ([True] * 5, [True, False, True, False, True]):
        for order in ((), (token_order(case),)):
            arguments = (*case.backward_inputs(), needs, *order)
            torch.library.opcheck(ops.embed_backward.default, arguments)


def test_compiled_in_one_graph():
    case = Case(SAMPLES["primes in bf16"])
    compiled = torch.compile(case.ours, backend="aot_eager", fullgraph=True)
    for a, b in zip(
        gradients(compiled, case.inputs, case.grad),
        gradients(case.ours, case.inputs, case.grad),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_backend_choice():
    case = Case(SAMPLES["primes"])
    exact = case.exact_inputs()
    with pytest.raises(BackendError, match="word is float64, which runs on the reference"):
        case.ours(*exact)
    by_auto = embed(*case.tokens, *exact, EPS, *case.dropout)
    assert (by_auto - case.stock(*exact)).abs().max() < 1e-13

    def of_word(word):
        return case.ours(word, *case.inputs[1:])

    with pytest.raises(BackendError, match="word has a tangent"):
        float_tangent(of_word, [case.inputs[0]], [case.inputs[0]])


NAMES = [
    *("ids", "positions", "types", "word", "position", "type", "weight", "shift"),
    *("eps", "p", "rng", "site", "offsets"),
]
BAD = [
    ("ids", torch.tensor([0, 3]), ValueError, r"ids\[1\] = 3 is not a row of its table"),
    ("ids", torch.tensor([-1, 0]), ValueError, r"ids\[0\] = -1 is not a row of its table"),
    ("ids", torch.tensor([0.0, 1.0]), TypeError, "ids must have dtype Long"),
    ("ids", torch.tensor([[0, 1]]), ValueError, r"ids must be a dense .* \[num_tokens\]"),
    ("positions", torch.tensor([0, 4]), ValueError, r"positions\[1\] = 4 is not a row"),
    ("positions", torch.tensor([0]), ValueError, r"positions must be a dense .* \[2\]"),
    ("types", torch.tensor([2, 0]), ValueError, r"types\[0\] = 2 is not a row"),
    ("word", torch.zeros(3), ValueError, "word must be a dense tensor of shape"),
    ("word", torch.zeros(3, 8, dtype=F64), TypeError, "word must have dtype"),
    ("position", torch.zeros(4, 7), ValueError, r"position must be .* \[4, 8\]"),
    ("type", torch.zeros(8), ValueError, "type must be a dense tensor of shape"),
    ("weight", torch.zeros(7), ValueError, r"weight must be a dense tensor of shape \[8\]"),
    ("shift", torch.zeros(7), ValueError, r"shift must be a dense tensor of shape \[8\]"),
    ("eps", -1.0, ValueError, "eps must be finite and not negative"),
    ("p", 1.0, ValueError, r"p must be in \[0, 1\)"),
    ("rng", torch.tensor([1]), ValueError, r"rng must be .*\(seed, step\)"),
    ("site", 2**32, ValueError, r"site must be in \[0, 2\^32\)"),
    ("offsets", torch.tensor([0, -8]), ValueError, "offsets must not be negative"),
]


def good_forward():
    tokens = [torch.tensor([0, 2]), torch.tensor([3, 1]), torch.tensor([0, 1])]
    tables = [torch.randn(3, 8), torch.randn(4, 8), torch.randn(2, 8)]
    norm = [torch.randn(8), torch.randn(8)]
    return [*tokens, *tables, *norm, EPS, 0.1, RNG, SITE, torch.tensor([0, 8])]


def good_backward():
    *tensors, _, _, p, rng, site, offsets = good_forward()
    statistics = [torch.zeros(2), torch.ones(2)]
    order = torch.tensor([[0, 1], [1, 0], [0, 1]])
    return [torch.randn(2, 8), *tensors, *statistics, p, rng, site, offsets, [True] * 5, order]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    arguments = good_forward()
    arguments[NAMES.index(argument)] = value
    with pytest.raises(error, match=f"sbrrt::embed_forward: {message}"):
        ops.embed_forward(*arguments)


def test_bad_gradient_and_statistics():
    for index, name in ((0, "grad"), (8, "mean"), (9, "rstd")):
        arguments = good_backward()
        arguments[index] = torch.zeros(3)
        with pytest.raises(ValueError, match=f"embed_backward: {name} must be a dense"):
            ops.embed_backward(*arguments)


def test_fuzzed_calls_answer_or_raise():
    assert fuzz(ops.embed_forward, good_forward, 1500) > 300
    assert fuzz(ops.embed_backward, good_backward, 1500) > 300
