"""The most memory that rounds of one variant of ``bench_round`` take, as one line of JSON.

    python -m benchmarks.memory "fast bf16"

It runs in a process of its own, as memory that was freed is not always given back. ``total`` counts
from before the model is built; ``state`` is what training cannot do without, weights, two moments
and the teacher in float32; ``round`` is the rest: activations, gradients, copies, and what the
allocator holds on to.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path

import torch

from benchmarks.bench_round import build
from benchmarks.rounds import Rounds
from benchmarks.settings import settings
from benchmarks.shapes import MODELS, Case
from sbrrt_fast.model.bert import MiniBert

NUM_ROUNDS, BYTES_OF_STATE = 3, 16
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _status(name: str) -> int:
    """Bytes, from Linux's account of this process."""
    return 1024 * int(re.search(rf"^{name}:\s+(\d+)", STATUS.read_text(), re.MULTILINE)[1])


def measure(variant: str, model: str = "minilm") -> dict[str, int]:
    """Of some rounds; the teacher's and the optimiser's state are there from the first one on."""
    chosen = settings()
    rounds = Rounds(chosen, Case(model, "round", "", "train"))
    prepared = [rounds[i] for i in range(NUM_ROUNDS)]
    with torch.device("meta"):
        count = sum(p.numel() for p in MiniBert(MODELS[model], pooling="mean").parameters())
    before = 0 if chosen.is_gpu else _status("VmRSS")
    train = build(variant, rounds, chosen.device)
    gc.collect()
    if not chosen.is_gpu:
        CLEAR.write_text("5")  # the high-water mark begins anew
    for index, batches in enumerate(prepared):
        train(batches, index)
    peak = torch.cuda.max_memory_allocated() if chosen.is_gpu else _status("VmHWM")
    state = BYTES_OF_STATE * count
    return {"total": peak - before, "state": state, "round": peak - before - state}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
