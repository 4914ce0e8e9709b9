"""What making a torch op of a Triton kernel's host function costs per call.

The function has attention's signature and launches nothing: what remains over ``plain`` is the
registration's. ``library`` is what ``ops._backend.library`` uses.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, int max_length, int num_heads, "
    "float p, Tensor rng, int site, Tensor rows, int max_positions, Tensor(a!) out, "
    "Tensor(b!) logsumexp) -> ()"
)


def host(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    max_length: int,
    num_heads: int,
    p: float,
    rng: Tensor,
    site: int,
    rows: Tensor,
    max_positions: int,
    out: Tensor,
    logsumexp: Tensor,
) -> None:
    pass


RESULTS = "out", "logsumexp"
LIBRARY = torch.library.Library("sbrrt_bench", "DEF")
LIBRARY.define(f"library{SCHEMA}")
LIBRARY.impl("library", host, "CPU")
WAYS = {
    "plain": host,
    "library": torch.ops.sbrrt_bench.library,
    "custom_op": torch.library.custom_op("sbrrt_bench::custom", host, mutates_args=RESULTS),
    "triton_op": torch.library.triton_op("sbrrt_bench::triton", host, mutates_args=RESULTS),
}
MATRIX, ROW = torch.randn(8, 64), torch.zeros(1, dtype=torch.int64)
STARTS, RNG = torch.tensor([0, 8], dtype=torch.int32), torch.zeros(2, dtype=torch.int64)
OUT, LOGSUMEXP = torch.empty(8, 64), torch.empty(8, 2)
ARGUMENTS = (MATRIX, MATRIX, MATRIX, STARTS, 8, 2, 0.1, RNG, 3, ROW, 512, OUT, LOGSUMEXP)


@pytest.mark.parametrize("way", WAYS)
def test_call(benchmark, way):
    call = WAYS[way]
    with torch.no_grad():
        assert call(*ARGUMENTS) is None
        benchmark(lambda: call(*ARGUMENTS))
