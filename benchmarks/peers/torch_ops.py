"""Ways to run an op that torch's users have: eager, torch.compile, SDPA's backends."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch_config
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.harness.benchmark import Absent
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import Case
from benchmarks.peers.compiled import compiled as compile_whole

SDPA_BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
}


def compiled(function: Callable, settings: Settings, case: Case) -> Callable:
    """torch.compile's default mode, with sizes that may change, as packed batches need.

    On a CPU MiniLM's joint round alone is compiled: it takes 10 seconds for every op and dtype.
    """
    if settings.quick:
        raise Absent("a quick run compiles nothing")
    if not settings.is_gpu and (case.model == "bert-base" or case.batch != "round"):
        raise Absent("on a CPU compiled for MiniLM's joint round alone, as it takes long")
    return _compiled(function)


def eager_or_compiled(name: str, eager: Callable, settings: Settings, case: Case) -> Callable:
    """The function under ``eager``; under ``compile`` what torch.compile makes of it."""
    return compiled(eager, settings, case) if name == "compile" else eager


@cache
def _compiled(function: Callable) -> Callable:
    # A backward that is timed again and again keeps its buffers.
    functorch_config.donated_buffer = False
    return compile_whole(function)


def attention_eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, p: float) -> Tensor:
    """Scores, softmax, dropout, products; [sequence, head, length, dimension]."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~mask, torch.finfo(q.dtype).min)
    return F.dropout(scores.softmax(-1), p, p > 0) @ v


def attention_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, p: float) -> Tensor:
    """What torch chooses by itself."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)


def attention_named(name: str) -> Callable:
    """SDPA with one of its GPU backends; they say themselves what they cannot take."""

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, p: float) -> Tensor:
        try:
            with sdpa_kernel(SDPA_BACKENDS[name]):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        except RuntimeError as error:
            raise Absent(f"torch: {str(error).splitlines()[0]}") from error

    return run
