"""The ascent step against a per-group loop written from Algorithm 1, and gradients of any size."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sbrrt_fast.ops.smart_ascend import group_norm, smart_ascend_reference
from tests.ops.backends import backends_of, run
from tests.ops.cases import OPS
from tests.ops.cases.smart import OPTIONS, SIZES, AscendCase, ascent

OP = OPS["smart_ascend"]
every_backend = backends_of("smart_ascend", "cuda_on_cpu")

SEQUENCE = torch.tensor([0, 0, 0, 1, 2, 2])


def loop(delta, gradient, mask, *, step_size, normalize_gradient, projection, radius, norm, level):
    """One group at a time."""
    order = math.inf if norm == "inf" else 2
    out = torch.zeros_like(delta)
    groups = [[i] for i in range(len(SEQUENCE))]
    if level == "sequence":
        groups = [[i for i, s in enumerate(SEQUENCE) if s == row] for row in range(3)]
    for group in groups:
        kept = [i for i in group if mask[i]]
        if not kept:
            continue
        g, d = gradient[kept], delta[kept]
        size = torch.linalg.vector_norm(g, order)
        if math.isinf(step_size):
            moved = g / size
            if projection == "ball" and norm == "inf":
                out[kept] = radius * moved.sign()
                continue
            moved = moved * 1e9
        else:
            moved = d + step_size * (g / size if normalize_gradient else g)
        if projection == "ball" and norm == "inf":
            out[kept] = moved.clamp(-radius, radius)
        else:
            size = torch.linalg.vector_norm(moved, order)
            inside = projection == "ball" and size <= radius
            out[kept] = moved if inside else radius * moved / size
    return out


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_against_the_loop(options):
    delta, gradient = torch.randn(2, 6, 7, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, True, True])
    for radius in (1e-5, 0.5, 3.0):
        got = smart_ascend_reference(delta, gradient, mask, SEQUENCE, 6, radius=radius, **options)
        expected = loop(delta, gradient, mask, radius=radius, **options)
        assert torch.allclose(got, expected, rtol=1e-10, atol=0), radius
        size = group_norm(got, SEQUENCE, 6, options["norm"], options["level"])
        assert (size <= radius * (1 + 1e-12)).all()
        assert got[1].eq(0).all()


def test_tiny_gradients_keep_their_direction():
    gradient = torch.randn(6, 7) * 1e-30
    for norm in ("inf", "2"):
        got = smart_ascend_reference(
            torch.zeros(6, 7), gradient, torch.ones(6, dtype=torch.bool), SEQUENCE, 6,
            step_size=math.inf, normalize_gradient=True, projection="normalize", radius=0.1,
            norm=norm, level="token",
        )  # fmt: skip
        size = torch.linalg.vector_norm(got, math.inf if norm == "inf" else 2, dim=-1)
        assert torch.allclose(size, torch.full((6,), 0.1))
        cosine = torch.cosine_similarity(got.double(), gradient.double() * 1e30, dim=-1)
        assert (cosine > 1 - 1e-6).all()


def test_a_zero_gradient_projects_the_old_perturbation():
    delta = torch.randn(6, 7)
    options = {"normalize_gradient": True, "radius": 0.5, "norm": "2", "level": "token"}
    for step_size, projection in itertools.product((0.1, math.inf), ("ball", "normalize")):
        got = smart_ascend_reference(
            delta, torch.zeros_like(delta), torch.ones(6, dtype=torch.bool), SEQUENCE, 6,
            step_size=step_size, projection=projection, **options,
        )  # fmt: skip
        assert torch.isfinite(got).all()
        assert torch.allclose(got, 0.5 * delta / delta.norm(dim=-1, keepdim=True), rtol=1e-5)


@every_backend
@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-18, 1e18, 1e30, 1e37])
def test_gradients_of_any_size_keep_their_direction(scale, backend):
    case = AscendCase(ascent(SIZES["prime sizes"], scale=scale))
    case.settings = [
        {"normalize_gradient": True, "projection": "normalize", "radius": 0.02,
         "step_size": math.inf, "norm": norm, "level": level}
        for norm, level in itertools.product(("inf", "2"), ("token", "sequence"))
    ]  # fmt: skip
    # subnormal gradients have few digits
    tolerance = 1e-6 if scale > 1e-38 or backend == "cuda_on_cpu" else 1e-4
    for found, exact in zip(
        run(OP, backend, case).value, case.stock(*case.exact_inputs()), strict=True
    ):
        torch.testing.assert_close(found.cpu().double(), exact, rtol=1e-6, atol=0.02 * tolerance)


@every_backend
def test_nothing_to_perturb(backend):
    case = AscendCase(ascent(((1, 1, 1), 5, "dense"), options=tuple(range(48)), radii=(1.0,)))
    case.mask = torch.zeros(3, dtype=torch.bool)
    assert all(x.eq(0).all() for x in run(OP, backend, case).value)


@every_backend
def test_sequences_in_any_order(backend):
    case = AscendCase(ascent(SIZES["prime sizes"], options=(47, 31), radii=(0.5,)))
    expected, order = run(OP, backend, case).value, torch.randperm(len(case.mask))
    case.inputs = [x[order] for x in case.inputs]
    case.mask, case.sequence = case.mask[order], case.sequence[order]
    for found, whole in zip(run(OP, backend, case).value, expected, strict=True):
        torch.testing.assert_close(found, whole[order.to(whole.device)], rtol=1e-6, atol=0)


@pytest.mark.parametrize("level", [0, 1])
@every_backend
def test_nan_stays_in_its_group(backend, level):
    sample = ascent(SIZES["prime sizes"], options=(2 + level,), radii=(0.5,))
    (clean,) = run(OP, backend, AscendCase(sample)).value
    case = AscendCase(sample)
    case.inputs[1][0, 3] = float("nan")
    (out,) = run(OP, backend, case).value
    assert out[0].isnan().any()
    assert torch.equal(out[2:], clean[2:])  # the first sequence has two tokens
