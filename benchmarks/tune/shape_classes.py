"""Every shape class of ``kernels.launch_table``: the calls that launch it, the constants to try.

Calls are of host functions on the trainer's shapes, bfloat16 with dropout; on the ``meta`` device
they only tell what would be launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor

from sbrrt_fast.kernels import (
    adamw_ema,
    adamw_rows,
    attention,
    column_sums,
    draws,
    embed,
    gelu,
    gradient_norm,
    layernorm,
    smart_ascend,
    task_heads,
)
from sbrrt_fast.kernels.launch_table import TABLE

TOKENS, SEQUENCES = 712, 40  # of a joint round
DROPOUT_P, SITE, EPS = 0.1, 2, 1e-12
WARPS = {"num_warps": (1, 2, 4, 8)}


class Call:
    """A host function with its arguments.

    Attributes:
        results: the tensors it writes, where the next call does not read them.
    """

    def __init__(self, host_function: Callable[..., None], *inputs, results: tuple = ()):
        self.run, self.results = partial(host_function, *inputs, *results), results

    def __call__(self) -> None:
        self.run()


@dataclass(frozen=True)
class ShapeClass:
    """One row of the table.

    Attributes:
        calls: given a device, the calls whose time is this class's.
        axes: the values of each constant that are tried, by name.
        fits: whether constants go together.
    """

    calls: Callable[[torch.device], list[Call]]
    axes: dict[str, tuple[int, ...]]
    fits: Callable[[dict[str, int]], bool] = lambda constants: True

    def candidates(self) -> Iterator[dict[str, int]]:
        """All constants worth a try."""
        for values in product(*self.axes.values()):
            constants = dict(zip(self.axes, values, strict=True))
            if self.fits(constants):
                yield constants


def shape_classes() -> dict[str, ShapeClass]:
    """By their names in the table, all of it."""
    found = dict(_attention_classes()) | dict(_row_classes()) | dict(_other_classes())
    return {name: found[name] for name in TABLE}


def _attention_classes() -> Iterator[tuple[str, ShapeClass]]:
    for name in TABLE:
        if not name.startswith("attention "):
            continue
        _, direction, bits, kind, *tile = name.split()
        dtype = torch.bfloat16 if bits == "16-bit" else torch.float32
        calls = partial(_attention_calls, direction.partition("_")[0], dtype)
        if kind == "loop":
            blocks = (32, 64, 128) if bits == "16-bit" else (16, 32, 64)
            axes = {
                "query": blocks,
                "key": blocks[:2],
                "num_warps": (4, 8),
                "num_stages": (1, 2, 3),
            }
            yield name, ShapeClass(partial(calls, 512), axes)
            continue
        keys = int(tile[0])
        queries = [q for q in (16, 32, 64, 128) if q <= keys] if direction == "forward" else [keys]
        axes = {"query": tuple(queries), "key": (keys,)} | WARPS
        yield name, ShapeClass(partial(calls, keys), axes)


def _attention_calls(
    direction: str, dtype: torch.dtype, longest: int, device: torch.device
) -> list[Call]:
    """Sequences of half the class's length to all of it, 12 heads of 32 and of 64."""
    lengths = [longest - (7 * i) % (longest // 2) for i in range(max(1, 1440 // longest))]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    places, rng = (torch.arange(n, device=device) for n in (len(lengths), 2))
    batch = starts, longest, 12, DROPOUT_P, rng, SITE, places, 512
    calls = []
    for head_dim in attention.HEAD_DIMS:
        fused = torch.randn(sum(lengths), 36 * head_dim, device=device).to(dtype)
        calls.append(_attention_call(direction, fused.split(12 * head_dim, dim=1), batch))
    return calls


def _attention_call(direction: str, matrices: Sequence[Tensor], batch: tuple) -> Call:
    out, *grads = (torch.empty(m.shape, dtype=m.dtype, device=m.device) for m in 4 * matrices[:1])
    logsumexp = torch.empty(len(out), 12, device=out.device)
    forward = Call(attention.forward_into, *matrices, *batch, results=(out, logsumexp))
    if direction == "forward":
        return forward
    forward()
    if direction == "jvp":
        tangents, results = matrices, (grads[0],)
        saved = *matrices, *tangents, logsumexp
        return Call(attention.jvp_into, *saved, *batch, results=results)
    saved = out, *matrices, out, logsumexp
    return Call(attention.backward_into, *saved, *batch, results=tuple(grads))


def _row_classes() -> Iterator[tuple[str, ShapeClass]]:
    """Rows of 384 features are in the class of 512, those of 768 in that of 1,024."""
    axes = {"ROWS": (1, 2, 4)} | WARPS
    for block, width in ((512, 384), (1024, 768)):
        for way in ("forward", "backward", "jvp"):
            yield f"layernorm {way} {block}", ShapeClass(partial(_layernorm, way, width), axes)
        for way in ("forward", "backward"):
            yield f"embed {way} {block}", ShapeClass(partial(_embed, way, width), axes)
        yield f"adamw_ema_rows_ {block}", ShapeClass(partial(_adamw_rows, width), axes)
        yield f"smart_ascend {block}", ShapeClass(partial(_smart_ascend, width), WARPS)


def _dropout(device: torch.device, width: int) -> tuple:
    offsets = torch.arange(TOKENS, device=device) * width
    return DROPOUT_P, torch.arange(2, device=device), SITE, offsets


def _layernorm(way: str, width: int, device: torch.device) -> list[Call]:
    residual, vector = torch.randn(TOKENS, width, device=device), torch.rand(width, device=device)
    x, dropout = residual.bfloat16(), _dropout(device, width)
    row = x, vector, residual, vector
    out, low, dx, dresidual = (torch.empty_like(x) for x in (residual, x, x, residual))
    mean, rstd = torch.empty(2, TOKENS, device=device)
    inputs, results = (*row, vector, EPS, *dropout), (out, low, mean, rstd)
    forward = Call(layernorm.forward_into, *inputs, results=results)
    if way == "forward":
        return [forward]
    forward()
    saved = *row, mean, rstd, *dropout
    if way == "jvp":
        return [Call(layernorm.jvp_into, x, residual, *saved, results=(out, low))]

    def backward(segments, dx, dresidual, sums) -> None:
        layernorm.backward_into(residual, x, *saved, dx, dresidual, segments, sums)

    bounds = torch.arange(SEQUENCES + 1, dtype=torch.int32, device=device) * TOKENS // SEQUENCES
    sums = torch.empty(SEQUENCES, 3, width, device=device)
    return [
        Call(backward, segments, results=(dx, dresidual, some))
        for segments, some in ((bounds, sums), (None, None))
    ]


def _embed(way: str, width: int, device: torch.device) -> list[Call]:
    word, grad = (torch.randn(n, width, device=device) for n in (30522, TOKENS))
    ids = torch.arange(TOKENS, device=device) * 41 % 30522
    positions, types = ids % 128, ids % 2
    tables = word, word[:512], word[:2]
    rows_read, dropout = (ids, positions, types, *tables, grad[0]), _dropout(device, width)
    mean, rstd = torch.empty(2, TOKENS, device=device)
    results = torch.empty_like(grad), mean, rstd
    forward = Call(embed.forward_into, *rows_read, grad[0], EPS, *dropout, results=results)
    if way == "forward":
        return [forward]
    forward()
    grads = tuple(torch.empty_like(x) for x in (*tables, grad[0], grad[0]))
    saved = *rows_read, mean, rstd, *dropout, None
    return [Call(embed.backward_into, grad, *saved, results=grads)]


def _adamw_rows(width: int, device: torch.device) -> list[Call]:
    table = [torch.zeros(30522, width, device=device) for _ in range(4)]
    rows_found = torch.arange(TOKENS, device=device) * 41
    touched = torch.zeros(30522, dtype=torch.bool, device=device)
    grad, one = torch.randn(TOKENS, width, device=device), torch.ones((), device=device)
    state = table[0], grad, rows_found, touched, *table[1:]
    return [Call(adamw_rows.adamw_ema_rows_, *state, one, 0.1, 0.9, 0.999, 1e-8, one, one, 0.9)]


def _smart_ascend(width: int, device: torch.device) -> list[Call]:
    delta = torch.randn(TOKENS, width, device=device)
    sequence = torch.arange(TOKENS, device=device) // 18
    batch = delta, delta, sequence >= 0, sequence, TOKENS // 18 + 1
    settings = (1e-3, True, "ball", 1e-5, "inf"), (1.0, True, "normalize", 1.0, "2")
    levels, out = ("token", "sequence"), torch.empty_like(delta)
    return [
        Call(smart_ascend.smart_ascend_into, *batch, *chosen, level, results=(out,))
        for chosen, level in product(settings, levels)
    ]


def _other_classes() -> Iterator[tuple[str, ShapeClass]]:
    tiles = {"ROWS": (8, 16, 32), "COLUMNS": (128, 256, 512), "num_warps": (4, 8)}
    yield "gelu forward", ShapeClass(partial(_gelu, "forward"), tiles)
    yield "gelu jacobian", ShapeClass(partial(_gelu, "jacobian"), tiles)
    draw = {"ROWS": (1, 2, 4), "COLUMNS": (128, 256)} | WARPS
    yield "smart_noise", ShapeClass(_smart_noise, draw)
    yield "dropout_mask", ShapeClass(_dropout_mask, draw)
    table = {"TOKENS": (16, 32, 64), "COLUMNS": (64, 128, 256)} | WARPS
    yield "embed table", ShapeClass(partial(_embed, "backward", 768), table)
    sums = {"ROWS": (16, 32, 64), "COLUMNS": (32, 64, 128)} | WARPS
    yield "column sums", ShapeClass(_column_sums, sums)
    features = {"BLOCK": (128, 256, 512), "num_warps": (1, 2, 4)}
    yield "task_heads", ShapeClass(_task_heads, features)
    blocks = {"BLOCK": (512, 1024, 2048, 4096), "num_warps": (4, 8)}
    yield "adamw_ema_", ShapeClass(partial(_adamw, "adamw_ema_"), blocks)
    yield "gradient_norm", ShapeClass(partial(_adamw, "gradient_norm"), blocks)


def _gelu(way: str, device: torch.device) -> list[Call]:
    calls = []
    for width in (1536, 3072):
        x = torch.randn(TOKENS, width, device=device).bfloat16()
        bias = torch.randn(width, device=device)
        out, dbias = torch.empty_like(x), torch.empty_like(bias)
        if way == "forward":
            calls.append(Call(gelu.forward_into, x, bias, results=(out,)))
            continue
        calls += [
            Call(gelu.backward_into, x, x, bias, results=(out, dbias)),
            Call(gelu.backward_into, x, x, bias, results=(out, None)),
            Call(gelu.jvp_into, x, x, bias, results=(out,)),
        ]
    return calls


def _smart_noise(device: torch.device) -> list[Call]:
    _, rng, _, offsets = _dropout(device, 768)
    results = (torch.empty(TOKENS, width, device=device) for width in (384, 768))
    return [Call(draws.smart_noise_into, offsets, rng, SITE, results=(out,)) for out in results]


def _column_sums(device: torch.device) -> list[Call]:
    """Sums of a layer's LayerNorms over a round's sequences; partial sums of its GELU backward."""
    x, partial = (torch.randn(n, device=device) for n in ((2, 32, 3 * 768), (45, 1, 3072)))
    layers, gelu_bias = torch.empty(2, 3 * 768, device=device), torch.empty_like(partial[0, 0])
    return [
        Call(column_sums.column_sums_into, x, x[0, :, 0].contiguous(), results=(layers,)),
        Call(column_sums.partial_sums_into, partial, results=(gelu_bias,)),
    ]


def _adamw(op: str, device: torch.device) -> list[Call]:
    """A layer of bert-base: matrices and vectors."""
    shapes = [(768, 768)] * 4 + [(3072, 768)] * 2 + [(768,)] * 8
    lists = [[torch.zeros(shape, device=device) for shape in shapes] for _ in range(5)]
    if op == "gradient_norm":
        results = (torch.empty(3, device=device),)
        return [Call(gradient_norm.gradient_norm_into, lists[0], 1.0, results=results)]
    copies, averages = ([x.bfloat16() for x in lists[0]] for _ in range(2))
    one = torch.ones((), device=device)
    numbers = one, [0.01] * len(shapes), 0.9, 0.999, 1e-8, one, one, 0.99
    return [Call(adamw_ema.adamw_ema_, *lists, copies, averages, *numbers)]


def _task_heads(device: torch.device) -> list[Call]:
    """SST's, Quora's and STS's heads on 8 examples each."""
    calls = []
    for width in (384, 768):
        pooled, weights = (
            torch.randn(40, width, device=device),
            torch.randn(9 * width, device=device),
        )
        pair = [2, 8, 8, 1, 5 * width + 5, 8 * width + 5]
        fields, flat = [0, 8, 0, 5, 0, 5 * width, *pair, 3, 8, 24, 1, -1, -1], weights[:56]
        numbers = fields, [1.0, 1.0, 5.0]
        inputs, out, grad = (pooled, pooled, weights), flat.clone(), torch.empty_like(pooled)
        calls += [
            Call(task_heads.forward_into, *inputs, *numbers, results=(out,)),
            Call(task_heads.jvp_into, *inputs, pooled, *numbers, results=(out,)),
            Call(task_heads.vjp_into, *inputs, flat, *numbers, results=(grad,)),
        ]
        both = *inputs[:2], flat, *inputs[:2], flat, fields
        results = (torch.empty_like(weights),)
        calls.append(Call(task_heads.weight_gradients_into, *both, results=results))
    return calls


def _dropout_mask(device: torch.device) -> list[Call]:
    out = torch.empty(TOKENS, 768, dtype=torch.bfloat16, device=device)
    p, rng, site, offsets = _dropout(device, 768)
    return [Call(draws.dropout_mask_into, offsets, p, rng, site, results=(out,))]
