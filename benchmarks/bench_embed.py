"""dropout(LN(word + position + type)) at a round's sizes: C++ against what one writes in torch.

Bytes per element forward: three tables read, y written (16). Backward: grad and the tables read,
and the dense gradient of the word table written: 30522 x hidden x 4 bytes, zeros for the most.
``stock`` writes those zeros too.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.op_shapes import EPS, RNG, SHAPES, SITE, P, relative_difference
from sbrrt_fast.ops.embed import embed

NUM_WORDS, NUM_POSITIONS, LENGTH = 30522, 512, 18


def cpp(ids, positions, types, word, position, type_, weight, shift, p):
    offsets = torch.arange(len(ids)) * word.shape[1]
    tables = (word, position, type_)
    norm = (weight, shift, EPS, p, RNG, SITE, offsets)
    return embed(ids, positions, types, *tables, *norm, backend="cpu")


def stock(ids, positions, types, word, position, type_, weight, shift, p):
    total = F.embedding(ids, word) + F.embedding(positions, position) + F.embedding(types, type_)
    return F.dropout(F.layer_norm(total, weight.shape, weight, shift, EPS), p)


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("variant", [cpp, stock], ids=lambda f: f.__name__)
def test_embed(benchmark, variant, part, shape):
    num_tokens, hidden, _ = SHAPES[shape]
    ids = torch.randint(NUM_WORDS, (num_tokens,))
    tokens = [ids, torch.arange(num_tokens) % LENGTH, torch.zeros_like(ids)]
    tables = [torch.randn(n, hidden) for n in (NUM_WORDS, NUM_POSITIONS, 2)]
    leaves = [t.requires_grad_() for t in (*tables, torch.randn(hidden), torch.randn(hidden))]
    grad = torch.randn(num_tokens, hidden)
    results = [f(*tokens, *leaves, 0.0) for f in (variant, stock)]
    assert relative_difference(*results) < 1e-5
    grads = [torch.autograd.grad(y, leaves, grad) for y in results]
    for ours, theirs in zip(*grads, strict=True):
        assert relative_difference(ours, theirs) < 1e-5
    benchmark.group = f"{shape} {part}"
    if part == "forward":
        with torch.no_grad():
            benchmark(variant, *tokens, *leaves, P)
        return
    y = variant(*tokens, *leaves, P)
    benchmark(lambda: torch.autograd.grad(y, leaves, grad, retain_graph=True))
