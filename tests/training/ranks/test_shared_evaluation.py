"""Several ranks share an evaluation out, and all of them get the bits that one would compute."""

from __future__ import annotations

import itertools
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sbrrt_fast.config import LogConfig, RunConfig
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import TaskConfig
from sbrrt_fast.errors import SbrrtError, WeightsError
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.io import save_model
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.training.dev_evaluator import DevEvaluator
from sbrrt_fast.training.progress import Progress
from sbrrt_fast.training.ranks.agreement import from_first
from sbrrt_fast.training.ranks.ranks import ONE_RANK
from sbrrt_fast.training.round_robin import Cursor
from sbrrt_fast.training.scores import batches
from sbrrt_fast.training.scores.batches import computed_rows, deal, length_batches, own_batches
from sbrrt_fast.training.scores.evaluate import predict, predict_outputs
from sbrrt_fast.training.scores.vectors import sentence_vectors
from sbrrt_fast.training.stopping import Stopped, StopSignals
from tests.all_tasks import TASKS
from tests.helpers import tiny_backbone, tiny_tokenizer
from tests.model.models import CONFIG, random_model
from tests.training.ranks.threads import on_ranks, outcomes

SIZES = (2, 3, 8)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    """So few tokens a batch that a small split has many."""
    monkeypatch.setattr(batches, "TOKENS_PER_BATCH", 96)


def split_of(name: str, config: TaskConfig, num_rows: int, longest: int = 40) -> TokenizedTask:
    """Random tokens in sequences of 3 to ``longest`` tokens, and random labels."""
    lengths = torch.randint(3, longest + 1, (num_rows * config.sequences_per_example,))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    num_tokens = int(starts[-1])
    labels = torch.rand(num_rows) * 2 + 2
    return TokenizedTask(
        name=name,
        config=config,
        split="dev",
        ids=[f"r{i}" for i in range(num_rows)],
        labels=labels if config.is_regression else labels.long().clamp(max=1).float(),
        tokens=torch.randint(CONFIG.vocab_size, (num_tokens,), dtype=torch.int32),
        token_types=torch.zeros(num_tokens, dtype=torch.int8),
        special=torch.zeros(num_tokens, dtype=torch.bool),
        starts=starts,
        num_truncated=0,
    )


def bits(x: Tensor) -> list:
    return [tuple(x.shape), *x.view(torch.int32).flatten().tolist()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TASKS)
def test_every_rank_gets_one_rank_s_outputs(name, size):
    model = random_model(tasks=TASKS).eval()
    task = split_of(name, TASKS[name], 37)
    assert len(length_batches(task, 37)) > 8
    expected = predict_outputs(model, task)
    assert len(expected.unique(dim=0)) > 8
    for outputs in on_ranks(size, lambda ranks: predict_outputs(model, task, ranks=ranks)):
        assert bits(outputs) == bits(expected)


@pytest.mark.parametrize("options", [{"packed": False}, {"limit": 11}, {"precision": "bf16"}])
def test_options_do_not_depend_on_the_number_of_ranks(options):
    model = random_model(tasks=TASKS).eval()
    task = split_of("para", TASKS["para"], 30)
    expected = predict_outputs(model, task, **options)
    shared = on_ranks(3, lambda ranks: predict_outputs(model, task, ranks=ranks, **options))
    assert len(expected) == options.get("limit", 30)
    assert all(bits(outputs) == bits(expected) for outputs in shared)


@pytest.mark.parametrize("num_rows", [0, 1, 2])
@pytest.mark.parametrize("name", ["sst", "sts"])
def test_more_ranks_than_batches(name, num_rows):
    model = random_model(tasks=TASKS).eval()
    task = split_of(name, TASKS[name], num_rows)
    expected = predict(model, task)
    assert expected.shape == (num_rows,)
    for predictions in on_ranks(8, lambda ranks: predict(model, task, ranks=ranks)):
        assert bits(predictions) == bits(expected)


@pytest.mark.parametrize("size", SIZES)
def test_sentence_vectors_are_one_rank_s(size):
    encoder = random_model().encoder.eval()
    texts = split_of("embed", TASKS["length"], 29)
    expected = sentence_vectors(encoder, texts)
    for vectors in on_ranks(size, lambda ranks: sentence_vectors(encoder, texts, ranks=ranks)):
        assert bits(vectors) == bits(expected)


def test_any_value_survives(monkeypatch):
    values = [-0.0, 0.0, math.nan, -math.nan, math.inf, -math.inf, 1e-42, -3e38, 1.5]
    monkeypatch.setattr(batches, "TOKENS_PER_BATCH", 4)  # a row each
    task = split_of("sst", TASKS["sst"], len(values), longest=3)
    given = torch.tensor(values, dtype=torch.float32)
    task.tokens.copy_(torch.arange(len(values)).repeat_interleave(3))

    def rows(ranks):
        pick = lambda batch: given[batch.input_ids[:1]]  # noqa: E731
        return computed_rows(task, (), pick, num_rows=len(values), width=4, ranks=ranks)

    for size in (1, *SIZES):
        shared = [rows(ONE_RANK)] if size == 1 else on_ranks(size, rows)
        assert all(bits(x) == bits(given) for x in shared)


def test_outputs_that_are_not_finite_end_all_ranks_with_one_rank_s_message():
    model = random_model(tasks=TASKS).eval()
    task = split_of("sst", TASKS["sst"], 20)
    with torch.no_grad():
        model.heads["sst"].classifier.weight.fill_(3e38)
    with pytest.raises(WeightsError, match="20 of 20 outputs are nan or infinite") as alone:
        predict_outputs(model, task)
    errors = outcomes(3, lambda ranks: predict_outputs(model, task, ranks=ranks))
    assert [str(error) for error in errors] == [str(alone.value)] * 3


def test_an_error_of_one_rank_is_raised_on_all():
    task = split_of("sst", TASKS["sst"], 30)

    def work(ranks):
        def compute(batch):
            if ranks.rank == 1:
                raise WeightsError("too large")
            return torch.zeros(len(batch.rows))

        return computed_rows(task, (), compute, num_rows=30, width=4, ranks=ranks)

    errors = outcomes(3, work)
    assert [str(error) for error in errors] == ["too large"] * 3
    assert all(isinstance(error, SbrrtError) for error in errors)


def test_ranks_that_have_read_different_rows_are_refused():
    model = random_model(tasks=TASKS).eval()
    splits = [split_of("sst", TASKS["sst"], 12) for _ in range(2)]
    splits.append(replace(splits[0]))
    errors = outcomes(3, lambda ranks: predict_outputs(model, splits[ranks.rank], ranks=ranks))
    assert len({str(error) for error in errors}) == 1
    assert "rank 1: the dev split of task 'sst' is not that of the other ranks" in str(errors[0])


def test_each_batch_is_computed_once_and_ticks():
    task = split_of("para", TASKS["para"], 50)
    whole = [batch.tolist() for batch in length_batches(task, 50)]

    def work(ranks):
        own = own_batches(task, 50, 64, ranks)
        compute = lambda batch: torch.zeros(batch.num_sequences // 2)  # noqa: E731
        computed_rows(task, (), compute, num_rows=50, width=64, ranks=ranks)
        return [batch.tolist() for batch in own], ranks.num_ticks

    for size in SIZES:
        results = on_ranks(size, work)
        assert sorted(batch for own, _ in results for batch in own) == sorted(whole)
        assert [num_ticks for _, num_ticks in results] == [len(own) for own, _ in results]
    assert [b.tolist() for b in own_batches(task, 50, 64, ONE_RANK)] == whole


def test_batches_hold_each_row_once_by_length_within_the_bound():
    for name, num_rows in (("sst", 60), ("para", 41)):
        task = split_of(name, TASKS[name], 60)
        each = task.config.sequences_per_example
        longest = task.lengths.view(-1, each).amax(dim=1)
        parts = length_batches(task, num_rows)
        order = torch.cat(parts)
        assert order.sort().values.tolist() == list(range(num_rows))
        assert longest[order].diff().min() >= 0
        padded = [len(part) * each * int(longest[part].max()) for part in parts]
        assert all(p <= 96 or len(part) == 1 for p, part in zip(padded, parts, strict=True))
        for part, after in itertools.pairwise(parts):  # no batch could take one more
            assert (len(part) + 1) * each * int(longest[after[0]]) > 96


@pytest.mark.parametrize("size", [1, *SIZES])
def test_hands_are_about_equal(size):
    costs = torch.randint(1, 1000, (40,)).tolist()
    hands = deal(costs, size)
    assert sorted(number for hand in hands for number in hand) == list(range(40))
    sums = [sum(costs[number] for number in hand) for hand in hands]
    assert max(sums) - min(sums) <= max(costs)
    assert max(sums) <= (4 / 3) * max(sum(costs) / size, max(costs))
    assert hands == [sorted(hand) for hand in hands]


def test_a_hand_may_be_empty():
    assert deal([5, 7], 4) == [[1], [0], [], []]
    assert deal([], 2) == [[], []]


def test_a_value_comes_from_the_first_rank():
    values = on_ranks(3, lambda r: from_first(r, "testing", lambda: {"of": r.rank, "x": 0.1}))
    assert values == [{"of": 0, "x": 0.1}] * 3
    assert from_first(ONE_RANK, "testing", lambda: (1, 2)) == (1, 2)

    def refuse():
        raise SbrrtError("cannot")

    errors = outcomes(3, lambda ranks: from_first(ranks, "testing", refuse))
    assert [str(error) for error in errors] == ["cannot"] * 3


# The trainer's evaluations


def evaluator(ranks, output: Path, **options) -> DevEvaluator:
    """Of splits that are the same on every rank."""
    names = ("sst", "sts")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        tasks = {name: split_of(name, TASKS[name], 25) for name in names}
    config = RunConfig(output=output, tasks={name: TASKS[name] for name in names}, **options)
    return DevEvaluator(config, tasks, StopSignals(), ranks)


def progress() -> Progress:
    return Progress(Cursor())


def test_scores_are_one_rank_s_on_every_rank(tmp_path):
    model = random_model(tasks=TASKS).eval()

    def work(ranks):
        dev = evaluator(ranks, tmp_path)
        scores = dev.scores(model, progress(), None)
        return scores, {name: bits(one.outputs) for name, one in dev.scored.items()}

    alone = work(ONE_RANK)
    assert on_ranks(3, work) == [alone] * 3
    assert alone[0]["overall"] is not None


def test_the_bar_is_the_first_rank_s_and_counts_its_rows(tmp_path, capsys):
    model = random_model(tasks=TASKS).eval()
    on_ranks(2, lambda ranks: evaluator(ranks, tmp_path).scores(model, progress(), None))
    shown = capsys.readouterr().err
    assert "sst dev, rank 0 of 2: 100%" in shown and "rank 1 of 2" not in shown


def test_every_rank_scores_the_best_model(tmp_path):
    encoder = MiniBert.from_folder(tiny_backbone(tmp_path / "backbone"))
    model = MultiTaskModel(encoder, {name: TASKS[name] for name in ("sst", "sts")})
    (tmp_path / "best").mkdir()
    save_model(model, tmp_path / "best", tiny_tokenizer(), max_length=64)

    def work(ranks):
        dev, p = evaluator(ranks, tmp_path, log=LogConfig(dev_rows=9)), progress()
        scores = dev.final_scores(p, torch.device("cpu"), lambda m, rows: dev.scores(m, p, rows))
        return scores, {name: bits(one.outputs) for name, one in dev.best.items()}

    alone = work(ONE_RANK)
    assert on_ranks(2, work) == [alone] * 2
    (tmp_path / "best" / "tasks.json").unlink()
    errors = outcomes(2, work)
    assert all(isinstance(error, WeightsError) for error in errors)


def test_a_tick_that_stops_one_rank_stops_all(tmp_path):
    model = random_model(tasks=TASKS).eval()

    def work(ranks):
        def stop() -> None:
            raise Stopped(signal.SIGTERM)

        dev = evaluator(ranks, tmp_path)
        ranks.on_tick = stop if ranks.rank == 1 else None
        try:
            dev.scores(model, progress(), None)
        except Stopped:
            return ranks.num_ticks, dev.scored
        return None

    first, second, third = on_ranks(3, work)
    assert second == (1, {}) and first[0] > 1 and third[0] > 1


def test_a_model_in_train_mode_is_predicted_without_dropout():
    model = random_model(tasks=TASKS)
    task = split_of("sst", TASKS["sst"], 9)
    expected = predict_outputs(model.eval(), task)
    vectors = sentence_vectors(model.encoder, task)
    model.train()
    model.heads.eval()
    modes = [module.training for module in model.modules()]
    assert torch.equal(predict_outputs(model, task), expected)
    assert torch.equal(sentence_vectors(model.encoder, task), vectors)
    assert [module.training for module in model.modules()] == modes
