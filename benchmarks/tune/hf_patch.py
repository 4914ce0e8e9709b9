"""Models of transformers with and without the kernels, in turn, in one process.

    python -m benchmarks.tune.hf_patch [--seconds 300] [--shapes minilm bert-base] [--batch 16]
    python -m benchmarks.tune.hf_patch --work trainer --tasks sst para

Random weights of the two shapes, classification with dropout of 0.1, batches padded as a data
loader pads them: lengths of SST's and Quora's sentences, or ``full``, without padding. ``train`` is
forward, backward and a step of AdamW, ``infer`` a forward in ``inference_mode``, ``trainer`` a step
of transformers' Trainer, with its data loader, clipping and schedule, of several random batches;
fp32, and bf16 by autocast. Stock models run torch's SDPA. Every sample times one call of each, of
the Trainer some steps of each on the same batches, the order alternating; a ratio is the median of
the samples' own ratios, above 1 where the kernels are faster. DEVICE=cuda runs on a GPU.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.harness.lengths import drawn, typical
from benchmarks.harness.machine import environment
from benchmarks.harness.results import leave_result
from benchmarks.harness.text import duration, markdown_table
from sbrrt_fast import apply_sbrrt_kernels, register_sbrrt_attention

SHAPES = {"minilm": (384, 6, 12, 1536), "bert-base": (768, 12, 12, 3072)}
FULL, FULL_LENGTH = "full", 32  # a batch without padding
TASKS = ("sst", "para", FULL)
TRAIN, INFER, TRAINER = WORKS = "train", "infer", "trainer"
STOCK, PATCHED, INTERFACE = "stock", "kernels", "attention"
VARIANTS = STOCK, PATCHED, INTERFACE
HEAD = (
    *("model", "batch", "real tokens", "precision", "what", STOCK, PATCHED),
    *("stock / kernels", "stock / attention alone"),
)
FEWEST, MOST = 3, 41  # samples


@dataclass(frozen=True)
class Case:
    """What is timed: a shape, a task's lengths, a precision, and one of ``WORKS``."""

    shape: str
    task: str
    precision: str
    work: str


def model_of(shape: str, device: str) -> nn.Module:
    """A BERT with random weights of a shape."""
    from transformers import BertConfig, BertForSequenceClassification

    hidden, layers, heads, inner = SHAPES[shape]
    config = BertConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=inner, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    return BertForSequenceClassification(config).to(device)


def variants_of(shape: str, device: str) -> dict[str, nn.Module]:
    """The model as it is, with the kernels, and with the attention alone."""
    stock = model_of(shape, device)
    patched, interface = copy.deepcopy(stock), copy.deepcopy(stock)
    apply_sbrrt_kernels(patched)
    register_sbrrt_attention()
    interface.set_attn_implementation("sbrrt")
    return {STOCK: stock, PATCHED: patched, INTERFACE: interface}


def batch_of(task: str, size: int, device: str) -> dict[str, Tensor]:
    lengths = torch.tensor([FULL_LENGTH] * size if task == FULL else typical(task, size))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.randint(1000, 30000, mask.shape, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.arange(size) % 2}
    return {name: x.to(device) for name, x in inputs.items()}


def call_of(model: nn.Module, inputs: dict[str, Tensor], case: Case) -> Callable[[], None]:
    """One training step, or one forward, that has ended when it returns."""
    device = inputs["input_ids"].device.type
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def forward() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=case.precision == "bf16"):
            return model(**inputs).loss

    def train() -> None:
        model.train()
        forward().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def infer() -> None:
        model.eval()
        with torch.inference_mode():
            forward()

    return train if case.work == TRAIN else infer


def seconds_of(call: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def sample(timed: dict[str, Callable[[], float]], seconds: float) -> dict[str, list[float]]:
    """Times of all calls in turn, each round in the other direction.

    Args:
        timed: calls that return how many seconds they took. seconds: for all samples.
    """
    taken: dict[str, list[float]] = {name: [] for name in timed}
    for call in timed.values():
        call()  # a warm-up
    end, names = time.perf_counter() + seconds, list(timed)
    for number in range(MOST):
        if number >= FEWEST and time.perf_counter() > end:
            break
        for name in names if number % 2 else reversed(names):
            taken[name].append(timed[name]())
    return taken


def ratio(over: list[float], under: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def measured(case: Case, models: dict, size: int, device: str, seconds: float) -> dict:
    """A case's medians and ratios, as JSON values."""
    measure = in_trainer if case.work == TRAINER else in_loop
    taken, real, padded = measure(case, models, size, device, seconds)
    return {
        **vars(case), "size": size, "real": real, "padded": padded,
        "samples": len(taken[STOCK]),
        "seconds": {name: statistics.median(values) for name, values in taken.items()},
        "ratios": {n: ratio(taken[STOCK], values) for n, values in taken.items() if n != STOCK},
    }  # fmt: skip


Measured = tuple[dict[str, list[float]], int, int]  # samples, real tokens, padded tokens


def in_loop(case: Case, models: dict, size: int, device: str, seconds: float) -> Measured:
    """Calls on one batch."""
    inputs = batch_of(case.task, size, device)
    calls = {name: call_of(model, inputs, case) for name, model in models.items()}
    timed = {name: partial(seconds_of, call, device) for name, call in calls.items()}
    mask = inputs["attention_mask"]
    return sample(timed, seconds), int(mask.sum()), mask.numel()


def in_trainer(case: Case, models: dict, size: int, device: str, seconds: float) -> Measured:
    """Steps of transformers' Trainer on several batches; tokens are those of all of them."""
    from benchmarks.tune.hf_trainer import STEPS, num_tokens, rows_of, trainer_of, turn_of

    generator = torch.Generator().manual_seed(0)
    lengths = [FULL_LENGTH] * (size * STEPS)
    if case.task != FULL:
        lengths = [n for _ in range(STEPS) for n in drawn(case.task, size, generator)]
    options = rows_of(lengths), size, case.precision, device
    with tempfile.TemporaryDirectory() as folder:
        trainers = {n: trainer_of(model, *options, Path(folder)) for n, model in models.items()}
        taken = sample({name: turn_of(t) for name, t in trainers.items()}, seconds)
    return taken, *num_tokens(trainers[STOCK])


def row(found: dict) -> list[str]:
    times = [duration(found["seconds"][name]) for name in (STOCK, PATCHED)]
    ratios = [f"{found['ratios'][n]:.2f}" if n in found["ratios"] else "" for n in VARIANTS[1:]]
    batch = f"{found['size']} of {found['task']}"
    tokens = f"{found['real']} of {found['padded']}"
    what = found["precision"], found["work"]
    return [found["shape"], batch, tokens, *what, *times, *ratios]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="for all cases together")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, help="whose lengths")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=[TRAIN, INFER])
    parser.add_argument("--without-attention", action="store_true", help="leaves its column out")
    parser.add_argument("--batch", type=int, default=16, help="sequences")
    args = parser.parse_args(arguments)
    device = os.environ.get("DEVICE", "cpu")
    cases = [
        Case(shape, task, precision, work)
        for shape in args.shapes
        for task in args.tasks
        for precision in ("fp32", "bf16")
        for work in args.work
    ]
    here = environment(torch.device(device), quick=False)
    print(f"{here['hardware']}, {here['threads']} threads, load {here['load']:.1f}", flush=True)
    print(*markdown_table(HEAD, []), sep="\n", flush=True)
    rows, models, shape = [], {}, None
    for case in cases:
        # A Trainer leaves its autocast in a model.
        if case.shape != shape or TRAINER in args.work:
            models, shape = variants_of(case.shape, device), case.shape
            if args.without_attention:
                del models[INTERFACE]
        rows.append(measured(case, models, args.batch, device, args.seconds / len(cases)))
        print("| " + " | ".join(row(rows[-1])) + " |", flush=True)
    leave_result({"environment": here, "hf_patch": rows})


if __name__ == "__main__":
    main()
