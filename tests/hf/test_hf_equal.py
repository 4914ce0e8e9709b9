"""Outputs and gradients with the kernels are transformers' own to rounding."""

from __future__ import annotations

import math

import pytest
import torch

from tests.hf.models import (
    FAMILIES,
    LENGTHS,
    WIDTH,
    batch,
    build,
    errors,
    is_of_key,
    results,
    taken,
)

F32, F64 = torch.float32, torch.float64
LIMIT = 2.0  # times the error of transformers' own code
HEADS = ("SequenceClassification", "TokenClassification", "MaskedLM")


def assert_as_exact(stock, fused, inputs, dtype=F32, autocast=False) -> None:
    """Against float64, the error is at most twice that of the model as it was."""
    exact = results(stock, inputs, F64)
    theirs, ours = (errors(results(m, inputs, dtype, autocast), exact) for m in (stock, fused))
    assert math.hypot(*ours.values()) <= LIMIT * math.hypot(*theirs.values())
    # What is few numbers, or rounding alone, may be exact by luck: it meets the worst of all.
    worst = max(theirs.values())
    by_luck = [n for n, x in exact.items() if x.numel() < WIDTH or is_of_key(n)]
    limits = theirs | dict.fromkeys(by_luck, worst)
    assert {n: (ours[n], limits[n]) for n in ours if ours[n] > LIMIT * limits[n]} == {}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_float64_is_the_same(family, training):
    stock = build(family).train(training)
    inputs = batch(family)
    found = errors(results(taken(stock), inputs, F64), results(stock, inputs, F64))
    assert max(found.values()) < 1e-13


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lengths", [LENGTHS, (7, 7, 7), (1,), (1, 1), (31, 3)])
def test_float32_is_as_exact(family, lengths):
    stock = build(family).train()
    assert_as_exact(stock, taken(stock), batch(family, lengths))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_autocast_is_as_exact(family, training):
    stock = build(family).train(training)
    assert_as_exact(stock, taken(stock), batch(family), autocast=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_weights_are_as_exact(family):
    stock = build(family)
    assert_as_exact(stock, taken(stock), batch(family), torch.bfloat16)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_is_the_same_whatever_attention_the_model_had(family, attention):
    stock = build(family, attn_implementation=attention)
    inputs = batch(family)
    found = errors(results(taken(stock), inputs, F64), results(stock, inputs, F64))
    assert max(found.values()) < 1e-13


@pytest.mark.parametrize("family", FAMILIES)
def test_head_dimension_64_is_as_exact(family):
    name = "n_heads" if family == "distilbert" else "num_attention_heads"
    stock = build(family, **{name: 1})
    assert_as_exact(stock, taken(stock), batch(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_mask_nothing_is_padded(family):
    stock = build(family)
    inputs = batch(family, (9, 9))
    del inputs["attention_mask"]
    found = errors(results(taken(stock), inputs, F64), results(stock, inputs, F64))
    assert max(found.values()) < 1e-13


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("head", HEADS)
def test_every_head_gets_what_it_got(family, head):
    stock, inputs = build(family, head), batch(family)
    if head != "SequenceClassification":
        inputs["labels"] = torch.where(
            inputs["attention_mask"].bool(), inputs["input_ids"] % 3, -100
        )
    fused = taken(stock)
    losses = [m.double()(**inputs).loss for m in (stock, fused)]
    torch.testing.assert_close(*losses, rtol=1e-13, atol=0)
    for loss in losses:
        loss.backward()
    for theirs, ours in zip(stock.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-14)


def test_positions_types_and_holes_in_the_mask_are_the_caller_s():
    stock, inputs = build("bert"), batch("bert")
    inputs["attention_mask"][0, 3] = 0  # a hole is no padding at the end
    inputs["token_type_ids"] = inputs["input_ids"] % 2
    inputs["position_ids"] = torch.arange(11).flip(0)[None]
    found = errors(results(taken(stock), inputs, F64), results(stock, inputs, F64))
    assert max(found.values()) < 1e-13


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_may_come_in_the_place_of_ids(family):
    stock = build(family, "").double()
    inputs = batch(family)
    vectors = stock.get_input_embeddings()(inputs["input_ids"]).detach()
    call = {"inputs_embeds": vectors, "attention_mask": inputs["attention_mask"]}
    real = call["attention_mask"].bool()
    theirs, ours = (m(**call).last_hidden_state[real] for m in (stock, taken(stock)))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_may_be_positional(family):
    stock, inputs = build(family, ""), batch(family)
    call, real = (inputs["input_ids"], inputs["attention_mask"]), inputs["attention_mask"].bool()
    theirs, ours = (m(*call).last_hidden_state[real] for m in (stock, taken(stock)))
    torch.testing.assert_close(ours, theirs)
    if family != "distilbert":  # whose third argument is another one
        call = *call, inputs["input_ids"] % 2
        theirs, ours = (m(*call).last_hidden_state[real] for m in (stock, taken(stock)))
        torch.testing.assert_close(ours, theirs)


def test_hidden_states_at_padding_are_zeros():
    inputs = batch("bert")
    hidden = taken(build("bert")).bert(inputs["input_ids"], inputs["attention_mask"])[0]
    assert (hidden[~inputs["attention_mask"].bool()] == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_padding_token_s_row_gets_no_gradient(family):
    """``nn.Embedding`` leaves it out, also where the token counts as a real one."""
    model, inputs = taken(build(family)), batch(family)
    inputs["attention_mask"][:] = 1
    model(**inputs).loss.backward()
    grad = model.get_input_embeddings().weight.grad
    row = model.config.pad_token_id
    assert (grad[row] == 0).all() and (grad[inputs["input_ids"].unique()] != 0).any()
