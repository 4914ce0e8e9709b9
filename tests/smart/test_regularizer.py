"""SMART: directions, presets, resolution and gains."""

from __future__ import annotations

import itertools

import pytest
import torch

from sbrrt_fast import SmartRegularizer
from sbrrt_fast.config import RunConfig, SmartConfig
from sbrrt_fast.config_rules import validate
from sbrrt_fast.data.assemble import assemble
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.data.task import BUILTIN_TASKS, Example
from sbrrt_fast.data.tokenizer import load_tokenizer
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.smart.divergence import SQUARED, divergence_of
from sbrrt_fast.smart.presets import PRESETS, resolve
from sbrrt_fast.training.trainer import Trainer
from tests.model.models import TASKS, random_batch, random_model, stream_of

LENGTHS = [6, 3, 17, 9, 13, 2]


class Setting:
    """A model, a batch and everything a regulariser's call takes."""

    def __init__(self, task="sst", dtype=torch.float32, model=None, batch=None):
        self.task = task
        self.model = model or random_model(dtype)
        self.batch = batch or random_batch(LENGTHS)
        self.stream = stream_of(self.batch)
        self.embeddings = self.model.embed(self.batch, self.stream)
        self.logits = self.model_fn(self.embeddings)
        self.mask = self.batch.is_real & ~self.batch.is_special
        self.noise = self.stream.normal(self.embeddings.shape[-1])
        self.divergence = divergence_of(self.model.tasks[task])

    def model_fn(self, x):
        return self.model.logits(self.task, x, self.batch, self.stream)

    def regularizer(self, **settings):
        return SmartRegularizer(self.model_fn, SmartConfig(**settings), self.divergence)

    def call(self, mask=None, noise=None, **settings):
        place = {
            "mask": self.mask if mask is None else mask,
            "sequence": self.batch.sequence,
            "noise": self.noise if noise is None else noise,
        }
        return self.regularizer(**settings)(self.embeddings, self.logits, **place)

    def gain(self, num_draws=1, **settings):
        """Geometric mean over draws of the initial noise and of the random direction."""
        regularizer, width = self.regularizer(**settings), self.embeddings.shape[-1]
        gains = []
        for draw in range(num_draws):
            start, direction = (self.stream.normal(width, 100 + 2 * draw + i) for i in (0, 1))
            delta = self.call(noise=start, **settings).delta
            place = {"sequence": self.batch.sequence, "noise": direction}
            gains.append(regularizer.gain(self.embeddings, self.logits, self.mask, delta, **place))
        return torch.stack(gains).log().mean().exp().item()


@pytest.fixture(scope="module")
def minilm_model(minilm_dir):
    return MultiTaskModel(MiniBert.from_folder(minilm_dir), TASKS)


SENTENCES = [
    ("A gripping, funny and deeply felt film.", "A dull film that never comes alive."),
    ("How do I learn to play the piano at forty?", "Can an adult still learn the piano?"),
    ("Two dogs are running along the beach.", "A man is cutting bread in a kitchen."),
    (
        "The minister resigned on Monday after the vote.",
        "After the vote the minister stepped down.",
    ),
]


def minilm_setting(task: str, minilm_dir, model) -> Setting:
    config = BUILTIN_TASKS[task]
    texts = [pair if config.is_pair else pair[:1] for pair in SENTENCES]
    examples = [Example(str(i), text, 0.0) for i, text in enumerate(texts)]
    tokenizer = load_tokenizer(minilm_dir)
    stored = TokenizedTask.build(task, config, "dev", examples, tokenizer, 64)
    return Setting(task, model=model, batch=assemble(stored, torch.arange(len(examples))))


def cosine(a, b):
    return torch.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0).item()


@pytest.mark.parametrize("task", list(TASKS))
def test_tangent_agrees_with_float64_finite_differences(task):
    """The ascent gradient in float32, against differences with sigma = 1e-5 in float64."""
    model = random_model()
    exact = Setting(task, model=random_model_copy(model).double(), batch=random_batch(LENGTHS))
    single = Setting(task, model=model, batch=exact.batch)
    sigma = 1e-5
    delta = sigma * exact.noise.double() * exact.mask[:, None]
    finite = exact.regularizer().finite_gradient(exact.embeddings, exact.logits, delta)
    tangent = single.regularizer().tangent_gradient(single.embeddings, single.logits, delta.float())
    assert cosine(tangent, finite) >= 0.9999
    assert abs(tangent.double().norm() / finite.norm() - 1) < 1e-3


def random_model_copy(model):
    copy = random_model()
    copy.load_state_dict(model.state_dict())
    return copy


@pytest.mark.parametrize("task", list(TASKS))
def test_tangent_agrees_on_minilm(task, minilm_dir, minilm_model):
    single = minilm_setting(task, minilm_dir, minilm_model)
    sigma = 1e-5
    delta = sigma * single.noise * single.mask[:, None]
    tangent = single.regularizer().tangent_gradient(single.embeddings, single.logits, delta)
    double = MultiTaskModel(MiniBert.from_folder(minilm_dir), TASKS).double()
    double.load_state_dict(minilm_model.state_dict())
    exact = Setting(task, model=double, batch=single.batch)
    finite = exact.regularizer().finite_gradient(exact.embeddings, exact.logits, delta.double())
    assert cosine(tangent, finite) >= 0.9999


@pytest.mark.parametrize(("task", "num_steps"), list(itertools.product(TASKS, (1, 2))))
def test_paper_stays_in_the_ball_and_is_epsilon_sign_g_where_saturated(task, num_steps):
    setting = Setting(task, torch.float64)
    output = setting.call(preset="paper", num_steps=num_steps)
    radius = PRESETS["paper"]["radius"]
    assert output.delta.abs().max() <= radius
    assert output.delta[~setting.mask].eq(0).all()
    if num_steps == 1:
        noise = PRESETS["paper"]["sigma"] * setting.noise.double() * setting.mask[:, None]
        gradient = setting.regularizer(preset="paper").tangent_gradient(
            setting.embeddings, setting.logits, noise
        )
        gradient = gradient * setting.mask[:, None]
        largest = torch.zeros(len(LENGTHS), dtype=torch.float64).scatter_reduce(
            0, setting.batch.sequence, gradient.abs().amax(dim=1), "amax"
        )[setting.batch.sequence]
        step = 1e-3 * gradient / largest[:, None]
        saturated = step.abs() > radius + noise.abs()
        assert saturated[setting.mask].double().mean() > 0.9
        assert torch.equal(output.delta[saturated], radius * gradient.sign()[saturated])


@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("gradient", ["tangent", "finite"])
def test_both_gradients_find_the_same_perturbation(preset, gradient):
    setting = Setting("sst", torch.float64)
    outputs = [setting.call(preset=preset, gradient=g) for g in ("tangent", gradient)]
    assert cosine(outputs[0].delta, outputs[1].delta) > 0.9999
    assert abs(outputs[0].loss / outputs[1].loss - 1) < 1e-3


@pytest.mark.parametrize("task", list(TASKS))
def test_linear_and_forward_branches_agree_for_small_perturbations(task):
    setting = Setting(task, torch.float64)
    losses = [setting.call(preset="paper", branch=b).loss for b in ("forward", "linear")]
    assert abs(losses[0] / losses[1] - 1) < 1e-3
    parameters = [p for p in setting.model.parameters() if p.requires_grad]
    gradients = [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        for loss in losses
    ]
    flat = [torch.cat([g.flatten() for g in found if g is not None]) for found in gradients]
    assert (flat[0] - flat[1]).norm() < 2e-3 * flat[0].norm()


def test_more_steps_and_the_l2_ball_climb_higher():
    setting = Setting("sst", torch.float64)
    options = {"norm": "2", "level": "sequence", "radius": 0.1}
    one, five = (setting.call(num_steps=n, **options).loss for n in (1, 5))
    random = setting.call(preset="mtdnn", **options).loss
    assert five >= one * (1 - 1e-6) > random
    size = setting.call(**options).delta.double().square()
    norms = torch.zeros(len(LENGTHS), dtype=torch.float64)
    norms = norms.index_add(0, setting.batch.sequence, size.sum(dim=1)).sqrt()
    assert torch.allclose(norms[:-1], torch.full_like(norms[:-1], 0.1))  # the last is all special


@pytest.mark.parametrize("task", list(TASKS))
def test_gains_on_minilm(task, minilm_dir, minilm_model):
    """Published code perturbs at random; the gradient's direction is an adversary."""
    setting = minilm_setting(task, minilm_dir, minilm_model)
    assert 0.5 < setting.gain(8, preset="mtdnn") < 2.0
    assert setting.gain(preset="adversarial") > 10.0
    assert setting.gain(preset="paper") > 10.0


@pytest.mark.parametrize("task", list(TASKS))
def test_shared_masks_make_the_divergence_of_an_unperturbed_pass_zero(task):
    setting = Setting(task)
    again = setting.model_fn(setting.embeddings)
    assert setting.divergence(again, setting.logits).eq(0).all()
    other = setting.stream.fork(1)
    fresh = setting.model.logits(task, setting.embeddings, setting.batch, other)
    assert setting.divergence(fresh, setting.logits).min() > 0


def test_cross_gradients_reach_both_outputs():
    z, w = torch.randn(2, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    for divergence in (divergence_of(TASKS["sst"]), SQUARED):
        gradients = torch.autograd.grad(divergence(z, w).sum(), (z, w))
        assert all(g.norm() > 0 for g in gradients)


def test_usable_alone_on_padded_embeddings():
    """Any model of [sequences, length, hidden] embeddings, with torch's noise."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5 * 8, 3))
    embeddings = torch.randn(4, 5, 8, requires_grad=True)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[:, 3:] = False
    smart = SmartRegularizer(model)(embeddings, model(embeddings), mask)
    assert smart.delta[:, 3:].eq(0).all()
    assert torch.allclose(smart.delta[:, :3].abs().amax(-1), torch.tensor(0.02))
    smart.loss.backward()
    assert model[1].weight.grad.norm() > 0 and embeddings.grad.norm() > 0
    detached = SmartRegularizer(model)(embeddings.detach(), model(embeddings).detach(), mask)
    assert detached.loss > 0 and detached.delta.requires_grad is False


def test_the_ascent_computes_no_weight_gradient():
    setting = Setting()
    seen = []
    weight = setting.model.encoder.encoder.layer[0].output.dense.weight
    weight.register_hook(lambda g: seen.append(g))
    setting.regularizer().tangent_gradient(setting.embeddings, setting.logits, setting.noise)
    assert seen == [] and weight.grad is None


def test_autocast_drops_no_weight_gradient():
    """Weight copies made while the tangent runs without a graph are not used afterwards."""
    setting = Setting()
    weight = setting.model.encoder.encoder.layer[0].output.dense.weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = setting.call(branch="forward", radius=0.1)
        gained = setting.model_fn(setting.embeddings)
    for value in (output.loss, gained.sum()):
        (gradient,) = torch.autograd.grad(value, weight, retain_graph=True)
        assert gradient.norm() > 0
    exact = Setting(model=random_model_copy(setting.model).double(), batch=setting.batch)
    expected = exact.call(branch="forward", radius=0.1)
    assert cosine(output.delta, expected.delta) > 0.99
    (want,) = torch.autograd.grad(
        expected.loss, exact.model.encoder.encoder.layer[0].output.dense.weight
    )
    (got,) = torch.autograd.grad(output.loss, weight)
    assert cosine(got, want) > 0.9


def test_differences_below_the_precision_are_refused():
    setting = Setting()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ConfigError, match=r"smart.gradient 'finite'.*rounding noise"):
            setting.call(preset="paper", gradient="finite")
        with pytest.raises(ConfigError, match=r"smart.branch 'forward'.*rounding noise"):
            setting.call(preset="paper", branch="forward")
        assert setting.call(preset="paper").branch == "linear"
        assert setting.call(preset="adversarial").branch == "forward"
    assert setting.call(preset="paper", gradient="finite").branch == "forward"


def test_paper_s_loss_survives_bf16_by_the_linear_branch():
    setting = Setting("sst")
    exact = Setting("sst", model=random_model_copy(setting.model).double(), batch=setting.batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = setting.call(preset="paper").loss.item()
    assert abs(got / exact.call(preset="paper").loss.item() - 1) < 0.05


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"weight": -1.0}, "weight"),
        ({"num_steps": 0}, "num_steps"),
        ({"radius": 0.0}, "radius"),
        ({"radius": 1e-30}, "radius"),  # its square is no float32
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": 1e-42}, "sigma"),
        ({"step_size": 0.0}, "step_size"),
    ],
)
def test_settings_out_of_range(settings, field):
    """Wherever they come from they are refused by one rule."""
    with pytest.raises(ConfigError, match=f"^smart.{field}: must be .*, got") as caught:
        resolve(SmartConfig(**settings))
    for refuse in (
        lambda config: SmartRegularizer(lambda x: x, config),
        lambda config: validate(RunConfig(smart=config)),
        lambda config: Trainer(RunConfig(smart=config), lambda line: None),
    ):
        with pytest.raises(ConfigError) as again:
            refuse(SmartConfig(**settings))
        assert str(again.value) == str(caught.value)


def test_shapes_that_do_not_fit():
    setting = Setting()
    with pytest.raises(ValueError, match="mask must be bool"):
        setting.call(mask=setting.mask.float())
    with pytest.raises(ValueError, match="embeddings must be"):
        setting.regularizer()(setting.embeddings, setting.logits, setting.mask)
    with pytest.raises(ValueError, match="does not depend on its embeddings"):
        SmartRegularizer(lambda x: torch.zeros(2, 3))(
            torch.randn(2, 4, 8), torch.zeros(2, 3), torch.ones(2, 4, dtype=torch.bool)
        )
