"""Peak memory of a round, each variant in a process of its own.

    python -m benchmarks.cases.memory [--model minilm] [--batch round]

A round's memory is the most that the process held in its first rounds, less what it held before
them with model, optimiser and teacher built. The moments of AdamW, which every variant makes in its
first round, are left out too. On a GPU it is the allocator's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import torch

from benchmarks.cases.round_variants import config_of
from benchmarks.harness.deadline import Deadline
from benchmarks.harness.rounds import step_and_rounds
from benchmarks.harness.settings import Settings, settings
from benchmarks.harness.shapes import MODELS, Case
from sbrrt_fast.training.cost.profile import peak_bytes

NUM_ROUNDS = 5
VARIANTS = ("reference fp32", "fast fp32", "fast bf16", "fast bf16 joint")
IN_A_RUN = ("fast bf16 joint", "reference fp32", "fast bf16")
LONGEST = 300.0  # seconds of a process


def memory(settings: Settings, until: Deadline) -> Iterator[tuple[str, dict | None]]:
    """Variant and ``memory_of`` it; a quick run on a CPU has none."""
    if settings.is_gpu or not settings.quick:
        for variant in IN_A_RUN:
            limit = min(until.left, LONGEST)
            yield variant, memory_of(variant, settings.device, timeout=limit)


def memory_of(
    variant: str,
    device: torch.device,
    batch: str = "round",
    model: str = "minilm",
    timeout: float | None = None,
) -> dict | None:
    """``measure`` in a process of its own; None where it does not end in time.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "benchmarks.cases.memory", "--json", variant]
    command += ["--model", model, "--batch", batch]
    environment = {**os.environ, "DEVICE": device.type}
    try:
        process = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return None
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {process.stderr.strip().splitlines()[-1]}")
    return json.loads(process.stdout.splitlines()[-1])


def measure(variant: str, batch: str, model: str) -> dict:
    """``round_bytes``, ``process_bytes`` and what they are of, in this process."""
    device = settings().device
    step, rounds = step_and_rounds(settings(), Case(model, batch, "", "train"), config_of(variant))
    batches = [rounds[i] for i in range(NUM_ROUNDS)]
    moments = 2 * sum(p.numel() * 4 for p in step.model.parameters() if p.requires_grad)
    before = held_bytes(device)
    for index, batches_of_round in enumerate(batches):
        step.round(batches_of_round, index)
    peak = peak_bytes(device)
    return {
        "variant": variant,
        "model": model,
        "batch": batch,
        "round_bytes": peak - before - moments,
        "process_bytes": peak,
    }


def held_bytes(device: torch.device) -> int:
    """What this process holds now, on its device; a GPU's peak is counted from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Prints a line a variant; --json prints one variant's figures, for the parent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="minilm", choices=MODELS)
    parser.add_argument("--batch", default="round", help="round, or round-N for N examples a task")
    parser.add_argument("--json", metavar="VARIANT", choices=VARIANTS)
    args = parser.parse_args()
    if args.json:
        print(json.dumps(measure(args.json, args.batch, args.model)))
        return
    base = None
    for variant in VARIANTS:
        figures = memory_of(variant, settings().device, args.batch, args.model)
        base = base or figures["round_bytes"]
        print(
            f"{variant:16} round {figures['round_bytes'] / 2**20:7.0f} MiB "
            f"({figures['round_bytes'] / base:.2f}x), "
            f"process {figures['process_bytes'] / 2**20:7.0f} MiB"
        )


if __name__ == "__main__":
    main()
