"""Rounds per second on 1 to 64 GPUs by arithmetic: bytes, messages, waiting; nothing is measured.

    python -m benchmarks.tune.scaling [--model bert-base] [--update joint] [--batch 32] [--gpus 1 8]
    python -m benchmarks.tune.scaling --plot docs/figures/scaling.png
    python -m benchmarks.tune.scaling --sharded     # what a sharded update would save
    python -m benchmarks.tune.scaling --network 25e9 --nvlink 300e9 --bucket 10e6

``scaling_model`` says what is counted, ``scaling_links`` where the links' figures come from. Strong
scaling shares a round's examples out; weak scaling gives every GPU as many.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.harness.machine import Machine
from benchmarks.harness.shapes import MODELS
from benchmarks.harness.text import markdown_table
from benchmarks.tune.kernel_count import UPDATES
from benchmarks.tune.scaling_links import Links
from benchmarks.tune.scaling_messages import SUM_BYTES
from benchmarks.tune.scaling_model import H200, PRECISION, Setup, efficiency, predict
from benchmarks.tune.sharded_update import sharded
from sbrrt_fast.experiments.plots import save_figure
from sbrrt_fast.training.step.gradient_sums import BUCKET_BYTES

GPUS = (1, 2, 4, 8, 16, 32, 64)
BATCHES = (8, 32, 256)
STRONG, WEAK = "strong", "weak"
HEAD = ("GPUs", "MB", "messages", "compute, ms", "waiting, ms", "rounds/s", "efficiency")
SHARDED = (
    "GPUs",
    "update",
    "sharded",
    "waiting",
    "sharded",
    "gathers",
    "hidden",
    "saves",
    "at best",
)


def title(setup: Setup) -> str:
    batch = f"{setup.num_examples} examples a task" + (" and GPU" if setup.grows else "")
    return f"{setup.model}, {setup.update.replace('_', ' ')}, {batch}"


def lines_of(setup: Setup, gpus: Sequence[int]) -> Iterator[str]:
    """Markdown: a row for each number of GPUs."""
    rows = []
    for num_gpus in gpus:
        p = predict(setup, num_gpus)
        times = [f"{1e3 * p.compute:.2f}", f"{1e3 * p.exposed:.2f}", f"{1 / p.seconds:.0f}"]
        sent = [f"{p.num_bytes / 1e6:.0f}", str(p.num_messages)]
        rows.append([str(num_gpus), *sent, *times, f"{efficiency(setup, num_gpus):.0%}"])
    yield from (f"### {title(setup)}", "", *markdown_table(HEAD, rows), "")


def overview(setups: Sequence[Setup], gpus: Sequence[int]) -> Iterator[str]:
    """Markdown: the efficiency of all."""
    rows = []
    for setup in setups:
        name = [setup.model, setup.update.replace("_", " "), WEAK if setup.grows else STRONG]
        shown = [f"{efficiency(setup, num_gpus):.0%}" for num_gpus in gpus]
        rows.append([*name, str(setup.num_examples), *shown])
    yield from markdown_table(("model", "update", "batch", "examples", *map(str, gpus)), rows)


def sharded_lines(setup: Setup, gpus: Sequence[int]) -> Iterator[str]:
    """Markdown: milliseconds of a round with and without a sharded update."""
    rows = []
    for num_gpus in gpus:
        s = sharded(setup, num_gpus)
        seconds = (*s[:6], s.gain, s.most_gain)
        rows.append([str(num_gpus), *(f"{1e3 * x:.2f}" for x in seconds)])
    memory = f"{sharded(setup, max(gpus)).saved_bytes / 1e9:.2f} GB"
    yield from (f"### {title(setup)}: ms of a round; {memory} of memory saved", "")
    yield from (*markdown_table(SHARDED, rows), "")


def draw(setups: Sequence[Setup], gpus: Sequence[int]) -> Figure:
    """Efficiency against GPUs: a panel for each model and kind of scaling."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    models = list(dict.fromkeys(setup.model for setup in setups))
    panels = list(product(models, (False, True)))
    rows = figure.subplots(len(models), 2, sharex=True, sharey=True, squeeze=False)
    for axes, (model, grows) in zip(rows.ravel(), panels, strict=True):
        for setup in (s for s in setups if (s.model, s.grows) == (model, grows)):
            style = "-" if setup.update == "joint" else "--"
            label = f"{setup.num_examples}, {setup.update.replace('_', ' ')}"
            colour = f"C{BATCHES.index(setup.num_examples) if setup.num_examples in BATCHES else 9}"
            points = [efficiency(setup, num_gpus) for num_gpus in gpus]
            axes.plot(gpus, points, style, marker="o", markersize=4, color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.set(ylim=(0, 1.05), title=f"{model}, {'weak' if grows else 'strong'} scaling")
        axes.set_xticks(gpus, map(str, gpus))
        axes.grid(True, alpha=0.3)
    for axes in rows[-1]:
        axes.set_xlabel("GPUs")
    for axes in rows[:, 0]:
        axes.set_ylabel("efficiency")
    handles, labels = rows[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title="examples a task",
        loc="outside lower center",
        ncols=3,
        fontsize="small",
    )
    return figure


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    gpu = Machine({PRECISION: args.flops}, args.bandwidth, args.kernel)
    links = Links(args.nvlink, args.network, args.per_node)
    kinds = product(args.model, args.update, [kind == WEAK for kind in args.scaling], args.batch)
    setups = [
        Setup(model, update, batch, grows, gpu, links, args.bucket, args.sum_bytes)
        for model, update, grows, batch in kinds
    ]
    if args.sharded:
        several = [n for n in args.gpus if n > 1]
        print(*(line for setup in setups for line in sharded_lines(setup, several)), sep="\n")
        return
    print(*(line for setup in setups for line in lines_of(setup, args.gpus)), sep="\n")
    print(*overview(setups, args.gpus), sep="\n")
    if args.plot:
        save_figure(draw(setups, args.gpus), args.plot)


def parser() -> argparse.ArgumentParser:
    known = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    known.add_argument("--update", choices=UPDATES, nargs="+", default=["joint", "per_task"])
    known.add_argument("--scaling", choices=(STRONG, WEAK), nargs="+", default=[STRONG, WEAK])
    known.add_argument("--batch", type=int, nargs="+", default=BATCHES, help="examples a task")
    known.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    known.add_argument(
        "--flops", type=float, default=H200.flops[PRECISION], help="per second, bf16"
    )
    known.add_argument("--bandwidth", type=float, default=H200.bytes, help="bytes per second")
    known.add_argument("--kernel", type=float, default=H200.launch, help="seconds of the smallest")
    known.add_argument("--nvlink", type=float, default=Links.nvlink, help="bytes/s of a GPU")
    known.add_argument("--network", type=float, default=Links.network, help="bytes/s of a GPU")
    known.add_argument("--per-node", type=int, default=Links.per_node, help="GPUs of a node")
    known.add_argument(
        "--bucket", type=float, default=BUCKET_BYTES, help="bytes of gradients in a message"
    )
    known.add_argument("--sum-bytes", type=int, default=SUM_BYTES, help="of an element of matrices")
    known.add_argument("--sharded", action="store_true", help="what a sharded update would save")
    known.add_argument("--plot", type=Path, help="a PNG of the efficiencies")
    return known


if __name__ == "__main__":
    main()
