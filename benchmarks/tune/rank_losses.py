"""The losses of one run on several ranks beside those on one, round by round.

    python -m benchmarks.tune.rank_losses --data-dir DATA --ranks 1 2 4 --rounds 60

Ranks are gloo processes on this CPU. Printed are, over all tasks, the largest relative difference
of a task's loss and of its total in the first 50 rounds and in those after them. Terms that are
rounding at first (D_Breg of a teacher that has not moved) are in the total alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sbrrt_fast.training.logging import LINES, read_log

FIRST = 50  # rounds
VARIANTS = {
    "adversarial, per task": ["--smart.preset", "adversarial"],
    "adversarial, joint": ["--smart.preset", "adversarial", "--round.update", "joint"],
    "paper, per task": ["--smart.preset", "paper", "--smart.radius", "None"],
    "mtdnn, joint": [
        "--smart.preset",
        "mtdnn",
        "--smart.radius",
        "None",
        "--round.update",
        "joint",
    ],
    "padded reference, joint": [
        *("--layout", "padded", "--backend", "reference", "--round.update", "joint"),
    ],
    "batch of 7": ["--round.batch-size", "7", "--round.update", "joint"],
    "batch of 3": ["--round.batch-size", "3"],
}


# Dropout, whose masks ranks must agree on, and one rate for the encoder and its heads.
_MASKED = [
    *("--model.hidden-dropout", "0.1", "--model.attention-dropout", "0.1"),
    *("--optimizer.learning-rate", "1e-4", "--optimizer.head-learning-rate", "1e-4"),
]


@dataclass(frozen=True)
class Settings:
    """Of all runs.

    Attributes:
        config: a recipe. data_dir: of the tasks. rounds: of each run. threads: of each rank.
    """

    config: str
    data_dir: str
    rounds: int
    threads: int


def losses(num_ranks: int, flags: Sequence[str], settings: Settings) -> list[dict[str, float]]:
    """Each round's losses and totals."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [*_launcher(num_ranks), "-m", "sbrrt_fast", "train", "--config", settings.config]
        command += ["--precision", "fp32", "--data-dir", settings.data_dir, "--output", str(output)]
        command += _MASKED
        command += ["--rounds", str(settings.rounds), "--log.every", "1", "--log.dev-rows", "8"]
        command += ["--skip-final-evaluation", "--log.no-tensorboard", "--log.no-keep-state"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
        done = subprocess.run([*command, *flags], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        lines = [line for line in read_log(output / LINES) if "gradient_norm" in line]
    return [{n: v for n, v in line.items() if n.endswith(("/loss", "/total"))} for line in lines]


def _launcher(num_ranks: int) -> list[str]:
    if num_ranks == 1:
        return [sys.executable]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    return [sys.executable, "-m", *torchrun]


def largest_difference(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> str:
    """Relative, over all rounds and terms, and where it is."""
    pairs = enumerate(zip(ours, theirs, strict=True), 1)
    found = [(abs(a[n] - b[n]) / abs(b[n]), n, i) for i, (a, b) in pairs for n in b]
    value, name, number = max(found, default=(0.0, "", 0))
    return f"{value:.1e} {name} {number}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="configs/sbrrt.yaml")
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=FIRST + 10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args(argv)
    settings = Settings(args.config, args.data_dir, args.rounds, args.threads)
    first, *others = args.ranks
    print(f"{'':28}ranks   {f'rounds 1 to {FIRST}: term, round':26}after")
    for name in args.variants:
        expected = losses(first, VARIANTS[name], settings)
        for count in others:
            found = losses(count, VARIANTS[name], settings)
            before, after = (
                largest_difference(found[rounds], expected[rounds])
                for rounds in (slice(FIRST), slice(FIRST, None))
            )
            print(f"{name:28}{count:5}   {before:26}{after}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
