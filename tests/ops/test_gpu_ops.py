"""Every op of the extension on a GPU, through its public function; the same tests on the CPU."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sbrrt_fast._extension import extension, extension_error
from sbrrt_fast.ops.adamw_ema import adamw_ema_rows_, gradient_norm, gradient_norm_reference
from sbrrt_fast.ops.attention import attention
from sbrrt_fast.ops.dropout import (
    dropout_mask,
    dropout_mask_reference,
    philox_bits,
    philox_bits_reference,
)
from sbrrt_fast.ops.embed import embed
from sbrrt_fast.ops.gelu import bias_gelu, bias_gelu_reference
from sbrrt_fast.ops.layernorm import dropout_add_layernorm
from sbrrt_fast.ops.smart_ascend import smart_ascend, smart_ascend_reference
from sbrrt_fast.ops.smart_noise import smart_noise, smart_noise_reference
from sbrrt_fast.ops.symmetric_kl import (
    symmetric_kl_delta,
    symmetric_kl_fisher,
    symmetric_kl_fisher_reference,
    symmetric_kl_reference,
)
from tests.ops import (
    test_adamw_ema,
    test_adamw_rows,
    test_attention,
    test_embed,
    test_gelu,
    test_layernorm,
    test_smart_ascend_cpu,
    test_symmetric_kl_cpu,
)
from tests.ops.on_device import devices, equal, moved, no_gpu, replayed
from tests.ops.op_checks import (
    BF16,
    F32,
    RNG,
    SITE,
    assert_as_good_as_stock,
    float_tangent,
    gradients,
)
from tests.ops.test_compile import native_calls

assert extension is not None, extension_error
F16 = torch.float16
REPEATS = {"cpu": 3, "cuda": 250}


class Gelu(test_gelu.Case):
    def stock(self, x, bias):
        return bias_gelu_reference(x, bias)


# Case, samples, ours(case, backend, *inputs), and which inputs may have a tangent.
OPS = {
    "attention": (
        test_attention.Case,
        test_attention.SAMPLES,
        lambda c, b, *x: attention(*x, *c.batch, *c.dropout, backend=b),
        (0, 1, 2),
    ),
    "dropout_add_layernorm": (
        test_layernorm.Case,
        test_layernorm.SAMPLES,
        lambda c, b, *x: dropout_add_layernorm(*x, test_layernorm.EPS, *c.dropout, backend=b),
        (0, 2),
    ),
    "bias_gelu": (
        Gelu,
        test_gelu.SAMPLES,
        lambda c, b, *x: bias_gelu(*x, backend=b),
        (0,),
    ),
    "embed": (
        test_embed.Case,
        test_embed.SAMPLES,
        lambda c, b, *x: embed(*c.tokens, *x, test_embed.EPS, *c.dropout, backend=b),
        (),
    ),
}


def op_samples():
    """On a GPU all, those in bfloat16 also in float16; on the CPU, whose tests have all, two."""
    for op, (_, samples, _, _) in OPS.items():
        for name, sample in samples.items():
            if name in ("primes", "primes in bf16"):
                yield pytest.param(op, sample, "cpu", id=f"{op}, {name}, cpu")
            yield pytest.param(op, sample, "cuda", id=f"{op}, {name}, cuda", marks=no_gpu)
            if BF16 in sample:
                half = tuple(F16 if value is BF16 else value for value in sample)
                yield pytest.param(op, half, "cuda", id=f"{op}, {name} as fp16", marks=no_gpu)


def tangent_of(f, inputs, tangents, places):
    """The tangent of f for tangents of the inputs in these places."""

    def of_some(*some):
        given = dict(zip(places, some, strict=True))
        return f(*(given.get(i, x) for i, x in enumerate(inputs)))

    primals = [inputs[i] for i in places]
    cast = [t.to(x.dtype) for t, x in zip(tangents, primals, strict=True)]
    return float_tangent(of_some, primals, cast)


def derivatives(f, inputs, grad, tangents, places):
    """Value, gradients of all inputs, and the tangent, on the CPU."""
    results = [f(*inputs).detach(), *gradients(f, inputs, grad)]
    if places:
        results.append(tangent_of(f, inputs, tangents, places))
    return [x.cpu() for x in results]


def prepared(op, sample, device):
    """The case, its tangents, and f(case on the device)."""
    kind, _, ours, places = OPS[op]
    case = kind(sample)
    tangents = getattr(case, "tangents", [case.grad] * len(places))
    there = moved(case, device)
    run = partial(
        derivatives, partial(ours, there, device), there.inputs, there.grad,
        moved(tangents, device), places,
    )  # fmt: skip
    return case, tangents, places, run


@pytest.mark.parametrize(("op", "sample", "device"), list(op_samples()))
def test_values_and_derivatives(op, sample, device):
    case, tangents, places, run = prepared(op, sample, device)
    exact_grad = case.grad.double()
    exact = derivatives(case.stock, case.exact_inputs(), exact_grad, tangents, places)
    stock = derivatives(case.stock, case.inputs, case.grad, tangents, places)
    for triple in zip(run(), stock, exact, strict=True):
        assert_as_good_as_stock(*triple)


@devices
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", ["primes", "primes in bf16"])
def test_repeats_are_bitwise_equal(op, name, device):
    *_, run = prepared(op, OPS[op][1][name], device)
    first = run()
    for _ in range(REPEATS[device]):
        assert equal(first, run())


@devices
@pytest.mark.parametrize("dtypes", [(F32, F32), (BF16, F32), (F32, BF16)], ids=str)
def test_symmetric_kl(dtypes, device):
    for scale in (1e-4, 0.5, 10.0):
        primals = test_symmetric_kl_cpu.inputs((31, 17, "strided"), scale, dtypes)
        exact, there = [x.double() for x in primals], moved(primals, device)
        grad, f = torch.randn(31), partial(symmetric_kl_delta, backend=device)
        found = [f(*there).detach(), *gradients(f, there, grad.to(device))]
        found.append(symmetric_kl_fisher(*there, backend=device))
        reference, fisher = symmetric_kl_reference, symmetric_kl_fisher_reference
        stock = [reference(*primals), *gradients(reference, primals, grad), fisher(*primals)]
        truth = [reference(*exact), *gradients(reference, exact, grad.double()), fisher(*exact)]
        for mine, *others in zip(found, stock, truth, strict=True):
            assert_as_good_as_stock(mine.cpu(), *others)


@devices
@pytest.mark.parametrize("name", ["prime sizes", "strided rows"])
def test_smart_ascend(name, device):
    inputs = test_smart_ascend_cpu.tensors(test_smart_ascend_cpu.SAMPLES[name])
    delta, gradient, *rest = inputs
    for options in test_smart_ascend_cpu.OPTIONS:
        settings = {**options, "radius": 0.1}
        exact = smart_ascend_reference(delta.double(), gradient.double(), *rest, **settings)
        stock = smart_ascend_reference(*inputs, **settings)
        ours = smart_ascend(*moved(inputs, device), backend=device, **settings)
        assert_as_good_as_stock(ours.cpu(), stock, exact)


@devices
@pytest.mark.parametrize("width", [37, 64])
def test_random_numbers_are_the_reference_s(width, device):
    offsets = torch.tensor([0, 1, 2, 1027, 2**34 - 5])
    there, rng = moved(offsets, device), moved(RNG, device)
    bits = philox_bits(there, width, rng, SITE, backend=device)
    assert torch.equal(bits.cpu(), philox_bits_reference(offsets, width, RNG, SITE))
    for dtype in (F32, BF16, F16):
        mask = dropout_mask(there, width, 0.3, rng, SITE, dtype, backend=device)
        expected = dropout_mask_reference(offsets, width, 0.3, RNG, SITE, dtype)
        assert torch.equal(mask.cpu(), expected)
    if width % 4 == 0:
        noise = smart_noise(there, width, rng, SITE, backend=device).cpu().double()
        expected = smart_noise_reference(offsets, width, RNG, SITE).double()
        assert ((noise - expected).abs() <= 1.2e-7 * expected.abs() + 1e-14).all()


@devices
def test_masks_inside_the_ops_are_the_reference_s(device):
    case = test_layernorm.Case((17, 37, F32, F32, 0.3, "dense"))
    there, ours = moved(case, device), OPS["dropout_add_layernorm"][2]
    dx, _, dresidual, *_ = gradients(partial(ours, there, device), there.inputs, there.grad)
    mask = dropout_mask_reference(case.offsets, 37, 0.3, RNG, SITE, F32)
    assert torch.equal(dx.cpu(), dresidual.cpu() * mask)

    case = test_attention.Case(([4, 29], 3, 32, F32, 0.3, 61, "dense"))
    zeros, values = torch.zeros_like(case.inputs[0]), torch.zeros_like(case.inputs[0])
    values[4:] = torch.eye(32)[:29].repeat(1, 3)
    inputs = moved([zeros, zeros, values], device)
    out = OPS["attention"][2](moved(case, device), device, *inputs).cpu()
    assert torch.equal(case.heads(out[4:])[..., :29] != 0, case.kept(1)[0])


@devices
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_the_optimiser(dtype, device):
    shapes = test_adamw_ema.SHAPES["several pieces"]
    ours = test_adamw_ema.State(shapes)
    exact = copy.deepcopy(ours)
    for name in ("params", "exp_avg", "exp_avg_sq", "ema"):
        setattr(exact, name, [x.double() for x in getattr(ours, name)])
    stock, there = copy.deepcopy(ours), moved(ours, device)
    for step in range(1, 4):
        grads = [g.to(dtype) for g in ours.grads(10.0 ** (step - 2))]
        numbers = {"learning_rate": torch.tensor(1e-3), "clip_factor": torch.tensor(1.0)}
        numbers = moved(numbers | {"step": torch.tensor(step)}, device)
        there.update(moved(grads, device), step, device, **numbers)
        exact.update([g.double() for g in grads], step, "reference")
        test_adamw_ema.stock_step(stock, [g.float() for g in grads], step)
    for mine, theirs, truth in zip(there.tensors(), stock.tensors(), exact.tensors(), strict=True):
        allowed = 2 * (theirs - truth).abs().max() + 2e-7 * truth.abs().max()
        assert (mine.cpu() - truth).abs().max() <= allowed
    for copied, source in zip(there.low_precision, there.params, strict=True):
        assert torch.equal(copied, source.bfloat16())


@devices
def test_the_optimiser_of_a_table(device):
    size = test_adamw_rows.SIZES["prime"]
    ours = moved(test_adamw_rows.table(size), device)
    exact = {key: x.double() for key, x in test_adamw_rows.table(size).items()}
    for state, where in ((ours, device), (exact, "reference")):
        touched = torch.zeros(size[0], dtype=torch.bool, device=state["param"].device)
        for step in range(1, 6):
            found = test_adamw_rows.gradient(size, step)
            grad = type(found)(found.rows, found.values.to(state["param"].dtype))
            adamw_ema_rows_(
                state["param"], moved(grad, touched.device.type) if where != "reference" else grad,
                touched, state["exp_avg"], state["exp_avg_sq"], weight_decay=0.1,
                ema=state["ema"], backend=where,
                **moved(test_adamw_rows.numbers(step), touched.device.type),
            )  # fmt: skip
    for key, value in ours.items():
        assert (value.cpu() - exact[key]).abs().max() <= 2e-6 * exact[key].abs().max()


@devices
def test_gradient_norm(device):
    grads = [torch.randn(shape) for shape in test_adamw_ema.SHAPES["several pieces"]]
    exact = gradient_norm_reference([g.double() for g in grads])
    found = gradient_norm(moved(grads, device), backend=device).cpu()
    assert abs(found.double() - exact) <= 3e-7 * exact


CALLS = native_calls()


def call(name, arguments):
    """Everything that a native op returns or writes."""
    op = getattr(torch.ops.sbrrt, name).default
    returned = op(*arguments)
    written = [
        arguments[i]
        for i, argument in enumerate(op._schema.arguments)
        if argument.alias_info and argument.alias_info.is_write
    ]
    return [x for x in tree_leaves([returned, written]) if isinstance(x, Tensor)]


def changed(name, arguments):
    """Other seeds, steps and values, in the same places."""
    names = [a.name for a in getattr(torch.ops.sbrrt, name).default._schema.arguments]
    results = moved(arguments, "cpu")
    for key, value in zip(names, results, strict=False):  # the rest have defaults
        for x in tree_leaves(value):
            if isinstance(x, Tensor) and x.is_floating_point():
                x.mul_(0.75)
            elif isinstance(x, Tensor) and key in ("rng", "step"):
                x.add_(1)
    return results


@devices
@pytest.mark.parametrize("name", CALLS)
def test_native_ops_repeat_bitwise(name, device):
    first = call(name, moved(CALLS[name], device))
    for _ in range(REPEATS[device]):
        assert equal(first, call(name, moved(CALLS[name], device)))


@devices
@pytest.mark.parametrize("name", CALLS)
def test_a_graph_reads_what_has_changed(name, device):
    """Captured once; then another seed, step and other values lie in the same memory."""
    arguments, others = moved(CALLS[name], device), moved(changed(name, CALLS[name]), device)
    expected = [x.clone() for x in call(name, moved(others, device))]

    def change():
        for x, y in zip(tree_leaves(arguments), tree_leaves(others), strict=True):
            if isinstance(x, Tensor):
                x.copy_(y)

    results = replayed(lambda: call(name, arguments), change, device)
    assert equal(results, expected)
    before = call(name, moved(CALLS[name], device))
    assert not equal(before, expected)


@devices
@pytest.mark.parametrize("name", [name for name in CALLS if name.endswith("_into")])
def test_results_land_in_memory_of_the_caller_s(name, device):
    """What was there does not count, and rows may have gaps, which stay as they are."""
    arguments = list(moved(CALLS[name], device))
    expected = call(name, list(moved(CALLS[name], device)))
    schema, wide = getattr(torch.ops.sbrrt, name).default._schema, []
    for i, argument in enumerate(schema.arguments):
        is_written = argument.alias_info and argument.alias_info.is_write
        x = arguments[i]
        if not is_written or x is None:
            continue
        gap = 8 if x.dim() == 2 and argument.name != "logsumexp" else 0
        whole = x.new_full((*x.shape[:-1], x.shape[-1] + gap), torch.nan)
        arguments[i] = whole[..., : x.shape[-1]]
        wide.append(whole[..., x.shape[-1] :])
    assert equal(call(name, arguments), expected)
    assert all(rest.isnan().all() for rest in wide)
