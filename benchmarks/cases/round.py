"""Whole SBRRT rounds: this package against Hugging Face's BertModel and our reference.

Every variant trains on the same few rounds, again and again, in turn. Before that, with dropout
off, its task losses of a smaller round are those of our reference in float32, and so is the size of
our variants' R_s. On a GPU that is the round of that size which a captured step replays first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from benchmarks.harness.benchmark import Absent, Benchmark
from benchmarks.harness.check import WrongResult
from benchmarks.harness.machine import bf16_over_fp32
from benchmarks.harness.measure import Budget, CaptureFailed
from benchmarks.harness.rounds import RUN_ROUNDS, SBRRT, Rounds, build_model, build_ours, sbrrt
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import Case, models
from benchmarks.peers.optional import hugging_face
from sbrrt_fast.config import BregmanConfig, RunConfig, SmartConfig
from sbrrt_fast.training.step.captured_step import CAPTURE_FAILED, SIGHTS

FAST, BF16_PEER, FP32_PEER = "fast bf16", "hf bf16 sdpa", "hf fp32 sdpa"
PEERS = {
    "hf fp32 eager": ("fp32", "eager"),
    FP32_PEER: ("fp32", "sdpa"),
    BF16_PEER: ("bf16", "sdpa"),
    "hf bf16 eager": ("bf16", "eager"),
    "hf bf16 graphs": ("bf16", "sdpa", "graphs"),
    "hf bf16 compile": ("bf16", "sdpa", "default"),
}
GPU_ONLY = ("fast bf16 triton", "fast bf16 cuda", "fast bf16 uncaptured")
OURS = (FAST, f"{FAST} joint", *GPU_ONLY, "fast fp32", "plain bf16", "reference fp32")
CHECKED = "round-2"  # 2 examples a task
TOLERANCE = {"fp32": 2e-3, "bf16": 5e-2}
SLOW = 2.0  # a bf16 product over an fp32 one


def has_slow_bf16(settings: Settings) -> bool:
    """Whether torch only emulates bfloat16 here: peers under autocast take many times as long."""
    return bf16_over_fp32(settings.device) > SLOW


def peer_of(settings: Settings) -> str:
    """The peer that is timed where there is time for one."""
    return FP32_PEER if has_slow_bf16(settings) else BF16_PEER


def slow_bf16_reason(settings: Settings) -> str:
    """Why a peer in bfloat16 is absent."""
    return (
        f"here a bf16 product of torch takes {bf16_over_fp32(settings.device):.0f} times as long"
        f" as one in fp32; see {FP32_PEER}"
    )


def config_of(name: str) -> RunConfig:
    """The run behind one of our variants."""
    kind, precision, *rest = name.split()
    config = sbrrt("joint" if rest == ["joint"] else "per_task", precision)
    if kind == "reference":
        config = replace(config, backend="reference")
    if kind == "plain":
        config = replace(config, smart=SmartConfig(), bregman=BregmanConfig())
    if rest and rest[0] in ("triton", "cuda"):
        config = replace(config, backend=rest[0])
    if rest == ["uncaptured"]:
        config = replace(config, graphs=False)
    return config


def build(
    name: str,
    rounds: Rounds,
    device: torch.device,
    p: float = 0.1,
    log: Callable[[str], object] = print,
    graphs: bool = True,
):
    """A function of (batches, index) that trains one round of a variant; its terms."""
    if name in OURS:
        config = config_of(name)
        config = replace(config, graphs=config.graphs and graphs)
        return build_ours(rounds.encoder(), config, device, p, log=log).round
    peers, model = hugging_face(), build_model(rounds.encoder(), SBRRT, device, p)
    peer = peers.HuggingFaceRound(model, SBRRT, peers.Form(*PEERS[name]), RUN_ROUNDS)
    return lambda batches, index: peer.round(batches)


class Round(Benchmark):
    """One round per call; not from a graph, as a round also works on the host."""

    name, graph = "round", False
    variants = (*OURS, *PEERS)  # the most telling first, as time may be short

    def cases(self):
        for batch in ["round", "round-32"] if self.settings.is_gpu else ["round"]:
            for model in models(self.settings):
                yield Case(model, batch, "", "train")

    def budget(self, case: Case) -> Budget:
        budget = self.settings.round_budget
        if case.model == "minilm" or self.settings.is_gpu:
            return budget
        return replace(budget, min_samples=3, max_samples=3, warm_ups=1)

    def share(self, case: Case) -> float:
        """The first case may take the most, the last what is left."""
        cases = list(self.cases())
        return {0: 1.0, 1: 0.65}.get(len(cases) - 1 - cases.index(case), 0.4)

    def tokens(self, case: Case) -> int:
        return Rounds.of(self.settings, case).num_tokens

    def calls(self, case: Case, variant: str, num_sets: int):
        self._leave_out(case, variant)
        rounds = Rounds.of(self.settings, case)
        if self._is_checked(case):
            self._check(case, variant)
        counter = itertools.count()
        log = partial(self._log, variant)
        train = build(variant, rounds, self.device, log=log, graphs=self.is_captured)

        def call():
            index = next(counter)
            return train(rounds[index], index)

        return [call]

    def _log(self, variant: str, line: str) -> None:
        """What a step says of itself; one that cannot be captured is not timed in this process."""
        if CAPTURE_FAILED in line:
            raise CaptureFailed(line)
        self.note(f"{variant}: {line}")

    def _leave_out(self, case: Case, variant: str) -> None:
        """Raises Absent."""
        compiles = (*PEERS.get(variant, ("", "")), "no")[2]
        if self.settings.quick and compiles != "no":
            raise Absent("a quick run compiles nothing")
        if self.settings.is_gpu:
            return
        if compiles == "graphs" or variant in GPU_ONLY:
            raise Absent("needs a GPU")
        if compiles != "no":
            raise Absent("a CPU's lengths change every round, past torch's limit of recompilations")
        few = FAST, f"{FAST} joint", peer_of(self.settings)
        if case.model != "minilm" and variant not in few:
            raise Absent(f"{case.model} takes too long on a CPU; see minilm")
        if self.settings.quick and variant == "hf bf16 eager":
            raise Absent("a quick run leaves it out")
        if variant in PEERS and "bf16" in variant and has_slow_bf16(self.settings):
            raise Absent(slow_bf16_reason(self.settings))

    def _is_checked(self, case: Case) -> bool:
        return case.model == "minilm" or self.settings.is_gpu

    def _check(self, case: Case, variant: str) -> None:
        small = replace(case, batch=CHECKED)
        terms, reference = self._terms(small, variant), f"reference of {case.model}"
        expected = self.once(reference, small, lambda: self._terms(small, "reference fp32"))
        for name, value in expected.items():
            self._check_term(variant, name, terms.get(name), value)

    def _check_term(self, variant: str, name: str, term: float | None, expected: float) -> None:
        tolerance = TOLERANCE[variant.split()[1]]
        if name.endswith("/loss") and term is None:
            raise WrongResult(f"{variant}: there is no {name}")
        if name.endswith("/loss") and not abs(term / expected - 1) < tolerance:
            raise WrongResult(f"{variant}: {name} is {term:.5g}, not {expected:.5g}")
        if name.endswith("/smart") and term is not None:
            self._check_smart(variant, name, term, expected)

    def _terms(self, case: Case, variant: str) -> dict[str, float]:
        """Of a round without dropout; where steps are captured, of one that is replayed."""
        rounds = Rounds.of(self.settings, case)
        log = partial(self._log, variant)
        train = build(variant, rounds, self.device, 0.0, log, self.is_captured)
        for index in range(SIGHTS if self.settings.is_gpu else 1):
            terms = train(rounds[0], index)
        return {name: value.item() for name, value in terms.items()}

    def _check_smart(self, variant: str, name: str, term: float, expected: float) -> None:
        """A peer's R_s need only be there: it moves word embeddings, before their LayerNorm."""
        is_right = expected / 2 < term < 2 * expected if variant in OURS else 0 < term < 1e3
        if not is_right:
            raise WrongResult(f"{variant}: {name} is {term:.3g}, the reference's {expected:.3g}")
