"""The cost model of several GPUs: what it counts is what a step sends, and its arithmetic."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from benchmarks.harness.machine import Machine
from benchmarks.harness.round_cost import empty_model, num_parameters
from benchmarks.harness.shapes import MODELS
from benchmarks.tune import scaling, scaling_shares
from benchmarks.tune.counting_ranks import CountingRanks
from benchmarks.tune.scaling_links import Links
from benchmarks.tune.scaling_messages import Message, buckets, gradients_of, messages
from benchmarks.tune.scaling_model import H200, PRECISION, Setup, efficiency, predict, wait
from benchmarks.tune.scaling_shares import example_lengths, largest_share
from benchmarks.tune.sharded_update import sharded
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.training.ranks.ranks import OneRank
from sbrrt_fast.training.shares import RoundShares
from sbrrt_fast.training.step import gradient_sums
from sbrrt_fast.training.step.gradient_sums import BUCKET_BYTES
from tests.model.models import CONFIG
from tests.training.ranks.test_shares import TASK_ROWS, batches_of
from tests.training.ranks.threads import ThreadRanks
from tests.training.steps import JOINT, SBRRT, build, captured, written_out

MS, US = 1e-3, 1e-6
SMALL = BertConfig(
    vocab_size=997,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=128,
)
AT_ONCE = Links(nvlink=1e30, network=1e30, collective=0.0, hop=0.0, level=0.0)


@pytest.fixture
def small(monkeypatch) -> str:
    """The name of a model that is counted in a moment."""
    monkeypatch.setitem(MODELS, "small", SMALL)
    return "small"


@pytest.mark.parametrize("update", ["joint", "per_task"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("bucket_bytes", [BUCKET_BYTES, 1])
def test_a_step_sends_what_is_counted(monkeypatch, update, precision, bucket_bytes):
    monkeypatch.setattr(gradient_sums, "BUCKET_BYTES", bucket_bytes)
    config = replace(JOINT if update == "joint" else SBRRT, precision=precision)
    ranks = CountingRanks(ThreadRanks.stub(1, 3))
    step = build(lambda *parts: written_out(*parts, ranks), config)
    works = RoundShares(TASK_ROWS, config, ranks).works(batches_of(config, 0))
    step.round_of(works, 0)
    num_tasks = [len({batch.name for batch in work.batches}) for work in works]
    expected = [
        message
        for work, count in zip(works, num_tasks, strict=True)
        for message in messages(step.passes.grads, len(work.common.words), count, bucket_bytes)
    ]
    assert ranks.num_bytes == sum(message.num_bytes for message in expected)
    assert ranks.num_messages == len(expected)
    num_buckets = CONFIG.num_hidden_layers if bucket_bytes == 1 else 1
    assert len(expected) == len(works) * (num_buckets + 3)
    assert ranks.seconds > 0


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_captured_step_is_filled_up_as_is_counted(monkeypatch, num_ranks):
    """Every rank's share, and with it the words' rows, which all ranks have alike."""
    ranks = CountingRanks(ThreadRanks.stub(0, num_ranks))
    (work,) = RoundShares(TASK_ROWS, JOINT, ranks).works(batches_of(JOINT, 0))
    examples = dict(batches_of(JOINT, 0))
    step = build(lambda *parts: captured(*parts, ranks), JOINT)

    def lengths(task: str, num_examples: int):
        rows = TASK_ROWS[task]
        sizes = rows.starts.diff().reshape(rows.num_examples, -1).sum(1)
        return sizes.numpy()[examples[task]]

    monkeypatch.setattr(scaling_shares, "example_lengths", lengths)
    positions = CONFIG.max_position_embeddings
    share = largest_share.__wrapped__(tuple(examples), 0, 1, num_ranks, positions)
    (group,) = step._part(work.parts[0], work.common)
    filled = group.tokens
    assert filled.num_tokens == share.num_filled
    assert len(filled.words) == min(num_ranks * share.num_filled, CONFIG.vocab_size)


@pytest.mark.parametrize("model", list(MODELS))
def test_every_parameter_travels_once(model):
    """In float32, heads' filled up to 16 bytes each, and with them the loss terms of one task."""
    shape, heads = MODELS[model], empty_model(model).heads
    sent = messages(gradients_of(model, "bf16"), shape.vocab_size)
    *gradients, terms = (message.num_bytes for message in sent)
    filling = sum(-p.numel() % 4 for p in heads.parameters())
    assert sum(gradients) == 4 * (num_parameters(model) + filling)
    assert terms == 4 * 8
    fewer = messages(gradients_of(model, "bf16"), 500)
    left_out = sum(a.num_bytes - b.num_bytes for a, b in zip(sent, fewer, strict=True))
    assert left_out == 4 * shape.hidden_size * (shape.vocab_size - 500)


@pytest.mark.parametrize("num_layers", [1, 5, 12])
@pytest.mark.parametrize("bucket_bytes", [1, 10, 25, 1000])
def test_buckets_hold_every_layer_once(num_layers, bucket_bytes):
    found = buckets(num_layers, 10, bucket_bytes)
    assert [layer for bucket in found for layer in bucket] == list(range(num_layers))
    assert all(10 * len(bucket) >= bucket_bytes for bucket in found[:-1])
    assert all(10 * (len(bucket) - 1) < bucket_bytes for bucket in found)


def test_a_message_waits_for_its_layers_and_for_the_one_before():
    sent = [Message("matrices", 3, 0.5), Message("matrices", 6, 1.0), Message("words", 1, 1.0)]
    assert wait(sent, 10.0, float) == 7.0  # from 5 to 8, 10 to 16, 16 to 17
    assert wait(sent, 2.0, float) == 9.0  # from 1 to 4, 4 to 10, 10 to 11
    assert wait([Message("matrices", 3, 0.5)], 10.0, float) == 0.0


def test_links():
    links = Links(1e9, 1e8, 8, 10 * US, 2 * US, 8 * US)
    assert links.all_reduce(1e6, 1) == 0.0
    assert links.all_reduce(1e6, 2) == pytest.approx(14 * US + 1 * MS)
    assert links.all_reduce(1e6, 8) == pytest.approx(10 * US + 14 * 2 * US + 1.75 * MS)
    # each GPU's eighth goes to 3 other nodes and comes back, slower than NVLink brings it there
    latency = 10 * US + 14 * 2 * US + 4 * 8 * US
    assert links.all_reduce(1e6, 32) == pytest.approx(latency + 2 * 0.75 * 125e3 / 1e8)


@pytest.mark.parametrize("update", ["joint", "per_task"])
@pytest.mark.parametrize("grows", [False, True])
def test_efficiency_is_never_above_one(small, update, grows):
    for gpu in (H200, Machine({PRECISION: 1e11}, 1e10, 0.0)):  # bound by kernels, by work
        setup = Setup(small, update, 8, grows, gpu)
        found = [efficiency(setup, num_gpus) for num_gpus in (1, 2, 8, 64)]
        assert found[0] == 1.0
        assert all(0 < b < a for a, b in pairwise(found))
        at_once = replace(setup, links=AT_ONCE)
        assert all(efficiency(at_once, num_gpus) <= 1 + 1e-12 for num_gpus in (2, 8, 64))


def test_a_batch_that_grows_takes_as_long_where_links_cost_nothing(small):
    setup = Setup(small, "joint", 16, True, Machine({PRECISION: 1e11}, 1e10, 0.0), AT_ONCE)
    assert efficiency(setup, 4) == pytest.approx(1.0, rel=0.02)  # the dealing is not quite even


def test_a_step_per_task_sends_the_matrices_of_every_step(small):
    joint, per_task = (predict(Setup(small, update), 4) for update in ("joint", "per_task"))
    assert per_task.num_messages == 3 * joint.num_messages
    gradients = gradients_of(small, PRECISION)
    fixed = 4 * gradients.matrices.numel() + gradients.flat.nbytes
    assert per_task.num_bytes - joint.num_bytes >= 2 * fixed


def test_slower_links_and_a_faster_gpu_make_for_more_waiting(small):
    setup = Setup(small, "joint", 32, True)
    slower = replace(setup, links=Links(nvlink=50e9, network=5e9))
    faster = replace(setup, gpu=Machine({PRECISION: 1e18}, 1e15, 0.0))
    for num_gpus in (2, 64):
        assert predict(slower, num_gpus).exposed > predict(setup, num_gpus).exposed
        assert predict(faster, num_gpus).exposed >= predict(setup, num_gpus).exposed


def test_a_sharded_update_saves_the_others_part_where_links_cost_nothing(small):
    found = sharded(Setup(small, "joint", 8, True, links=AT_ONCE), 4)
    num_matrices = gradients_of(small, PRECISION).matrices.numel()
    left_out = 0.75 * num_matrices
    assert found.saved_bytes == pytest.approx(16 * left_out)
    assert found.gain == pytest.approx(found.update * left_out / num_parameters(small))
    slow = sharded(Setup(small, "joint", 8, True, links=Links(1e8, 1e8)), 4)
    assert slow.gain <= slow.most_gain < slow.update + slow.exposed
    assert slow.gather > slow.least_gather > 0


def test_dealing_is_that_of_a_run():
    lengths = example_lengths("para", 16)
    share = largest_share(("para",), 16, 1, 4, 512)
    assert lengths.sum() / 4 <= share.tokens["para"] <= lengths.sum() / 4 + lengths.max()
    alone = largest_share(("para",), 16, 1, 1, 512)
    assert alone.tokens["para"] == lengths.sum()
    assert (
        largest_share(("para",), 2, 1, 64, 512).tokens["para"] == example_lengths("para", 2).max()
    )


def test_the_command_prints_tables_and_draws(small, tmp_path, capsys):
    path = tmp_path / "scaling.png"
    chosen = ["--model", small, "--batch", "8", "--gpus", "1", "2", "8"]
    scaling.main([*chosen, "--plot", str(path)])
    printed = capsys.readouterr().out
    assert "### small, joint, 8 examples a task and GPU" in printed
    assert "| small | per task | weak | 8 | 100% |" in printed
    assert path.read_bytes().startswith(b"\x89PNG")
    scaling.main([*chosen, "--update", "joint", "--sharded"])
    assert "of memory saved" in capsys.readouterr().out


def test_counts_are_of_sums_alone():
    ranks = CountingRanks(OneRank())
    assert ranks.gather("a") == ["a"] and ranks.is_first and ranks.size == 1
    assert (ranks.num_messages, ranks.num_bytes) == (0, 0)
