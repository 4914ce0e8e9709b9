"""The sweep: sizes that take turns, as many tokens at every length, one model for all sizes."""

from __future__ import annotations

import pytest
import torch

from benchmarks import suite
from benchmarks.cases.adamw_ema import SMALL
from benchmarks.cases.round_variants import FAST, JOINT
from benchmarks.cases.sweep import BATCHES, LENGTHS, Sweep
from benchmarks.harness.benchmark import Absent
from benchmarks.harness.rounds import Rounds
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import MODELS, Case

SETTINGS = Settings(torch.device("cpu"), quick=False)


def case_of(batch: str) -> Case:
    return Case("minilm", batch, "", "train")


def test_all_sizes_take_turns():
    ((benchmark, cases),) = suite.turns_of("sweep", SETTINGS)
    assert benchmark.is_interleaved and len(cases) == len(BATCHES) + len(LENGTHS)
    ((_, few),) = suite.turns_of("sweep", SETTINGS, only="tokens-")
    assert [case.batch for case in few] == [f"tokens-{n}" for n in LENGTHS]
    assert all(len(cases) == 1 for _, cases in suite.turns_of("ops", SETTINGS))


def test_every_length_has_the_same_tokens():
    counts = {n: Rounds(SETTINGS, case_of(f"tokens-{n}")).num_tokens for n in LENGTHS}
    assert set(counts.values()) == {2560}


def test_a_sample_of_few_examples_is_several_rounds_of_one_model(monkeypatch):
    monkeypatch.setitem(MODELS, "minilm", SMALL)
    sweep, variant = Sweep(SETTINGS), FAST + JOINT
    calls = {n: sweep.calls(case_of(f"round-{n}"), variant, 1) for n in (32, 8)}
    assert {n: len(x) for n, x in calls.items()} == {32: 1, 8: 4}
    _, count = sweep._shared[variant]
    for call in (calls[32][0], *calls[8]):
        call()
    assert next(count) == 5  # rounds of the one model


def test_a_peer_has_no_place_in_a_cpus_sweep():
    with pytest.raises(Absent, match="see the round"):
        Sweep(SETTINGS).calls(case_of("round-8"), "hf bf16 sdpa", 1)
