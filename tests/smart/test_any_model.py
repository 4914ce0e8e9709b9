"""SmartRegularizer around any model: dropout, ways to apply J, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from sbrrt_fast import SmartRegularizer
from sbrrt_fast.config import SmartConfig
from sbrrt_fast.ops.symmetric_kl import bernoulli_logits
from sbrrt_fast.smart.divergence import SQUARED, SYMMETRIC_KL
from sbrrt_fast.smart.replay import RandomState
from tests.smart.stock_models import Exact, bert, cosine, padded_batch, weight_gradient

pytest.importorskip("transformers")

BATCH = padded_batch()
MASK = BATCH["attention_mask"].bool()


def word_embeddings(model):
    return model.get_input_embeddings()(BATCH["input_ids"])


def logits_at(model, x):
    return model(inputs_embeds=x, attention_mask=BATCH["attention_mask"]).logits


class Setting:
    """A model of transformers with its regulariser, as a function of word embeddings."""

    def __init__(self, model, divergence=SYMMETRIC_KL, **settings):
        self.model, self.divergence = model, divergence
        config = SmartConfig(**settings)
        self.regularizer = SmartRegularizer(lambda x: logits_at(model, x), config, divergence)
        self.embeddings = word_embeddings(model).detach()

    def __call__(self):
        torch.manual_seed(3)
        return self.regularizer(self.embeddings, mask=MASK)

    def exact(self, smart):
        def outputs(model, x):
            logits = logits_at(model, x)
            if logits.shape[1] > 1:
                return logits
            return bernoulli_logits(logits[:, 0]) if self.divergence.is_of_classes else logits[:, 0]

        return Exact(
            self.model, outputs, lambda model: word_embeddings(model).detach(), smart.random_state
        )


# Dropout


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("num_labels", [1, 3])
def test_in_train_mode_every_pass_has_the_masks_of_the_clean_one(attention, num_labels):
    setting = Setting(bert(num_labels, attention).train())
    smart = setting()
    exact = setting.exact(smart)
    assert smart.random_state is not None
    quiet = logits_at(copy.deepcopy(setting.model).eval(), setting.embeddings)
    assert cosine(smart.logits, quiet) < 0.99
    torch.testing.assert_close(
        smart.loss.double(), exact.loss(SYMMETRIC_KL, smart.delta), rtol=1e-3, atol=0
    )
    got = weight_gradient(smart.loss, setting.model)
    assert cosine(got, exact.weight_gradient(SYMMETRIC_KL, smart.delta)) > 0.9999


def test_smoothness_is_measured_and_not_dropout():
    tiny = {"radius": 1e-6}
    quiet = Setting(bert().eval(), **tiny)().loss
    assert Setting(bert().train(), **tiny)().loss < 30 * quiet < 1e-6


def test_the_generator_goes_on_as_after_one_clean_pass_and_the_noise():
    setting = Setting(bert().train())
    setting()
    after = torch.rand(3)
    torch.manual_seed(3)
    logits_at(setting.model, setting.embeddings)
    torch.randn_like(setting.embeddings)
    assert torch.equal(torch.rand(3), after)


def test_given_logits_of_a_model_that_drops_out_are_refused():
    model = bert().train()
    x = word_embeddings(model)
    regularizer = SmartRegularizer(lambda x: logits_at(model, x))
    with pytest.raises(ValueError, match=r"let the regulariser run the clean pass.*model.eval"):
        regularizer(x, logits_at(model, x), MASK)
    model.eval()
    given, own = (regularizer(x, logits, MASK, noise=x) for logits in (logits_at(model, x), None))
    assert torch.equal(given.delta, own.delta) and torch.equal(given.loss, own.loss)
    assert own.random_state is None


def test_a_state_knows_what_was_drawn_since():
    state = RandomState()
    assert not state.has_moved()
    first = torch.rand(1)
    assert state.has_moved()
    state.restore()
    assert torch.equal(torch.rand(1), first)


@pytest.mark.parametrize("kind", ["gain", "many steps"])
def test_masks_hold_in_the_gain_and_in_further_steps(kind):
    smart = Setting(bert().train(), num_steps=1 if kind == "gain" else 3)()
    assert 2 < smart.gain() < 1e4
    assert smart.gain(torch.ones_like(smart.delta)) != smart.gain(-smart.delta)


# Ways to apply J


class _Square(torch.autograd.Function):
    """x + x^2 / 2 with a backward and no forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + x * x / 2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 + x)


class _OnceSquare(_Square):
    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (1 + x)


class Custom(nn.Module):
    def __init__(self, function, num_outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.layers = nn.ModuleList([nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, num_outputs)])

    def forward(self, x):
        hidden = self.layers[1](self.layers[0](x))
        hidden = (
            self.function(hidden) if self.function is torch.tanh else self.function.apply(hidden)
        )
        return self.layers[2](hidden.tanh().mean(1))


WAYS = [
    (torch.tanh, 3, "forward"),
    (_Square, 3, "reverse"),
    (_OnceSquare, 3, "finite"),
    (torch.tanh, 2, "rows"),
    (_OnceSquare, 2, "rows"),
]


@pytest.mark.parametrize("branch", ["forward", "linear"])
@pytest.mark.parametrize(("function", "num_outputs", "kind"), WAYS)
def test_each_way_climbs_and_differentiates_as_float64_does(function, num_outputs, kind, branch):
    model = Custom(function, num_outputs)
    torch.manual_seed(1)
    x = torch.randn(4, 5, 6)
    mask = torch.ones(4, 5, dtype=torch.bool)
    config = SmartConfig(branch=branch, radius=0.01)
    regularizer = SmartRegularizer(model, config)
    smart = regularizer(x, mask=mask, noise=x)
    again = regularizer(x, mask=mask, noise=x)
    assert smart.jacobian == again.jacobian == kind and torch.equal(smart.delta, again.delta)
    exact = Exact(model, lambda model, x: model(x), lambda model: x.double(), None)
    direction = exact.gradient(SYMMETRIC_KL, x)
    peak = direction.abs().amax(dim=-1, keepdim=True)
    assert cosine(smart.delta, 0.01 * direction / peak) > 0.9999
    got = weight_gradient(smart.loss, model)
    assert cosine(got, exact.weight_gradient(SYMMETRIC_KL, smart.delta)) > 0.999
    if branch == "linear":
        assert smart.tangent == ("finite" if function is _OnceSquare else kind)
        assert "once only" in regularizer.reasons.get(kind, "once only")
        assert abs(smart.loss.item() / exact.loss(SYMMETRIC_KL, smart.delta).item() - 1) < 0.05


@pytest.mark.parametrize("divergence", [SYMMETRIC_KL, SQUARED], ids=["classes", "values"])
def test_one_output_takes_one_row_and_finds_what_forward_mode_finds(divergence):
    model = bert(1)
    setting = Setting(model, divergence)
    smart = setting()
    assert smart.jacobian == "rows" and smart.logits.shape == (4, 1)
    twice = SmartRegularizer(
        lambda x: torch.cat([logits_at(model, x)] * 2, 1)[:, 0], None, divergence
    )
    torch.manual_seed(3)
    flat = twice(setting.embeddings, mask=MASK)
    assert torch.equal(flat.delta, smart.delta)
    exact = setting.exact(smart)
    assert abs(smart.loss.item() / exact.loss(divergence, smart.delta).item() - 1) < 1e-3
    peak = exact.gradient(divergence, smart.delta).abs().amax(dim=-1, keepdim=True)
    direction = exact.gradient(divergence, smart.delta) / peak
    assert cosine(smart.delta[MASK], 0.02 * direction[MASK]) > 0.9999


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize("bf16", [False, True])
def test_paper_under_autocast_and_in_train_mode(attention, num_labels, bf16):
    """In bf16 the linear branch differentiates a tangent through softmax and LayerNorm."""
    setting = Setting(bert(num_labels, attention).train(), preset="paper")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        smart = setting()
    exact = setting.exact(smart)
    assert smart.branch == ("linear" if bf16 else "forward")
    assert smart.tangent == (("rows" if num_labels == 2 else "forward") if bf16 else None)
    expected = exact.loss(SYMMETRIC_KL, smart.delta).item()
    assert abs(smart.loss.item() / expected - 1) < (0.1 if bf16 else 0.02)
    got = weight_gradient(smart.loss, setting.model)
    want = exact.weight_gradient(SYMMETRIC_KL, smart.delta)
    assert cosine(got, want) > 0.99


# Compiled, checkpointed


def test_checkpointed_layers_are_replayed_too():
    plain = Setting(bert().train())
    checkpointed = copy.deepcopy(plain.model)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": False})
    other = Setting(checkpointed)
    ours, theirs = plain(), other()
    assert theirs.jacobian == "forward"
    torch.testing.assert_close(theirs.delta, ours.delta)
    torch.testing.assert_close(theirs.loss, ours.loss)
    grads = (weight_gradient(s.loss, m) for s, m in ((ours, plain.model), (theirs, checkpointed)))
    assert cosine(*grads) > 0.999999


def test_a_checkpointed_tangent_is_differentiated_by_differences():
    model = bert().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    setting = Setting(model, branch="linear", radius=1e-4)
    smart = setting()
    assert (smart.jacobian, smart.tangent) == ("forward", "finite")
    want = setting.exact(smart).weight_gradient(SYMMETRIC_KL, smart.delta)
    assert cosine(weight_gradient(smart.loss, model), want) > 0.99


def test_reentrant_checkpoints_are_refused():
    model = bert().train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="use_reentrant=False"):
        Setting(model)()


@pytest.mark.parametrize("num_labels", [2, 3])
def test_a_compiled_model_is_asked_for_tangents_as_it_was_written(num_labels):
    model = bert(num_labels)
    plain = Setting(model)()
    setting = Setting(torch.compile(model, backend="aot_eager"))
    smart = setting()
    assert smart.jacobian == ("rows" if num_labels == 2 else "forward")
    torch.testing.assert_close(smart.delta, plain.delta, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(smart.loss, plain.loss, rtol=1e-3, atol=0)


# What is refused


X, REAL = torch.randn(4, 5, 6), torch.ones(4, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("model_fn", "message"),
    [
        (lambda x: x.mean(1).argmax(-1), "logits must be floating, got torch.int64"),
        (lambda x: {"scores": x}, "must return a tensor, what has .logits, or a tuple"),
        (lambda x: (), "must return a tensor"),
        (lambda x: x, r"logits must be .*got \(4, 5, 6\)"),
        (lambda x: x.sum(), r"logits must be .*got \(\)"),
        (lambda x: torch.zeros(4, 3), "does not depend on its embeddings"),
        (lambda x: torch.zeros(4, 3, requires_grad=True) * 2, "does not depend on its embeddings"),
        (lambda x: torch.zeros(4, 1, requires_grad=True) * 2, "does not depend on its embeddings"),
    ],
)
def test_results_that_are_no_logits(model_fn, message):
    with pytest.raises(ValueError, match=message):
        SmartRegularizer(model_fn)(X, mask=REAL)


def test_logits_of_other_embeddings_are_refused():
    model = Custom(torch.tanh)
    regularizer = SmartRegularizer(model)
    with pytest.raises(ValueError, match=r"gives \(4, 3\) where the clean outputs are \(2, 3\)"):
        regularizer(X, model(X[:2]), REAL)
    with pytest.raises(ValueError, match="does not give these logits for these embeddings"):
        regularizer(X, model(X - 3 * X), REAL)


def test_a_model_that_does_not_repeat_itself_is_refused():
    calls = iter(range(100))
    model = Custom(torch.tanh)
    with pytest.raises(ValueError, match="a model that repeats itself"):
        SmartRegularizer(lambda x: model(x) * (1 + next(calls)))(X, mask=REAL)


def test_token_ids_and_a_missing_mask_are_refused():
    with pytest.raises(ValueError, match=r"must be floating, got torch\.int64"):
        SmartRegularizer(lambda x: x)(torch.ones(2, 3, dtype=torch.int64), mask=REAL)
    with pytest.raises(ValueError, match="mask is missing"):
        SmartRegularizer(lambda x: x)(X)


@pytest.mark.parametrize("wrap", [lambda t: (t, None), lambda t: {"logits": t}, lambda t: [t]])
def test_tuples_and_mappings_hold_the_logits(wrap):
    model = Custom(torch.tanh)
    plain = SmartRegularizer(model)(X, mask=REAL, noise=X)
    other = SmartRegularizer(lambda x: wrap(model(x)))(X, wrap(model(X)), REAL, noise=X)
    assert torch.equal(plain.loss, other.loss)


def test_inputs_go_with_every_pass():
    model = bert()
    regularizer = SmartRegularizer(lambda x, **inputs: model(inputs_embeds=x, **inputs))
    x, inputs = word_embeddings(model), {"attention_mask": BATCH["attention_mask"]}
    smart = regularizer(x, mask=MASK, inputs=inputs, noise=x)
    plain = SmartRegularizer(lambda x: logits_at(model, x))(x, mask=MASK, noise=x)
    assert torch.equal(smart.loss, plain.loss)
