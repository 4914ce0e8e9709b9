"""Peak memory of a round, each variant in a process of its own: python -m benchmarks.cases.memory

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

NUM_ROUNDS = 5
VARIANTS = ("reference fp32", "fast fp32", "fast bf16", "fast bf16 joint")


def resident_bytes() -> int:
    """What the process holds now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(variant: str, batch: str, model: str) -> dict:
    """Of one variant, in this process."""
    import torch

    from benchmarks.cases.round import config_of
    from benchmarks.harness.rounds import Rounds, build_ours
    from benchmarks.harness.settings import settings
    from benchmarks.harness.shapes import Case
    from sbrrt_fast.training.cost.profile import peak_bytes

    found = settings()
    rounds = Rounds(found, Case(model, batch, "", "train"))
    batches = [rounds[i] for i in range(NUM_ROUNDS)]
    step = build_ours(rounds.encoder(), config_of(variant), found.device)
    moments = 2 * sum(p.numel() * 4 for p in step.model.parameters() if p.requires_grad)
    if found.is_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resident_bytes()
    for index, batch_of_round in enumerate(batches):
        step.round(batch_of_round, index)
    peak = peak_bytes(found.device)
    return {
        "variant": variant,
        "model": model,
        "batch": batch,
        "round_bytes": peak - before - moments,
        "process_bytes": peak,
    }


def main() -> None:
    """Prints a line a variant; --json prints one variant's figures, for the parent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="minilm", choices=("minilm", "bert-base"))
    parser.add_argument("--batch", default="round", help="round, or round-N for N examples a task")
    parser.add_argument("--json", metavar="VARIANT", choices=VARIANTS)
    args = parser.parse_args()
    if args.json:
        print(json.dumps(measure(args.json, args.batch, args.model)))
        return
    base = None
    for variant in VARIANTS:
        command = [sys.executable, "-m", "benchmarks.cases.memory", "--json", variant]
        command += ["--model", args.model, "--batch", args.batch]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        base = base or row["round_bytes"]
        print(
            f"{variant:16} round {row['round_bytes'] / 2**20:7.0f} MiB "
            f"({row['round_bytes'] / base:.2f}x), process {row['process_bytes'] / 2**20:7.0f} MiB"
        )


if __name__ == "__main__":
    main()
