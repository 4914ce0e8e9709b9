"""Every shape class of ``kernels.launch_table``: the calls that launch it, the constants to try.

Calls are host functions on the trainer's shapes, bfloat16 with dropout; on the ``meta`` device they
only tell what would be launched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch

from sbrrt_fast.kernels import (
    adamw_ema,
    adamw_rows,
    attention,
    dropout_mask,
    embed,
    gelu,
    layernorm,
    rows,
    smart_ascend,
    smart_noise,
)
from sbrrt_fast.kernels.launch_table import TABLE

TOKENS = 712  # of a joint round
DROPOUT_P, SITE, EPS = 0.1, 2, 1e-12
WARPS = {"num_warps": (1, 2, 4, 8)}
Call = Callable[[], object]


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
        matrices = fused.split(12 * head_dim, dim=1)
        if direction == "forward":
            calls.append(partial(attention.forward, *matrices, *batch))
            continue
        out, logsumexp = attention.forward(*matrices, *batch)
        found = {
            "backward": partial(attention.backward, out, *matrices, out, logsumexp, *batch),
            "jvp": partial(attention.jvp, *matrices, *matrices, logsumexp, *batch),
        }
        calls.append(found[direction])
    return calls


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
    forward = partial(layernorm.forward, *row, vector, EPS, *dropout)
    if way == "forward":
        return [forward]
    _, mean, rstd = forward()
    kept = *row, mean, rstd, *dropout
    if way == "jvp":
        return [partial(layernorm.jvp, x, residual, *kept)]
    return [partial(layernorm.backward, residual, *kept, needed) for needed in (True, False)]


def _embed(way: str, width: int, device: torch.device) -> list[Call]:
    word, grad = (torch.randn(n, width, device=device) for n in (30522, TOKENS))
    ids = torch.arange(TOKENS, device=device) * 41 % 30522
    positions, types = ids % 128, ids % 2
    places = ids, positions, types, word, word[:512], word[:2], grad[0]
    dropout = _dropout(device, width)
    forward = partial(embed.forward, *places, grad[0], EPS, *dropout)
    if way == "forward":
        return [forward]
    _, mean, rstd = forward()
    return [partial(embed.backward, grad, *places, mean, rstd, *dropout, [True] * 5)]


def _adamw_rows(width: int, device: torch.device) -> list[Call]:
    table = [torch.zeros(30522, width, device=device) for _ in range(4)]
    rows_found = torch.arange(TOKENS, device=device) * 41
    touched = torch.zeros(30522, dtype=torch.bool, device=device)
    grad, one = torch.randn(TOKENS, width, device=device), torch.ones((), device=device)
    state = table[0], grad, rows_found, touched, *table[1:]
    return [partial(adamw_rows.adamw_ema_rows_, *state, one, 0.1, 0.9, 0.999, 1e-8, one, one, 0.9)]


def _smart_ascend(width: int, device: torch.device) -> list[Call]:
    delta = torch.randn(TOKENS, width, device=device)
    sequence = torch.arange(TOKENS, device=device) // 18
    batch = delta, delta, sequence >= 0, sequence, TOKENS // 18 + 1
    settings = (1e-3, True, "ball", 1e-5, "inf"), (1.0, True, "normalize", 1.0, "2")
    levels = ("token", "sequence")
    return [
        partial(smart_ascend.smart_ascend, *batch, *chosen, level)
        for chosen, level in product(settings, levels)
    ]


def _other_classes() -> Iterator[tuple[str, ShapeClass]]:
    tiles = {"ROWS": (8, 16, 32), "COLUMNS": (128, 256, 512), "num_warps": (4, 8)}
    yield "gelu forward", ShapeClass(partial(_gelu, "forward"), tiles)
    yield "gelu change", ShapeClass(partial(_gelu, "change"), tiles)
    noise = {"ROWS": (1, 2, 4), "COLUMNS": (128, 256)} | WARPS
    yield "smart_noise", ShapeClass(_smart_noise, noise)
    table = {"TOKENS": (16, 32, 64), "COLUMNS": (64, 128, 256)} | WARPS
    yield "embed table", ShapeClass(partial(_embed, "backward", 768), table)
    sums = {"ROWS": (16, 32, 64), "COLUMNS": (32, 64, 128)} | WARPS
    yield "column sums", ShapeClass(_column_sums, sums)
    blocks = {"BLOCK": (512, 1024, 2048, 4096), "num_warps": (4, 8)}
    yield "adamw_ema_", ShapeClass(partial(_adamw, "adamw_ema_"), blocks)
    yield "gradient_norm", ShapeClass(partial(_adamw, "gradient_norm"), blocks)
    yield "dropout_mask", ShapeClass(_dropout_mask, blocks)


def _gelu(way: str, device: torch.device) -> list[Call]:
    calls = []
    for width in (1536, 3072):
        x = torch.randn(TOKENS, width, device=device).bfloat16()
        bias = torch.randn(width, device=device)
        changes = (
            partial(gelu.backward, x, x, bias, True),
            partial(gelu.backward, x, x, bias, False),
            partial(gelu.jvp, x, x, bias),
        )
        calls += [partial(gelu.forward, x, bias)] if way == "forward" else changes
    return calls


def _smart_noise(device: torch.device) -> list[Call]:
    _, rng, _, offsets = _dropout(device, 768)
    return [partial(smart_noise.smart_noise, offsets, width, rng, SITE) for width in (384, 768)]


def _column_sums(device: torch.device) -> list[Call]:
    """Partial sums of a round's LayerNorm backward and of its GELU backward."""
    shapes = (178, 3, 768), (45, 1, 3072)
    partials = [torch.randn(shape, device=device) for shape in shapes]
    return [partial(rows.column_sums, x, *[x[0, 0]] * x.shape[1]) for x in partials]


def _adamw(op: str, device: torch.device) -> list[Call]:
    """A layer of bert-base: matrices and vectors."""
    shapes = [(768, 768)] * 4 + [(3072, 768)] * 2 + [(768,)] * 8
    lists = [[torch.zeros(shape, device=device) for shape in shapes] for _ in range(5)]
    if op == "gradient_norm":
        return [partial(adamw_ema.gradient_norm, lists[0])]
    copies, averages = ([x.bfloat16() for x in lists[0]] for _ in range(2))
    one = torch.ones((), device=device)
    numbers = one, [0.01] * len(shapes), 0.9, 0.999, 1e-8, one, one, 0.99
    return [partial(adamw_ema.adamw_ema_, *lists, copies, averages, *numbers)]


def _dropout_mask(device: torch.device) -> list[Call]:
    p, rng, site, offsets = _dropout(device, 768)
    return [partial(dropout_mask.dropout_mask, offsets, 768, p, rng, site, torch.bfloat16)]
