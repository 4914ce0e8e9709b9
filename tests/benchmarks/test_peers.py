"""Peers: rounds of Hugging Face's model as they are named, and torch.compile without a way out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import _dynamo as dynamo

from benchmarks.cases import round_variants as names
from benchmarks.cases.adamw_ema import SMALL
from benchmarks.cases.round import Round, fresh_trainee
from benchmarks.harness.benchmark import Absent
from benchmarks.harness.rounds import Rounds
from benchmarks.harness.settings import Settings
from benchmarks.harness.shapes import MODELS, Case
from benchmarks.peers import compiled
from benchmarks.peers.hugging_face_round import Form, HuggingFaceRound
from benchmarks.peers.padded import BUCKET, Padded

CPU = torch.device("cpu")
CASE = Case("minilm", "round-2", "", "train")


@pytest.fixture
def rounds(monkeypatch) -> Rounds:
    monkeypatch.setitem(MODELS, "minilm", SMALL)
    return Rounds(Settings(CPU, quick=True), CASE)


def calls_of_a_round(rounds: Rounds, name: str, is_one_batch: bool) -> Counter:
    """How often a round updates, and runs either encoder."""
    trainee = fresh_trainee(rounds, CPU, 0.0)
    form = replace(Form.of(name.split()[1:]), is_one_batch=is_one_batch)
    calls = Counter()
    trainee.optimizer.register_step_pre_hook(lambda *_: calls.update(["updates"]))
    peer = HuggingFaceRound(trainee, form)
    for kind in ("student", "teacher"):
        encoder = getattr(peer, kind).encoder
        encoder.register_forward_pre_hook(lambda *_, kind=kind: calls.update([kind]))
    peer.round(rounds[0])
    return calls


@pytest.mark.parametrize(
    ("name", "is_one_batch", "updates", "student", "teacher"),
    [
        ("hf fp32 eager", False, 3, 9, 3),
        ("hf fp32 sdpa joint", False, 1, 9, 3),
        ("hf bf16 sdpa joint", True, 1, 3, 1),
        ("hf bf16 eager plain", False, 3, 3, 0),
        ("hf fp32 sdpa plain joint", False, 1, 3, 0),
        ("hf fp32 eager plain joint", True, 1, 1, 0),
    ],
)
def test_a_round_makes_the_updates_and_passes_of_its_name(
    rounds, name, is_one_batch, updates, student, teacher
):
    """Of three tasks: clean, noisy and adversarial passes, and the teacher's."""
    calls = calls_of_a_round(rounds, name, is_one_batch)
    assert (calls["updates"], calls["student"], calls["teacher"]) == (updates, student, teacher)


def gradients(rounds: Rounds, name: str, is_one_batch: bool) -> tuple[dict, dict]:
    """Terms and gradients of the first round, which makes no update."""
    trainee = fresh_trainee(rounds, CPU, 0.0)
    form = replace(Form.of(name.split()[1:]), is_one_batch=is_one_batch)
    peer = HuggingFaceRound(trainee, form)
    found: dict[str, torch.Tensor] = {}

    def keep(has_teacher: bool) -> None:
        for n, p in trainee.student.named_parameters():
            if p.grad is not None:
                found[n] = found.get(n, 0) + p.grad.double()
        trainee.optimizer.zero_grad(set_to_none=True)

    trainee.update = keep
    return peer.round(rounds[0]), found


def test_a_joint_round_is_the_sum_of_its_tasks_however_they_are_padded(rounds):
    """Plain, since the noise of SMART is drawn in other shapes."""
    terms, grads = gradients(rounds, "hf fp32 eager plain", False)
    assert terms.keys() == {"sst/loss", "para/loss", "sts/loss"}
    small = 1e-3 * max(grad.norm() for grad in grads.values())
    for name in ("hf fp32 eager plain joint", "hf fp32 sdpa plain joint"):
        for is_one_batch in (False, True):
            other_terms, other_grads = gradients(rounds, name, is_one_batch)
            for key, value in terms.items():
                assert other_terms[key].item() == pytest.approx(value.item(), rel=1e-5)
            assert other_grads.keys() == grads.keys()
            for key, grad in grads.items():
                scale = grad.norm() + small  # a key's bias has no gradient but rounding
                assert (other_grads[key] - grad).norm() < 1e-4 * scale, (name, key)


def test_forms_share_the_weights_and_keep_their_attention(rounds):
    trainee = fresh_trainee(rounds, CPU, 0.1)
    forms = [HuggingFaceRound(trainee, Form("fp32", way)) for way in ("eager", "sdpa")]
    weights = [list(form.student.parameters()) for form in forms]
    assert all(a is b for a, b in zip(*weights, strict=True))
    ways = [form.student.encoder.bert.config._attn_implementation for form in forms]
    assert ways == ["eager", "sdpa"]
    before = [p.detach().clone() for p in trainee.teacher.parameters()]
    HuggingFaceRound(trainee, Form("fp32", is_plain=True)).round(rounds[0])
    same = zip(before, trainee.teacher.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)  # a plain round has no teacher


def test_tf32_is_of_its_rounds_alone_and_of_a_gpu(rounds):
    seen = []
    peer = HuggingFaceRound(fresh_trainee(rounds, CPU, 0.0), Form("tf32", is_plain=True))
    peer.student.encoder.register_forward_pre_hook(
        lambda *_: seen.append(torch.backends.cuda.matmul.allow_tf32)
    )
    peer.round(rounds[0])
    assert set(seen) == {True} and not torch.backends.cuda.matmul.allow_tf32
    for device, is_there in (("cpu", False), ("cuda", True)):
        benchmark = Round(Settings(torch.device(device), quick=False))
        variants = benchmark.all_variants(Case("minilm", "round", "", "train"))
        assert any("tf32" in name for name in variants) == is_there


def test_padding_ends_with_the_longest_sequence_or_a_bucket(rounds):
    batches = rounds[0]
    longest = max(batch.tokens.max_length for batch in batches)
    padded, bucketed = Padded.of(batches), Padded.of(batches, BUCKET)
    assert padded.input_ids.shape == (10, longest)
    assert bucketed.input_ids.shape == (10, longest + -longest % BUCKET)
    assert padded.mask.sum() == sum(batch.tokens.num_tokens for batch in batches)
    assert not (padded.may_move[..., 0] & (padded.mask == 0)).any()


def test_the_peers_of_the_goals_come_first():
    first = names.ALL[: len(names.OF_GOALS)]
    assert first == names.OF_GOALS
    for steps in ("", names.JOINT):
        for peer in ("hf fp32 eager", "hf bf16 sdpa", "hf bf16 eager", "fast bf16", "plain bf16"):
            assert peer + steps in first
    assert len(set(names.ALL)) == len(names.ALL)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("hf fp32 eager", "fast bf16"),
        ("hf bf16 sdpa plain joint", "plain bf16 joint"),
        ("reference fp32", "fast bf16"),
        ("fast fp32 joint", "fast bf16 joint"),
        ("plain fp32", "plain bf16"),
    ],
)
def test_a_round_is_compared_with_ours_of_the_same_kind(name, ours):
    assert names.counterpart(name) == ours


def graph_of(function):
    return compiled.compiled(function, backend="eager")


@pytest.fixture
def fresh_dynamo(monkeypatch):
    """As in a process that has compiled nothing; what is set is set back."""
    dynamo.reset()
    dynamo.utils.counters.clear()
    settings = dynamo.config.recompile_limit, dynamo.config.fail_on_recompile_limit_hit
    yield
    dynamo.config.recompile_limit, dynamo.config.fail_on_recompile_limit_hit = settings
    dynamo.reset()


def test_a_peer_that_torch_would_run_eagerly_is_refused(fresh_dynamo, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_GRAPHS", 2)
    call = graph_of(lambda x, n: x * n.bit_length())  # a graph per value of a Python object
    types = [torch.float32, torch.float64, torch.bfloat16]
    for dtype in types[:2]:
        call(torch.ones(3, dtype=dtype), 5)
    with pytest.raises(Absent, match="limit of 2 recompilations"):
        call(torch.ones(3, dtype=types[2]), 5)


def test_a_peer_is_settled_when_all_calls_compile_nothing(fresh_dynamo):
    call, shapes = graph_of(torch.sin), [(2, 3), (4, 5), (6, 7)]
    made = []

    def next_call():
        shape = shapes[len(made) % 3]
        made.append(call(torch.ones(shape)))

    compiled.settle(next_call, 3)
    assert compiled.num_graphs() == 1 and len(made) == 4


def test_a_peer_that_goes_on_compiling_is_refused(fresh_dynamo):
    call, ranks = graph_of(lambda x: x + 1), iter(range(1, 100))
    with pytest.raises(Absent, match="still compiles after 12 calls"):
        compiled.settle(lambda: call(torch.ones([2] * next(ranks))), 3)


def test_a_compiler_that_is_switched_off_is_told(fresh_dynamo):
    with pytest.raises(Absent, match="switched off"):
        compiled.settle(lambda: None, 3)


def test_what_compiles_while_it_is_timed_is_refused(fresh_dynamo):
    call = graph_of(lambda x: x + 1)
    watched = compiled.Watched(lambda: call(x))
    x = torch.ones(3, 4)
    call(x)
    watched()
    assert watched.refusal == ""
    x = torch.ones(3, 4, dtype=torch.float64)
    watched()
    assert "compiled again" in watched.refusal
