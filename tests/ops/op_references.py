"""What the writing ops should leave, in float64 and plain torch.

``REFERENCES[op](*arguments)`` are the results in the schema's order, None where none is wanted; the
arguments are those that the op reads, and its result where the width or dtype are the result's.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from sbrrt_fast.ops.adamw_ema import adamw_ema_reference, adamw_ema_rows_reference
from sbrrt_fast.ops.attention import packed_attention_reference
from sbrrt_fast.ops.dropout import dropout_mask, dropout_mask_reference, philox_bits_reference
from sbrrt_fast.ops.gelu import bias_gelu_reference
from sbrrt_fast.ops.smart_ascend import smart_ascend_reference
from sbrrt_fast.ops.smart_noise import smart_noise_reference
from sbrrt_fast.ops.symmetric_kl import symmetric_kl_fisher_reference, symmetric_kl_reference
from tests.ops import head_references
from tests.ops.op_checks import BF16, F64, float_tangent, gradients


def doubles(*tensors: Tensor) -> list[Tensor]:
    return [x.detach().double() for x in tensors]


def gelu_forward(x, bias, x_tangent=None):
    out = bias_gelu_reference(*doubles(x, bias))
    last = None if x_tangent is None else x[len(x) - len(x_tangent) :]
    return [out, *([None] if last is None else gelu_jvp(x_tangent, last, bias))]


def gelu_backward(grad, x, bias):
    return gradients(bias_gelu_reference, doubles(x, bias), grad.double())


def gelu_jvp(tangent, x, bias):
    x, bias, tangent = doubles(x, bias, tangent)
    return [float_tangent(bias_gelu_reference, [x, bias], [tangent, torch.zeros_like(bias)])]


def layernorm_sum(x, bias, residual, p, rng, site, offsets):
    """(s, dropout's factors)."""
    factors = dropout_mask(offsets, x.shape[1], p, rng, site, F64, backend="reference")
    x, bias, residual = doubles(x, bias, residual)
    return residual + factors * (x + bias), factors


def layernorm_forward(x, bias, residual, weight, shift, eps, *dropout):
    s, _ = layernorm_sum(x, bias, residual, *dropout)
    mean = s.mean(1)
    centred = s - mean[:, None]
    rstd = (centred.square().mean(1) + eps).rsqrt()
    y = centred * rstd[:, None] * weight.double() + shift.double()
    return [y, mean, rstd, None]


def layernorm_forward_and_tangent(x, bias, residual, weight, shift, eps, *others):
    *dropout, tx, tresidual = others
    results = layernorm_forward(x, bias, residual, weight, shift, eps, *dropout)
    if tx is None:
        return results
    last = slice(len(x) - len(tx), None)
    *options, offsets = dropout
    _, mean, rstd, _ = (r if r is None else r[last] for r in results)
    rows = x[last], bias, residual[last], weight, mean, rstd
    return [*results[:3], *layernorm_jvp(tx, tresidual, *rows, *options, offsets[last])]


def projected(x, standard, rstd):
    """x without its part along a row's constant and its standard values."""
    along = (x * standard).mean(1, keepdim=True) * standard
    return rstd[:, None] * (x - x.mean(1, keepdim=True) - along)


def layernorm_backward(grad, product, x, bias, residual, weight, mean, rstd, *others):
    *dropout, segments = others
    s, factors = layernorm_sum(x, bias, residual, *dropout)
    weight, mean, rstd, grad = doubles(weight, mean, rstd, grad)
    grad = grad if product is None else grad + product.double()
    standard = (s - mean[:, None]) * rstd[:, None]
    dresidual = projected(grad * weight, standard, rstd)
    dx = factors * dresidual
    summands = torch.stack([dx, grad * standard, grad], dim=1)
    sums = None if segments is None else [rows.sum(0) for rows in parts_of(summands, segments)]
    return [dx, dresidual, torch.stack(sums) if sums else sums and summands[:0]]


def parts_of(x, bounds):
    """Rows between one bound and the next."""
    pairs = zip(bounds.tolist(), bounds.tolist()[1:], strict=False)
    return [x[begin:end] for begin, end in pairs]


def column_sums(x, weights):
    weights = torch.ones(0) if weights is None else weights
    weights = torch.cat([weights, torch.ones(x.shape[1] - len(weights))])
    return [(weights.double()[:, None] * x.double()).sum(1)]


def layernorm_jvp(tx, tresidual, x, bias, residual, weight, mean, rstd, *dropout):
    s, factors = layernorm_sum(x, bias, residual, *dropout)
    tx, tresidual, weight, mean, rstd = doubles(tx, tresidual, weight, mean, rstd)
    standard = (s - mean[:, None]) * rstd[:, None]
    return [projected(tresidual + factors * tx, standard, rstd) * weight]


def embed_sum(ids, positions, types, word, position, type_):
    word, position, type_ = doubles(word, position, type_)
    return word[ids] + position[positions] + type_[types]


def embed_forward(ids, positions, types, word, position, type_, weight, shift, eps, *dropout):
    s = embed_sum(ids, positions, types, word, position, type_)
    factors = embed_factors(s, *dropout)
    mean = s.mean(1)
    centred = s - mean[:, None]
    rstd = (centred.square().mean(1) + eps).rsqrt()
    y = (centred * rstd[:, None] * weight.double() + shift.double()) * factors
    return [y, mean, rstd]


def embed_factors(s, p, rng, site, offsets):
    return dropout_mask_reference(offsets, s.shape[1], p, rng, site, F64)


def embed_backward(grad, *others):
    *indices_and_tables, weight, mean, rstd, p, rng, site, offsets, _order = others
    s = embed_sum(*indices_and_tables)
    weight, mean, rstd, grad = doubles(weight, mean, rstd, grad)
    grad = grad * embed_factors(s, p, rng, site, offsets)
    standard = (s - mean[:, None]) * rstd[:, None]
    ds = projected(grad * weight, standard, rstd)
    pairs = zip(indices_and_tables[:3], indices_and_tables[3:], strict=True)
    tables = [torch.zeros(t.shape, dtype=F64).index_add(0, i, ds) for i, t in pairs]
    return [*tables, (grad * standard).sum(0), grad.sum(0)]


def ascend(delta, gradient, mask, sequence, num_sequences, *options):
    names = ("step_size", "normalize_gradient", "projection", "radius", "norm", "level")
    inputs = *doubles(delta, gradient), mask, sequence, num_sequences
    return [smart_ascend_reference(*inputs, **dict(zip(names, options, strict=True)))]


def mask(offsets, p, rng, site, out):
    return [dropout_mask_reference(offsets, out.shape[1], p, rng, site, out.dtype)]


def bits(offsets, rng, site, out):
    return [philox_bits_reference(offsets, out.shape[1], rng, site)]


def noise(offsets, rng, site, out):
    return [smart_noise_reference(offsets, out.shape[1], rng, site)]


def logsumexps(query, key, cu_seqlens, num_heads):
    """[num_tokens, num_heads]."""
    results = []
    for begin, end in zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False):
        q, k = (x[begin:end].unflatten(1, (num_heads, -1)).transpose(0, 1) for x in (query, key))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
        results.append(scores.logsumexp(2).t())
    return torch.cat(results) if results else query.new_zeros(0, num_heads)


def attention_forward(query, key, value, *others):
    q, k, v = doubles(query, key, value)
    return [packed_attention_reference(q, k, v, *others), logsumexps(q, k, others[0], others[2])]


def attention_backward(grad, query, key, value, out, logsumexp, *others):
    inputs = doubles(query, key, value)
    return gradients(lambda *x: packed_attention_reference(*x, *others), inputs, grad.double())


def attention_jvp(query, key, value, tq, tk, tv, logsumexp, *others):
    function, inputs = packed_attention_reference, doubles(query, key, value)
    return [float_tangent(lambda *x: function(*x, *others), inputs, doubles(tq, tk, tv))]


def mm(a, b):
    return [a.double() @ b.double()]


def adamw(params, grads, exp_avg, exp_avg_sq, ema, low, ema_low, *numbers):
    lists = [[x.double() for x in xs] for xs in (params, grads, exp_avg, exp_avg_sq, ema)]
    lists += [[copy.deepcopy(x) for x in xs] for xs in (low, ema_low)]
    with torch.no_grad():
        adamw_ema_reference(*lists, *numbers)
    return [x.double() for i in (0, 2, 3, 4, 5, 6) for x in lists[i]]


def adamw_rows(param, grad, rows, touched, exp_avg, exp_avg_sq, ema, *numbers):
    touched = touched.clone()
    param, grad, exp_avg, exp_avg_sq, ema = doubles(param, grad, exp_avg, exp_avg_sq, ema)
    with torch.no_grad():
        adamw_ema_rows_reference(param, grad, rows, touched, exp_avg, exp_avg_sq, ema, *numbers)
    return [param, touched.double(), exp_avg, exp_avg_sq, ema]


def norm(grads, max_norm):
    norm = sum((g.double().square().sum() for g in grads), torch.zeros((), dtype=F64)).sqrt()
    if not norm.isfinite():
        return [torch.tensor([norm, math.nan, 0.0])]
    factor = min(1.0, max_norm / (norm.item() + 1e-6)) if max_norm > 0 else 1.0
    return [torch.tensor([norm, factor, 1.0], dtype=F64)]


def kl_forward(logits, delta):
    return [symmetric_kl_reference(*doubles(logits, delta))]


def kl_backward(grad, logits, delta):
    return gradients(symmetric_kl_reference, doubles(logits, delta), grad.double())


def kl_fisher(logits, tangent):
    return [symmetric_kl_fisher_reference(*doubles(logits, tangent))]


REFERENCES = {
    "bias_gelu_forward_into": gelu_forward,
    "bias_gelu_backward_into": gelu_backward,
    "bias_gelu_jvp_into": gelu_jvp,
    "dropout_add_layernorm_forward_into": layernorm_forward_and_tangent,
    "dropout_add_layernorm_backward_into": layernorm_backward,
    "dropout_add_layernorm_jvp_into": layernorm_jvp,
    "attention_forward_into": attention_forward,
    "attention_backward_into": attention_backward,
    "attention_jvp_into": attention_jvp,
    "column_sums_into": column_sums,
    **{
        f"{name}_into": getattr(head_references, name)
        for name in (
            "heads_forward",
            "heads_jvp",
            "heads_vjp",
            "heads_weight_gradients",
            "objective",
            "smoothness_cotangents",
            "smoothness_values",
        )
    },
    "mm_into": mm,
    "adamw_ema_": adamw,
    "adamw_ema_rows_": adamw_rows,
    "dropout_mask_into": mask,
    "embed_forward_into": embed_forward,
    "embed_backward_into": embed_backward,
    "gradient_norm_into": norm,
    "philox_bits_into": bits,
    "smart_ascend_into": ascend,
    "smart_noise_into": noise,
    "symmetric_kl_forward_into": kl_forward,
    "symmetric_kl_backward_into": kl_backward,
    "symmetric_kl_fisher_into": kl_fisher,
}
OF_THE_RESULT = (
    "dropout_mask_into", "heads_weight_gradients_into", "philox_bits_into", "smart_noise_into",
)  # fmt: skip


ROUNDINGS = 40  # of the coarsest dtype, relative to the largest value


def condition(op: str, exact: list[Tensor]) -> float:
    """How much a LayerNorm with tangents magnifies ``ROUNDINGS``, or 1."""
    if op != "dropout_add_layernorm_forward_into" or exact[3] is None or not exact[1].numel():
        return 1.0
    # Rounding a row puts |mean| rstd eps / 2 on (s - mean) rstd, rstd being 1 / sqrt(variance + eps
    # of the norm); a tangent meets that four times: twice in z mean(t z), once in mean and in rstd.
    ill_conditioned = (exact[1].abs() * exact[2]).nan_to_num().max().item()
    return max(1.0, 2 * ill_conditioned / ROUNDINGS)


def assert_close(
    results: list[Tensor], exact: list[Tensor], inputs: list[Tensor], magnified: float = 1.0
) -> None:
    """Within ``ROUNDINGS`` of the coarsest dtype, relative to the largest value."""
    dtypes = [x.dtype for x in inputs]
    for x, truth in zip(results, exact, strict=True):
        if x is None:
            continue
        assert x.shape == truth.shape
        if x.numel() == 0:
            continue
        if not x.is_floating_point():
            assert torch.equal(x, truth)
            continue
        eps = torch.finfo(BF16 if BF16 in (x.dtype, *dtypes) else torch.float32).eps
        size = 1 + truth.double().nan_to_num().abs().max().item()
        assert torch.equal(x.isnan(), truth.isnan())
        error = (x.double() - truth.double()).nan_to_num().abs().max().item()
        assert error <= ROUNDINGS * eps * size * magnified, (error, size, eps)
