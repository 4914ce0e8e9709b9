"""Whole rounds: this package against Hugging Face's BertModel and our reference.

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

from benchmarks.cases import round_variants as names
from benchmarks.cases.round_variants import BF16_PEER, FP32_PEER, REFERENCE, config_of
from benchmarks.harness.benchmark import Absent, Benchmark
from benchmarks.harness.check import WrongResult
from benchmarks.harness.machine import bf16_over_fp32
from benchmarks.harness.measure import Budget, CaptureFailed
from benchmarks.harness.rounds import (
    CAPTURE_FAILED,
    RUN_ROUNDS,
    SBRRT,
    SIGHTS,
    Rounds,
    build_model,
    build_ours,
)
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import Case, models
from benchmarks.peers.optional import hugging_face_round

CHECKED = "round-2"  # 2 examples a task
TOLERANCE = {"fp32": 2e-3, "tf32": 1e-2, "bf16": 5e-2}
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


def build(
    name: str,
    rounds: Rounds,
    device: torch.device,
    p: float = 0.1,
    log: Callable[[str], object] = print,
    graphs: bool = True,
    trainee=None,
    is_one_batch: bool = False,
):
    """A function of (batches, index) that trains one round of a variant; its terms.

    Args:
        trainee: what a peer trains; fresh if None. is_one_batch: how it pads a joint round.
    """
    if not names.is_peer(name):
        config = config_of(name)
        config = replace(config, graphs=config.graphs and graphs)
        return build_ours(rounds.encoder(), config, device, p, log=log).round
    peers = hugging_face_round()
    form = replace(peers.Form.of(name.split()[1:]), is_one_batch=is_one_batch)
    peer = peers.HuggingFaceRound(trainee or fresh_trainee(rounds, device, p), form)
    return lambda batches, index: peer.round(batches)


def fresh_trainee(rounds: Rounds, device: torch.device, p: float):
    """What peers train, with the weights that all variants begin with."""
    model = build_model(rounds.encoder(), SBRRT, device, p)
    return hugging_face_round().Trainee(model, SBRRT, RUN_ROUNDS)


class Round(Benchmark):
    """One round per call; not from a graph, as a round also works on the host."""

    name, graph = "round", False
    variants = names.ALL  # the most telling first, as time may be short

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._one_batch: dict[tuple[str, str], bool] = {}

    def cases(self):
        for batch in ["round", "round-32"] if self.settings.is_gpu else ["round"]:
            for model in models(self.settings):
                yield Case(model, batch, "", "train")

    def all_variants(self, case: Case) -> list[str]:
        return names.fitting(self.variants, self.settings)

    def budget(self, case: Case) -> Budget:
        budget = self.settings.round_budget
        if case.model == "minilm" or self.settings.is_gpu:
            return budget
        return replace(budget, min_samples=1, max_samples=3, warm_ups=1)

    def share(self, case: Case) -> float:
        """The first case may take the most, the last what is left."""
        cases = list(self.cases())
        return {0: 1.0, 1: 0.7}.get(len(cases) - 1 - cases.index(case), 0.4)

    def tokens(self, case: Case) -> int:
        return Rounds.of(self.settings, case).num_tokens

    def calls(self, case: Case, variant: str, num_sets: int):
        self._leave_out(case, variant)
        rounds, is_one_batch = Rounds.of(self.settings, case), self._is_one_batch(case, variant)
        if self._is_checked(case):
            self._check(case, variant, is_one_batch)
        train, counter = self._train(case, variant, is_one_batch), itertools.count()

        def call():
            index = next(counter)
            return train(rounds[index], index)

        return [call]

    def _train(self, case: Case, variant: str, is_one_batch: bool) -> Callable:
        """Trains a round of a variant that is to be timed."""
        trainee = self._trainee(case) if names.is_peer(variant) else None
        rounds, log = Rounds.of(self.settings, case), partial(self._log, variant)
        return build(
            variant, rounds, self.device, 0.1, log, self.is_captured, trainee, is_one_batch
        )

    def _trainee(self, case: Case):
        """One for all peers of a case."""
        rounds = Rounds.of(self.settings, case)
        return self.once("trainee", case, lambda: fresh_trainee(rounds, self.device, 0.1))

    def _is_one_batch(self, case: Case, variant: str) -> bool:
        """Whether a joint peer is quicker with all tasks padded into one batch.

        It is tried once for every size of a batch, with the first model.
        """
        if not (names.is_peer(variant) and names.is_joint(variant)):
            return False
        key = case.batch, names.precision_of(variant)
        if key not in self._one_batch:
            self._one_batch[key] = self._try_one_batch(case, key[1])
        return self._one_batch[key]

    def _try_one_batch(self, case: Case, precision: str) -> bool:
        peers, batches = hugging_face_round(), Rounds.of(self.settings, case)[0]
        is_one, ratio = peers.is_one_batch_quicker(self._trainee(case), precision, batches)
        way = "one padded batch of all tasks" if is_one else "a padded batch per task"
        self.note(f"{case}: joint rounds of hf {precision} have {way}, {ratio:.2f}x as quick")
        return is_one

    def _log(self, variant: str, line: str) -> None:
        """What a step says of itself; one that cannot be captured is not timed in this process."""
        if CAPTURE_FAILED in line:
            raise CaptureFailed(line)
        self.note(f"{variant}: {line}")

    def _leave_out(self, case: Case, variant: str) -> None:
        """Raises Absent."""
        is_gpu = self.settings.is_gpu
        if self.settings.quick and variant not in (names.QUICK_GPU if is_gpu else names.QUICK):
            raise Absent("a quick run leaves it out")
        if is_gpu:
            return
        if variant in names.GPU_ONLY:
            raise Absent("needs a GPU")
        few = names.FEW
        if has_slow_bf16(self.settings):
            few = tuple(map(names.with_fp32_peer, few))
        if case.model != "minilm" and variant not in few:
            raise Absent(f"{case.model} takes too long on a CPU; see minilm")
        is_low = names.is_peer(variant) and names.precision_of(variant) == "bf16"
        if is_low and has_slow_bf16(self.settings):
            raise Absent(slow_bf16_reason(self.settings))

    def _is_checked(self, case: Case) -> bool:
        return case.model == "minilm" or self.settings.is_gpu

    def _check(self, case: Case, variant: str, is_one_batch: bool) -> None:
        small = replace(case, batch=CHECKED)
        terms, reference = self._terms(small, variant, is_one_batch), f"reference of {case.model}"
        expected = self.once(reference, small, lambda: self._terms(small, REFERENCE))
        self._check_terms(variant, terms, expected, TOLERANCE[names.precision_of(variant)])

    def _check_terms(
        self, variant: str, terms: dict, expected: dict[str, float], tolerance: float
    ) -> None:
        for name, value in expected.items():
            term, kind = terms.get(name), name.partition("/")[2]
            if kind == "loss":
                self._check_loss(variant, name, term, value, tolerance)
            if kind == "smart" and not names.is_plain(variant):
                self._check_smart(variant, name, term, value)

    def _check_loss(
        self, variant: str, name: str, term: float | None, expected: float, tolerance: float
    ) -> None:
        if term is None:
            raise WrongResult(f"{variant}: there is no {name}")
        if not abs(term / expected - 1) < tolerance:
            raise WrongResult(f"{variant}: {name} is {term:.5g}, not {expected:.5g}")

    def _terms(
        self, case: Case, variant: str, is_one_batch: bool = False, p: float = 0.0
    ) -> dict[str, float]:
        """Of a round with dropout p; where steps are captured, of one that is replayed."""
        rounds = Rounds.of(self.settings, case)
        log = partial(self._log, variant)
        train = build(
            variant, rounds, self.device, p, log, self.is_captured, is_one_batch=is_one_batch
        )
        for index in range(SIGHTS if self.settings.is_gpu else 1):
            terms = train(rounds[0], index)
        return {name: value.item() for name, value in terms.items()}

    def _check_smart(self, variant: str, name: str, term: float | None, expected: float) -> None:
        """A peer's R_s need only be there: it moves word embeddings, before their LayerNorm."""
        low, high = (0.0, 1e3) if names.is_peer(variant) else (expected / 2, 2 * expected)
        if term is None:
            raise WrongResult(f"{variant}: there is no {name}")
        if not low < term < high:
            raise WrongResult(f"{variant}: {name} is {term:.3g}, the reference's {expected:.3g}")
