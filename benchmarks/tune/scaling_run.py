"""Rounds of 1, 2 and 4 processes on this machine's CPU: work, waiting, bytes, and the same losses.

    python -m benchmarks.tune.scaling_run [--ranks 1 2 4] [--batch 8] [--update joint] [--rounds 10]
    python -m benchmarks.tune.scaling_run --data-dir DIR --precision bf16

Each run is one of torch.distributed.run, over gloo, on SBRRT rounds of MiniLM with dropout; without
``--data-dir`` on the built-in sample. All processes have the same number of threads. The global
batch is the same for all, so that the losses must be. Work is the time that the process's first
thread was on a core, which others on the machine change little; waiting, in sums over ranks, is
time that passed. Figures are medians over rounds, of each rank where there are several; the last
column is the largest relative difference of a task's loss in any round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.harness.results import write_json
from benchmarks.harness.rounds import backbone, build_model, sbrrt, training_parts
from benchmarks.harness.text import markdown_table
from benchmarks.tune.counting_ranks import CountingRanks
from benchmarks.tune.kernel_count import UPDATES
from sbrrt_fast.config import RunConfig
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.model.backbone import resolve_backbone
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.training.build import build_step, load_splits
from sbrrt_fast.training.ranks.process_group import connect, disconnect
from sbrrt_fast.training.round_robin import RoundRobin
from sbrrt_fast.training.shares import RoundShares
from sbrrt_fast.training.step.group import tokens_by_task

WARM_UPS = 2
TIMEOUT = 300.0
COLUMNS = {"tokens": 1.0, "work": 1e3, "waiting": 1e3}
HEAD = (
    "processes", "round, ms", "tokens", "work, ms", "waiting, ms", "messages", "MB",
    "ranks alike", "from one process",
)  # fmt: skip


def config_of(args: argparse.Namespace) -> RunConfig:
    config = sbrrt(args.update, args.precision)
    order = replace(config.round, batch_size=args.batch)
    return replace(config, round=order, data_dir=args.data_dir, device="cpu")


def train(args: argparse.Namespace, ranks: CountingRanks) -> list[dict]:
    """A record of each round on this rank; losses are there, not only on their way."""
    config, folder = config_of(args), resolve_backbone(backbone())
    encoder = MiniBert.from_folder(folder, pooling=config.model.pooling)
    longest = encoder.config.max_position_embeddings
    tasks = load_splits(config, load_tokenizer(folder), "train", longest, lambda line: None)
    num_rounds = WARM_UPS + args.rounds
    parts = training_parts(build_model(encoder, config, torch.device("cpu"), 0.1), config)
    step = build_step(*parts, config, num_rounds, lambda line: None, ranks=ranks)
    step.model.train()
    sizes = {name: task.num_examples for name, task in tasks.items()}
    order = RoundRobin(sizes, config.round, config.seed, num_rounds)
    shares, cursor, records = RoundShares(tasks, config, ranks), order.start(), []
    for index in range(num_rounds):
        ranks.clear()
        start, worked = time.perf_counter(), time.thread_time()
        batches, cursor = order.next_round(cursor)
        works = shares.works(batches)
        terms = step.round_of(works, index)
        records.append(
            {
                "seconds": time.perf_counter() - start,
                "work": time.thread_time() - worked,
                "waiting": ranks.seconds,
                "num_messages": ranks.num_messages,
                "num_bytes": ranks.num_bytes,
                "tokens": sum(tokens_by_task(b for w in works for b in w.batches).values()),
                "terms": {name: value.item() for name, value in terms.items()},
            }
        )
    return records


def work(args: argparse.Namespace) -> None:
    """One rank; the first writes the records of all."""
    ranks = CountingRanks(connect("cpu", TIMEOUT))
    torch.set_num_threads(args.threads)
    records = ranks.gather(train(args, ranks))
    if ranks.is_first:
        write_json(args.worker, records)
    disconnect()


def run(arguments: Sequence[str], num_ranks: int) -> list[list[dict]]:
    """The records of each rank, in processes of their own.

    Raises:
        SystemExit: they failed; what they said was printed.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "records.json"
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
        worker = ["-m", "benchmarks.tune.scaling_run", "--worker", str(path), *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}  # until a worker sets --threads
        done = subprocess.run([sys.executable, "-m", *launcher, *worker], env=environment)
        if done.returncode:
            raise SystemExit(f"scaling_run: {num_ranks} processes ended with {done.returncode}")
        return json.loads(path.read_text(encoding="utf-8"))


def row(ranks: list[list[dict]], one: list[dict]) -> list[str]:
    """Cells of one run; ``one`` has the records of a single process."""
    timed = [records[WARM_UPS:] for records in ranks]
    seconds = median(record["seconds"] for record in timed[0])
    return [
        str(len(ranks)),
        f"{1e3 * seconds:.0f}",
        *(_medians(timed, name, factor) for name, factor in COLUMNS.items()),
        f"{median(r['num_messages'] for r in timed[0]):.0f}",
        f"{median(r['num_bytes'] for r in timed[0]) / 1e6:.1f}",
        "yes" if all(terms_of(records) == terms_of(ranks[0]) for records in ranks) else "NO",
        f"{largest_difference(ranks[0], one):.1e}" if len(ranks) > 1 else "-",
    ]


def terms_of(records: list[dict]) -> list[dict[str, float]]:
    return [record["terms"] for record in records]


def largest_difference(records: list[dict], others: list[dict]) -> float:
    """Over all rounds and tasks, of a task's whole loss, relative."""
    return max(
        abs(a[name] - b[name]) / abs(a[name])
        for a, b in zip(terms_of(records), terms_of(others), strict=True)
        for name in a
        if name.endswith("/total")
    )


def _medians(ranks: list[list[dict]], name: str, factor: float) -> str:
    """One for each rank."""
    return " ".join(f"{factor * median(r[name] for r in records):.0f}" for records in ranks)


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser().parse_args(arguments)
    if args.worker:
        work(args)
        return
    counts = sorted({1, *args.ranks})
    records = {count: run(arguments, count) for count in counts}
    rows = [row(records[count], records[1][0]) for count in counts]
    print(*markdown_table(HEAD, rows), sep="\n")
    if args.records:
        write_json(args.records, {str(count): records[count] for count in counts})


def parser() -> argparse.ArgumentParser:
    known = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known.add_argument("--ranks", type=int, nargs="+", default=(1, 2, 4), help="processes")
    known.add_argument("--batch", type=int, default=8, help="examples a task, of all ranks")
    known.add_argument("--update", choices=UPDATES, default="joint")
    known.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    known.add_argument("--rounds", type=int, default=10, help="timed, after two that are not")
    known.add_argument("--threads", type=int, default=1, help="of each process")
    known.add_argument("--data-dir", type=Path, help="the task files; the built-in sample if none")
    known.add_argument("--records", type=Path, help="a JSON file of all rounds of all ranks")
    known.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return known


if __name__ == "__main__":
    main()
