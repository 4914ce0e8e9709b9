"""``ops.task_heads`` in plain PyTorch, without autograd; float32 or float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sbrrt_fast.ops.task_heads_table import COSINE_EPS, NUM_VECTORS, HeadSpec, HeadTable


def heads_forward_reference(
    table: HeadTable, pooled: Tensor, factors: Tensor | None, weights: Tensor
) -> Tensor:
    """See ``task_heads.heads_forward``."""
    parts = []
    for spec, vectors in zip(table.specs, table.pairs(_features(pooled, factors)), strict=True):
        if spec.kind == "cosine":
            parts.append(spec.scale * _Cosine(*vectors).value)
        else:
            weight, bias = table.parameters(spec, weights)
            parts.append((_pair_features(spec, vectors) @ weight.t() + bias).flatten())
    return torch.cat(parts)


def heads_jvp_reference(
    table: HeadTable,
    pooled: Tensor,
    factors: Tensor | None,
    weights: Tensor,
    pooled_tangent: Tensor,
) -> Tensor:
    """See ``task_heads.heads_jvp``."""
    features, tangents = _features(pooled, factors), _features(pooled_tangent, factors)
    parts = []
    for spec, x, t in zip(table.specs, table.pairs(features), table.pairs(tangents), strict=True):
        if spec.kind == "cosine":
            parts.append(spec.scale * _Cosine(*x).jvp(*t))
        else:
            weight, _ = table.parameters(spec, weights)
            parts.append((_pair_tangents(spec, x, t) @ weight.t()).flatten())
    return torch.cat(parts)


def heads_vjp_reference(
    table: HeadTable, pooled: Tensor, factors: Tensor | None, weights: Tensor, cotangents: Tensor
) -> Tensor:
    """See ``task_heads.heads_vjp``."""
    grad = torch.zeros_like(pooled)
    pairs, outputs = table.pairs(_features(pooled, factors)), table.split(cotangents)
    for spec, x, c, grads in zip(table.specs, pairs, outputs, table.pairs(grad), strict=True):
        if spec.kind == "cosine":
            results = _Cosine(*x).vjp(spec.scale * c[:, 0])
        else:
            weight, _ = table.parameters(spec, weights)
            results = _pair_gradients(spec, x, c @ weight)
        for g, result in zip(grads, results, strict=True):
            g.copy_(result)
    return _features(grad, factors)


def heads_weight_gradients_reference(
    table: HeadTable,
    pooled: Sequence[Tensor],
    factors: Sequence[Tensor | None],
    cotangents: Sequence[Tensor],
    grad_weights: Tensor,
) -> None:
    """See ``task_heads.heads_weight_gradients``."""
    vectors = [table.pairs(_features(x, f)) for x, f in zip(pooled, factors, strict=True)]
    outputs = [table.split(c) for c in cotangents]
    for i, spec in enumerate(table.specs):
        if spec.kind == "cosine":
            continue
        x = torch.cat([_pair_features(spec, v[i]) for v in vectors])
        c = torch.cat([o[i] for o in outputs])
        weight, bias = table.parameters(spec, grad_weights)
        weight.copy_(c.t() @ x)
        bias.copy_(c.sum(0))


def _features(pooled: Tensor, factors: Tensor | None) -> Tensor:
    return pooled if factors is None else pooled * factors


def _pair_features(spec: HeadSpec, vectors: tuple[Tensor, ...]) -> Tensor:
    if spec.kind == "concat_difference":
        vectors = *vectors, (vectors[0] - vectors[1]).abs()
    return torch.cat(vectors, dim=-1)


def _pair_tangents(
    spec: HeadSpec, vectors: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> Tensor:
    """The tangent of ``_pair_features``."""
    if spec.kind == "concat_difference":
        (u, v), (du, dv) = vectors, tangents
        tangents = du, dv, (u - v).sign() * (du - dv)
    return torch.cat(tangents, dim=-1)


def _pair_gradients(
    spec: HeadSpec, vectors: tuple[Tensor, ...], grad: Tensor
) -> tuple[Tensor, ...]:
    """The vectors' gradients from that of ``_pair_features``."""
    grads = grad.chunk(NUM_VECTORS[spec.kind], dim=-1)
    if spec.kind == "concat_difference":
        by_difference = (vectors[0] - vectors[1]).sign() * grads[2]
        return grads[0] + by_difference, grads[1] - by_difference
    return grads


class _Cosine:
    """cos(u, v) of each row; directions are u / |u|, or u / eps where u is shorter than eps."""

    def __init__(self, u: Tensor, v: Tensor):
        self.lengths = [torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (u, v)]
        self.divisors = [n.clamp(min=COSINE_EPS) for n in self.lengths]
        self.directions = [x / m for x, m in zip((u, v), self.divisors, strict=True)]
        self.value = (self.directions[0] * self.directions[1]).sum(dim=-1)

    def jvp(self, du: Tensor, dv: Tensor) -> Tensor:
        (gu, gv), (tu, tv) = self._gradients(), (du, dv)
        return (gu * tu).sum(dim=-1) + (gv * tv).sum(dim=-1)

    def vjp(self, grad: Tensor) -> list[Tensor]:
        return [grad[:, None] * g for g in self._gradients()]

    def _gradients(self) -> list[Tensor]:
        """Of the value in u and v; the length of a vector shorter than eps does not count."""
        others = reversed(self.directions)
        return [
            (other - self.value[:, None] * own * (length >= COSINE_EPS)) / divisor
            for own, other, length, divisor in zip(
                self.directions, others, self.lengths, self.divisors, strict=True
            )
        ]
