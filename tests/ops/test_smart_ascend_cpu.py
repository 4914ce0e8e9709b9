"""smart_ascend in C++ against the reference in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.errors import BackendError
from sbrrt_fast.ops.smart_ascend import smart_ascend, smart_ascend_reference
from tests.ops.op_checks import (
    assert_as_good_as_stock,
    fuzz,
    laid_out,
    num_threads,
    run_with_capability,
)

assert extension is not None, extension_error
F32, BF16 = torch.float32, torch.bfloat16

OPTIONS = [
    dict(
        zip(("step_size", "normalize_gradient", "projection", "norm", "level"), values, strict=True)
    )
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
    "one feature": ([1, 2] * 51, 1, "dense"),
    "prime sizes": ([2, 3, 5, 7, 11], 37, "dense"),
    "an empty sequence": ([3, 0, 2], 16, "dense"),
    "512 tokens": ([512], 32, "dense"),
    "200 sequences": ([3, 1] * 100, 17, "dense"),
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


def compare(inputs, options):
    """C++ and the reference in float32 against the reference in float64."""
    delta, gradient, *rest = inputs
    exact = smart_ascend_reference(delta.double(), gradient.double(), *rest, **options)
    ours = smart_ascend(*inputs, backend="cpu", **options)
    stock = smart_ascend_reference(delta.float(), gradient.float(), *rest, **options)
    assert ours.is_contiguous()
    assert_as_good_as_stock(ours, stock.to(delta.dtype), exact)
    assert ours[~rest[0]].eq(0).all()


@every_option
def test_every_option_equals_the_reference(options):
    for radius in (1e-5, 0.5, 30.0):
        compare(tensors(SAMPLES["prime sizes"]), {**options, "radius": radius})


@samples
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, F32), (F32, BF16), (BF16, BF16)], ids=str)
def test_every_sample(sample, dtypes):
    for options in OPTIONS[::5]:
        compare(tensors(sample, *dtypes), {**options, "radius": 0.1})


def test_no_rows():
    nothing = torch.zeros(0, 5), torch.zeros(0, 5), torch.zeros(0, dtype=torch.bool)
    out = smart_ascend(
        *nothing, torch.zeros(0, dtype=torch.int64), 0, radius=1.0, backend="cpu", **OPTIONS[0]
    )
    assert out.shape == (0, 5)
    masked = torch.zeros(3, dtype=torch.bool)
    x = torch.randn(3, 5)
    out = smart_ascend(x, x, masked, torch.arange(3), 3, radius=1.0, **OPTIONS[0])
    assert out.eq(0).all()


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-18, 1e18, 1e30, 1e37])
def test_gradients_of_any_size_keep_their_direction(scale):
    inputs = tensors(SAMPLES["prime sizes"], scale=scale)
    for norm, level in itertools.product(("inf", "2"), ("token", "sequence")):
        options = {"normalize_gradient": True, "projection": "normalize", "radius": 0.02}
        got = smart_ascend(*inputs, step_size=math.inf, norm=norm, level=level, **options)
        delta, gradient, *rest = inputs
        expected = smart_ascend_reference(
            delta.double(), gradient.double(), *rest, step_size=math.inf, norm=norm, level=level,
            **options,
        )  # fmt: skip
        tolerance = 1e-6 if scale > 1e-38 else 1e-4  # subnormal gradients have few digits
        assert torch.allclose(got.double(), expected, rtol=1e-6, atol=0.02 * tolerance)


def test_a_zero_gradient_projects_the_old_perturbation():
    delta, _, mask, sequence, number = tensors(SAMPLES["prime sizes"])
    for options in OPTIONS:
        inputs = delta, torch.zeros_like(delta), mask, sequence, number
        compare(inputs, {**options, "radius": 0.05})


def test_sequences_in_any_order():
    delta, gradient, mask, sequence, number = tensors(SAMPLES["prime sizes"])
    order = torch.randperm(len(mask))
    options = {**OPTIONS[-1], "radius": 0.5}
    expected = smart_ascend(delta, gradient, mask, sequence, number, **options)[order]
    shuffled = delta[order], gradient[order], mask[order], sequence[order], number
    got = smart_ascend(*shuffled, backend="cpu", **options)
    assert torch.allclose(got, expected, rtol=1e-6, atol=0)


def test_same_bits_for_any_number_of_threads_and_again():
    inputs = tensors(([50, 3, 80] * 10, 384, "dense"))
    for options in OPTIONS[::7]:
        results = []
        for count in (1, 2, 3, 1):
            with num_threads(count):
                results.append(smart_ascend(*inputs, radius=0.1, backend="cpu", **options))
        assert all(torch.equal(results[0], result) for result in results)


def check_values():
    """For every instruction set."""
    torch.manual_seed(3)
    for sample, options in itertools.product(list(SAMPLES.values())[:3], OPTIONS[::3]):
        compare(tensors(sample), {**options, "radius": 0.3})


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set(capability):
    name = run_with_capability("tests.ops.test_smart_ascend_cpu", capability)
    assert name.lower().replace("plain", "default") == capability


def positional(**changes):
    delta, gradient, mask, sequence, number = tensors(SAMPLES["prime sizes"])
    values = {
        "delta": delta, "gradient": gradient, "mask": mask, "sequence": sequence,
        "num_sequences": number, "step_size": 0.1, "normalize_gradient": True,
        "projection": "ball", "radius": 0.1, "norm": "2", "level": "token",
    }  # fmt: skip
    return list({**values, **changes}.values())


BAD = [
    ("delta", torch.zeros(28, 37).double(), TypeError, "delta must have dtype float32 or"),
    ("delta", torch.zeros(28), ValueError, r"delta must be .* \[num_tokens, hidden\]"),
    ("gradient", torch.zeros(28, 36), ValueError, "gradient must be .* of delta"),
    ("gradient", torch.zeros(28, 37).int(), TypeError, "gradient must have dtype float32 or"),
    ("mask", torch.zeros(28), TypeError, "mask must have dtype Bool"),
    ("mask", torch.zeros(27, dtype=torch.bool), ValueError, r"mask must be .* \[num_tokens\]"),
    ("sequence", torch.zeros(28), TypeError, "sequence must have dtype Long"),
    ("sequence", torch.zeros(29).long(), ValueError, r"sequence must be .* \[num_tokens\]"),
    ("sequence", torch.arange(28) - 1, ValueError, r"sequence must be in \[0, .*= 5\), got -1"),
    ("num_sequences", 4, ValueError, r"sequence must be in .*= 4\), got 4 for token 17"),
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
    with pytest.raises(error, match=f"sbrrt::smart_ascend: {message}"):
        torch.ops.sbrrt.smart_ascend(*positional(**{argument: value}))


def test_named_backend_gives_its_reason():
    delta, *rest = tensors(SAMPLES["prime sizes"])
    with pytest.raises(BackendError, match="delta is float64, which runs on the reference"):
        smart_ascend(delta.double(), *rest, radius=1.0, backend="cpu", **OPTIONS[0])


def test_opcheck():
    torch.library.opcheck(torch.ops.sbrrt.smart_ascend.default, tuple(positional()))


def test_compiled():
    inputs, options = tensors(SAMPLES["prime sizes"]), {**OPTIONS[3], "radius": 0.1}
    compiled = torch.compile(smart_ascend, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs, **options), smart_ascend(*inputs, **options))


def test_fuzzed_calls_answer_or_raise():
    assert fuzz(torch.ops.sbrrt.smart_ascend, positional, 3000) > 500
