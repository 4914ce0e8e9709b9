"""smart_ascend in Triton against the reference in float64."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
import triton
import triton.language as tl

from sbrrt_fast.errors import BackendError
from sbrrt_fast.kernels import smart_ascend as kernels
from sbrrt_fast.ops.smart_ascend import smart_ascend, smart_ascend_reference
from tests.ops.op_checks import BF16, F32, F64, assert_as_good_as_stock, laid_out
from tests.ops.triton_checks import (
    F16,
    assert_compiles_once,
    assert_same_bits,
    here,
    interpreted,
    on_device,
    poisoned,
)

op = torch.ops.sbrrt_triton.smart_ascend

NAMES = ("step_size", "normalize_gradient", "projection", "norm", "level")
OPTIONS = [
    dict(zip(NAMES, values, strict=True))
    for values in itertools.product(
        (1e-3, 0.7, math.inf),
        (True, False),
        ("ball", "normalize"),
        ("inf", "2"),
        ("token", "sequence"),
    )
]
every_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: "-".join(map(str, o.values()))
)
# tokens of each sequence, hidden size, layout of delta and gradient
SAMPLES = {
    "one token": ([1], 384, "dense"),
    "one feature": ([1, 2] * 5, 1, "dense"),
    "prime sizes": ([2, 3, 5, 7], 37, "dense"),
    "an empty sequence": ([3, 0, 2], 16, "dense"),
    "bert-base": ([4, 3], 768, "dense"),
    "strided rows": ([5, 6], 33, "strided"),
    "transposed": ([4, 9], 8, "transposed"),
}
samples = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES.keys())


def tensors(sample, dtype=F32, gradient_dtype=F32, scale=1.0):
    """delta, gradient, mask, sequence and num_sequences; a sixth of the tokens is masked."""
    lengths, width, layout = sample
    num_tokens = sum(lengths)
    delta = laid_out((0.3 * torch.randn(num_tokens, width)).to(dtype), layout)
    gradient = laid_out((scale * torch.randn(num_tokens, width)).to(gradient_dtype), layout)
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    mask = torch.rand(num_tokens) > 1 / 6
    mask[0] = True
    return delta, gradient, mask, sequence, len(lengths)


def ours(*inputs, **options):
    return on_device(smart_ascend, *inputs, backend="triton", **options)


def compare(inputs, options):
    """Triton and the reference in float32 against the reference in float64."""
    delta, gradient, *rest = inputs
    exact = smart_ascend_reference(delta.double(), gradient.double(), *rest, **options)
    got = ours(*inputs, **options)
    stock = smart_ascend_reference(delta.float(), gradient.float(), *rest, **options)
    assert_as_good_as_stock(got, stock.to(delta.dtype), exact)
    assert got[~rest[0]].eq(0).all()


@every_option
def test_every_option_equals_the_reference(options):
    for radius in (1e-5, 0.5, 30.0):
        compare(tensors(([2, 3, 5], 37, "dense")), {**options, "radius": radius})


@samples
@pytest.mark.parametrize("dtypes", [(F32, F32), (F16, F32), (F32, F16), (F16, F16)], ids=str)
def test_every_sample(sample, dtypes):
    for options in OPTIONS[::7]:
        compare(tensors(sample, *dtypes), {**options, "radius": 0.1})


def test_bfloat16_is_read_exactly():
    delta, gradient, *rest = tensors(SAMPLES["prime sizes"], F32, BF16)
    for options in OPTIONS[::9]:
        settings = {**options, "radius": 0.1}
        found = (on_device(op, delta, g, *rest, **settings) for g in (gradient, gradient.float()))
        assert torch.equal(*found)


def test_no_rows():
    nothing = torch.zeros(0, 5), torch.zeros(0, 5), torch.zeros(0, dtype=torch.bool)
    out = ours(*nothing, torch.zeros(0, dtype=torch.int64), 0, radius=1.0, **OPTIONS[1])
    assert out.shape == (0, 5)
    masked, x = torch.zeros(3, dtype=torch.bool), torch.randn(3, 5)
    for options in OPTIONS[-2:]:
        assert ours(x, x, masked, torch.arange(3), 3, radius=1.0, **options).eq(0).all()


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-18, 1e18, 1e37])
def test_gradients_of_any_size_keep_their_direction(scale):
    inputs = tensors(SAMPLES["prime sizes"], scale=scale)
    delta, gradient, *rest = inputs
    for norm, level in itertools.product(("inf", "2"), ("token", "sequence")):
        options = {"normalize_gradient": True, "projection": "normalize", "radius": 0.02}
        options |= {"step_size": math.inf, "norm": norm, "level": level}
        got = ours(*inputs, **options)
        expected = smart_ascend_reference(delta.double(), gradient.double(), *rest, **options)
        tolerance = 1e-6 if scale > 1e-38 else 1e-4  # subnormal gradients have few digits
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=0.02 * tolerance)


def test_a_zero_gradient_projects_the_old_perturbation():
    delta, _, mask, sequence, number = tensors(SAMPLES["an empty sequence"])
    inputs = delta, torch.zeros_like(delta), mask, sequence, number
    for options in OPTIONS:
        compare(inputs, {**options, "radius": 0.05})


def many_tokens(count: int):
    """Norms over one long sequence among others, with sizes that combine over several tiles."""
    delta, gradient, mask, *_ = tensors(([count], 3, "dense"))
    sequence = torch.where(torch.arange(count) % 5 == 0, 7, 2)
    return delta, gradient, mask, sequence, count


COMBINED = {"step_size": 0.7, "normalize_gradient": True, "projection": "normalize"}
COMBINED |= {"radius": 2.0, "level": "sequence"}


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("count", [15, 16, 17, 33])
def test_sizes_combine_over_tiles(norm, count, monkeypatch):
    monkeypatch.setattr(kernels, "TOKENS", 16)
    compare(many_tokens(count), {**COMBINED, "norm": norm})


def test_sequences_in_any_order_and_of_any_number():
    delta, gradient, mask, sequence, number = tensors(SAMPLES["prime sizes"])
    order = torch.randperm(len(mask))
    options = {**OPTIONS[-1], "radius": 0.5}
    expected = ours(delta, gradient, mask, sequence, number, **options)[order]
    shuffled = delta[order], gradient[order], mask[order], sequence[order] + 2**40, number
    torch.testing.assert_close(ours(*shuffled, **options), expected, rtol=1e-6, atol=0)


@triton.jit
def _first_tile_only(
    p_sizes, p_sequence, i_token, num_tokens, IS_SUP: tl.constexpr, TOKENS: tl.constexpr
):
    """A planted bug: sizes behind the first tile do not count."""
    num_seen = tl.minimum(num_tokens, TOKENS)
    return _group_size(p_sizes, p_sequence, i_token, num_seen, IS_SUP, TOKENS)


@triton.jit
def _other_sequences_too(
    p_sizes, p_sequence, i_token, num_tokens, IS_SUP: tl.constexpr, TOKENS: tl.constexpr
):
    """A planted bug: the last token of a tile counts for every sequence."""
    size = _group_size(p_sizes, p_sequence, i_token, num_tokens, IS_SUP, TOKENS)
    stray = tl.load(p_sizes + TOKENS - 1)
    return tl.maximum(size, stray) if IS_SUP else size + stray


_group_size = kernels._group_size


@interpreted
@pytest.mark.parametrize("bug", [_first_tile_only, _other_sequences_too])
def test_planted_bugs_at_the_edges_of_tiles_are_caught(bug, monkeypatch):
    monkeypatch.setattr(kernels, "TOKENS", 16)
    delta, gradient, mask, sequence, count = many_tokens(33)
    gradient[[15, 20, 30]] *= 100
    inputs = delta, gradient, torch.ones_like(mask), sequence, count
    compare(inputs, {**COMBINED, "norm": "2"})
    monkeypatch.setattr(kernels, "_group_size", bug)
    for norm in ("inf", "2"):
        with pytest.raises(AssertionError):
            compare(inputs, {**COMBINED, "norm": norm})


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_nan_stays_in_its_group(level):
    options = {**OPTIONS[2], "radius": 0.5, "level": level}
    inputs = tensors(SAMPLES["prime sizes"])
    clean = ours(*inputs, **options)
    inputs[1][0, 3] = float("nan")
    out = ours(*inputs, **options)
    assert out[0].isnan().any()
    assert torch.equal(out[2:], clean[2:])  # the first sequence has two tokens


def test_the_same_bits_every_time():
    inputs = tensors(SAMPLES["prime sizes"])
    assert_same_bits(lambda: [ours(*inputs, radius=0.1, **o) for o in OPTIONS[::7]])


def test_every_result_is_written(monkeypatch):
    inputs = tensors(SAMPLES["prime sizes"])
    with poisoned(monkeypatch):
        for options in OPTIONS[1::6]:
            assert not ours(*inputs, radius=0.1, **options).isnan().any()


def positional(**changes):
    delta, gradient, mask, sequence, number = tensors(SAMPLES["prime sizes"])
    values = {
        "delta": delta, "gradient": gradient, "mask": mask, "sequence": sequence,
        "num_sequences": number, "step_size": 0.1, "normalize_gradient": True,
        "projection": "ball", "radius": 0.1, "norm": "2", "level": "token",
    }  # fmt: skip
    return list({**values, **changes}.values())


def test_opcheck():
    for level in ("token", "sequence"):
        torch.library.opcheck(op.default, tuple(here(positional(level=level))))


def test_compiled_in_one_graph():
    inputs, options = tensors(SAMPLES["prime sizes"]), {**OPTIONS[3], "radius": 0.1}
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs, **options), ours(*inputs, **options))


def test_a_batch_of_another_size_compiles_nothing():
    def run(num_tokens: int, level: str):
        arguments = positional(level=level)
        arguments[:4] = [
            x[:1].expand(num_tokens, *x.shape[1:]).to("meta", copy=True).contiguous()
            for x in arguments[:4]
        ]
        kernels.smart_ascend(*arguments)

    for level in ("token", "sequence"):
        assert_compiles_once(*(partial(run, n, level) for n in (1, 17, 32, 5000)))


def test_backend_choice():
    delta, *rest = here(list(tensors(SAMPLES["prime sizes"])))
    with pytest.raises(BackendError, match="delta is float64, which runs on the reference"):
        smart_ascend(delta.to(F64), *rest, radius=1.0, backend="triton", **OPTIONS[0])


BAD = [
    ("delta", torch.zeros(17, 37, dtype=F64), TypeError, "delta must have dtype float32, bfloat16"),
    ("delta", torch.zeros(17), ValueError, "delta must have 2 dimensions"),
    ("gradient", torch.zeros(17, 36), ValueError, r"gradient must be .* \[17, 37\]"),
    ("gradient", torch.zeros(17, 37).int(), TypeError, "gradient must have dtype float32"),
    ("mask", torch.zeros(17), TypeError, r"mask must have dtype torch\.bool"),
    ("mask", torch.zeros(16, dtype=torch.bool), ValueError, r"mask must be .* \[17\]"),
    ("sequence", torch.zeros(17), TypeError, r"sequence must have dtype torch\.int64"),
    ("sequence", torch.zeros(18).long(), ValueError, r"sequence must be .* \[17\]"),
    ("step_size", 0.0, ValueError, "step_size must be > 0, got 0"),
    ("step_size", math.nan, ValueError, "step_size must be > 0, got nan"),
    ("projection", "cube", ValueError, "projection must be 'ball' or 'normalize', got 'cube'"),
    ("radius", 0.0, ValueError, "radius must be > 0 and finite, got 0"),
    ("radius", math.inf, ValueError, "radius must be > 0 and finite, got inf"),
    ("norm", "1", ValueError, "norm must be 'inf' or '2', got '1'"),
    ("level", "batch", ValueError, "level must be 'token' or 'sequence', got 'batch'"),
]


@pytest.mark.parametrize(("argument", "value", "error", "message"), BAD)
def test_bad_argument(argument, value, error, message):
    with pytest.raises(error, match=f"smart_ascend: {message}"):
        kernels.smart_ascend(*positional(**{argument: value}))
