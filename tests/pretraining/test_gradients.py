"""Losses and gradients of both kinds of passes against transformers' BertForPreTraining."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sbrrt_fast.pretraining.batches import MaskedBatch
from sbrrt_fast.pretraining.checkpoints import checkpoint_tensors
from sbrrt_fast.pretraining.config import PretrainConfig
from sbrrt_fast.pretraining.model import PretrainingModel
from sbrrt_fast.pretraining.passes import AutogradPasses, WrittenOutPasses
from sbrrt_fast.pretraining.step import PretrainStep, build_step
from tests.pretraining.runs import tiny_batch, tiny_model

transformers = pytest.importorskip("transformers")
CONFIG = PretrainConfig()


def step_of(model: PretrainingModel, **fields) -> PretrainStep:
    return build_step(model, PretrainConfig(**fields), 10)


def differentiated(model: PretrainingModel, batch: MaskedBatch, **fields):
    """Terms, and gradients by the parameter's name in a checkpoint."""
    terms, gradients = step_of(model, **fields).differentiate(batch, 3)
    names = {id(p): name for name, p in checkpoint_parameters(model).items()}
    return terms, {names[i]: g for i, g in gradients.items()}


def checkpoint_parameters(model: PretrainingModel) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    return {
        name.replace("encoder.", "bert.", 1).replace("cls.pooler.", "bert.pooler."): p
        for name, p in named.items()
    }


def theirs(model: PretrainingModel, batch: MaskedBatch, dtype=torch.float64):
    """The same of transformers' model, on a padded batch."""
    config = transformers.BertConfig(**model.config.to_dict())
    with_pairs = model.cls.seq_relationship is not None
    kind = transformers.BertForPreTraining if with_pairs else transformers.BertForMaskedLM
    other = kind(config).to(dtype)
    state = {name: x.to(dtype) for name, x in checkpoint_tensors(model).items()}
    missing = other.load_state_dict(state, strict=False).missing_keys
    assert all("decoder" in name for name in missing), missing
    other.tie_weights()
    tokens, labels = batch.tokens, torch.full_like(batch.tokens.input_ids, -100)
    labels[batch.masked] = batch.targets
    inputs = {
        "input_ids": tokens.pad(tokens.input_ids),
        "token_type_ids": tokens.pad(tokens.token_types),
        "attention_mask": tokens.key_mask.long(),
        "labels": tokens.pad(labels).masked_fill(~tokens.key_mask, -100),
    }
    if with_pairs:
        inputs["next_sentence_label"] = batch.labels
    loss = other.eval()(**inputs).loss
    loss.backward()
    return loss, {name: p.grad for name, p in other.named_parameters() if p.grad is not None}


def check_close(found: dict[str, Tensor], exact: dict[str, Tensor], bound: float) -> None:
    """Each tensor to ``bound`` of its norm; a key's bias has a gradient that is zero."""
    assert found.keys() == exact.keys()
    largest = max(x.norm() for x in exact.values())
    for name, x in exact.items():
        scale = max(x.norm(), 1e-3 * largest)
        assert (found[name].double() - x).norm() <= bound * scale, name


@pytest.mark.parametrize("next_sentence", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients_are_those_of_transformers(tmp_path, next_sentence, pooling, backend):
    model = tiny_model(tmp_path / "x", next_sentence=next_sentence, pooling=pooling)
    batch = tiny_batch(tmp_path / "x", next_sentence=next_sentence)
    assert len(batch.targets) > 20
    loss, exact = theirs(model, batch)
    terms, found = differentiated(model, batch, backend=backend)
    assert terms["pretraining/total"].item() == pytest.approx(loss.item(), rel=1e-6)
    check_close(found, exact, 1e-5)


def test_the_step_is_written_out_where_it_can_be(tmp_path):
    model = tiny_model(tmp_path / "x")
    assert isinstance(step_of(model).passes, WrittenOutPasses)
    assert isinstance(step_of(model, backend="reference").passes, AutogradPasses)
    odd = tiny_model(tmp_path / "odd", hidden_size=24, head_dim=24)
    lines: list[str] = []
    step = build_step(odd, CONFIG, 10, lines.append)
    assert isinstance(step.passes, AutogradPasses)
    assert "the step runs under autograd, which is slower: attention" in lines[0]


@pytest.mark.parametrize("next_sentence", [False, True])
def test_both_kinds_of_passes_draw_the_same_dropout(tmp_path, next_sentence):
    model = tiny_model(tmp_path / "x", next_sentence=next_sentence)
    batch = tiny_batch(tmp_path / "x", next_sentence=next_sentence)
    plain = differentiated(model, batch, backend="reference")[0]["pretraining/total"]
    model.set_dropout(0.2, 0.1)
    terms, exact = differentiated(model, batch, backend="reference")
    ours, found = differentiated(model, batch)
    assert terms["pretraining/total"] != plain
    assert ours["pretraining/total"].item() == pytest.approx(
        terms["pretraining/total"].item(), rel=1e-5
    )
    check_close(found, {n: g.double() for n, g in exact.items()}, 1e-4)


def test_bf16_is_as_near_as_autocast(tmp_path):
    model = tiny_model(tmp_path / "x")
    batch = tiny_batch(tmp_path / "x")
    _, exact = theirs(model, batch)
    found, plain = (
        differentiated(model, batch, precision="bf16", backend=backend)[1]
        for backend in ("auto", "reference")
    )
    distances = [
        sum((g[n].double() - x).square().sum() for n, x in exact.items()) ** 0.5
        for g in (found, plain)
    ]
    assert 0 < distances[0] < 2 * distances[1]


def test_a_batch_without_a_masked_word_has_no_loss(tmp_path):
    model = tiny_model(tmp_path / "x")
    batch = tiny_batch(tmp_path / "x", lengths=[(1, 1)], share=1e-9)
    assert len(batch.targets) == 0
    terms, gradients = differentiated(model, batch)
    assert terms["pretraining/total"] == 0
    assert all((g == 0).all() for g in gradients.values())


def test_an_update_is_that_of_torch(tmp_path):
    """Three rounds of either, from the same weights: the same model up to rounding."""
    results = []
    for backend in ("auto", "reference"):
        model = tiny_model(tmp_path / backend)
        before = {name: x.clone() for name, x in model.state_dict().items()}
        step = step_of(model, backend=backend, seed=1)
        for index in range(3):
            step.round(tiny_batch(tmp_path / backend), index)
        results.append(model.state_dict())
    assert not results[0]["cls.predictions.bias"].equal(before["cls.predictions.bias"])
    for name, x in results[1].items():
        if not name.endswith("key.bias"):  # Adam makes steps of rounding where a gradient is zero
            assert torch.allclose(results[0][name], x, rtol=0, atol=2e-6), name


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_heads_are_trained_alone_at_first(tmp_path, pooling):
    model = tiny_model(tmp_path / "x", next_sentence=True, pooling=pooling)
    batch = tiny_batch(tmp_path / "x", next_sentence=True)
    step, whole = step_of(model, head_rounds=2), step_of(model)
    (terms, heads), (others, exact) = (s.differentiate(batch, 1) for s in (step, whole))
    assert terms["pretraining/total"] == others["pretraining/total"]
    assert heads.keys() == {id(p) for p in model.head_parameters()} < exact.keys()
    assert all(g.equal(exact[i]) for i, g in heads.items())
    assert step.differentiate(batch, 2)[1].keys() == exact.keys()


def test_a_fresh_head_is_trained_alone_for_a_tenth_of_the_rounds(tmp_path):
    model = tiny_model(tmp_path / "x")
    assert build_step(model, CONFIG, 40).head_rounds == 4
    model.is_fresh = False
    assert build_step(model, CONFIG, 40).head_rounds == 0
