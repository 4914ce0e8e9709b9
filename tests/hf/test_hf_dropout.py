"""Dropout with the kernels: repeatable, unbiased, and as torch's in its variance."""

from __future__ import annotations

import pytest
import torch

from tests.hf.models import FAMILIES, batch, build, hidden_states, loss_of, taken, with_dropout

DRAWS = 400


def passes(model, inputs, num: int) -> torch.Tensor:
    """Hidden states of so many passes, [passes, tokens, hidden]."""
    with torch.no_grad():
        return torch.stack([hidden_states(model, inputs) for _ in range(num)])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_repeats_the_masks_and_another_pass_has_others(family):
    model = taken(build(family, "", **with_dropout(family))).train()
    inputs = batch(family)
    torch.manual_seed(5)
    first, second = passes(model, inputs, 2)
    torch.manual_seed(5)
    again = passes(model, inputs, 2)
    assert torch.equal(again[0], first) and torch.equal(again[1], second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["hidden", "attention"])
def test_mean_and_variance_are_torch_s(family, where):
    """Of every element over many passes, within the noise of so many draws."""
    rates = {"hidden": (0.3, 0.0), "attention": (0.0, 0.3)}[where]
    stock = build(family, "", **with_dropout(family, *rates)).train()
    inputs = batch(family, (6, 3))
    theirs, ours = (passes(m, inputs, DRAWS).double() for m in (stock, taken(stock)))
    exact = passes(stock.eval(), inputs, 1)[0].double()
    moments = [(x.mean(0) - exact, x.var(0)) for x in (ours, theirs)]
    spread = (moments[0][1] + moments[1][1]) / 2  # an element's variance
    errors = (spread * 2 / DRAWS).sqrt(), spread * (4 / DRAWS) ** 0.5  # of a normal variable
    for mine, other, error in zip(*moments, errors, strict=True):
        deviations = (mine - other) / error
        assert deviations.square().mean() < 2.0
        assert deviations.abs().max() < 8.0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_and_every_pass_has_masks_of_its_own(family):
    """The sites and the drawn numbers differ, so no two dropouts share a mask."""
    model = taken(build(family, "", **with_dropout(family)))
    sites = [m._sbrrt_site for m in model.modules() if "_sbrrt_site" in vars(m)]
    assert len(set(sites)) == len(sites) > 6


def test_dropout_modules_alone_may_be_in_training():
    """As for Monte Carlo dropout: the model evaluates, its dropouts do not."""
    model = taken(build("bert", "", **with_dropout("bert", 0.3, 0.0)))
    inputs = batch("bert")
    before, again = passes(model, inputs, 2)
    assert torch.equal(before, again)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    one, other = passes(model, inputs, 2)
    assert not torch.equal(one, other)


def test_a_dropout_of_another_kind_is_called():
    class Halving(torch.nn.Module):
        def forward(self, x):
            return x / 2

    stock = build("bert", "").train()
    for layer in stock.encoder.layer:
        layer.output.dropout = Halving()
    inputs = batch("bert")
    theirs, ours = hidden_states(stock, inputs), hidden_states(taken(stock), inputs)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_masks_that_were_drawn(family):
    """Against differences along a direction, in float64 and with the same seed."""
    model = taken(build(family, **with_dropout(family, 0.2))).double().train()
    inputs = batch(family)

    def loss() -> torch.Tensor:
        torch.manual_seed(3)
        return loss_of(model, inputs)

    loss().backward()
    weights = list(model.parameters())
    directions = [torch.randn_like(w) for w in weights]
    pairs = [(w, d) for w, d in zip(weights, directions, strict=True) if w.grad is not None]
    row = model.config.pad_token_id  # nn.Embedding gives the row of padding no gradient
    for name, weight in model.named_parameters():
        if "word_embeddings" in name or (family == "roberta" and "position_emb" in name):
            next(d for w, d in pairs if w is weight)[row] = 0
    slope = sum((w.grad * d).sum() for w, d in pairs)
    values = []
    for step in (1e-6, -2e-6, 1e-6):
        with torch.no_grad():
            for weight, direction in pairs:
                weight.add_(direction, alpha=step)
        values.append(loss().item())
    torch.testing.assert_close(slope.item(), (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_repeats_the_masks(family, use_reentrant):
    grads = []
    model = taken(build(family, **with_dropout(family))).train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    layers = [m for m in model.modules() if hasattr(m, "_gradient_checkpointing_func")]
    assert len(layers) >= 2
    for checkpointed in (False, True):
        for layer in layers:
            layer.gradient_checkpointing = checkpointed
        torch.manual_seed(1)
        model.zero_grad()
        model(**batch(family)).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, replayed in zip(*grads, strict=True):
        assert torch.equal(plain, replayed)


def test_checkpointing_a_whole_model_repeats_the_masks():
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = taken(build("bert", **with_dropout("bert"))).train()
        inputs = batch("bert")

        def loss(labels, model=model, inputs=inputs):
            return model(**inputs | {"labels": labels}).loss

        torch.manual_seed(1)
        if checkpointed:
            torch.utils.checkpoint.checkpoint(
                loss, inputs["labels"], use_reentrant=False
            ).backward()
        else:
            loss(inputs["labels"]).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, replayed in zip(*grads, strict=True):
        assert torch.equal(plain, replayed)
