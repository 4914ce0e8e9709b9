"""Modules with hooks, parametrisations or another class are called, and count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.plain import is_plain, why_not_plain
from tests.model.models import CONFIG, random_batch, random_model, stream_of

LENGTHS = [6, 1, 9]
NAMES = [name for name, _ in MiniBert(CONFIG, "cls").named_modules() if name]
NAMES = [name for name in NAMES if not name.endswith(".layer")]  # a list, which nobody calls
LEAVES = [name for name in NAMES if is_plain(MiniBert(CONFIG, "cls").get_submodule(name))]


@pytest.fixture
def encoder() -> MiniBert:
    return random_model(torch.float64, "cls").encoder


def vectors(encoder: MiniBert, padded: bool = False) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        batch = random_batch(LENGTHS)
    batch = batch.padded() if padded else batch
    stream = stream_of(batch)
    return encoder.pool(encoder.encode(encoder.embed(batch, stream), batch, stream), batch)


def with_gradients(encoder: MiniBert, padded: bool = False) -> list[Tensor]:
    result = vectors(encoder, padded)
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    return [result, *torch.autograd.grad(result.pow(3).sum(), parameters)]


def is_close(a: list[Tensor], b: list[Tensor]) -> bool:
    return all((x - y).norm() <= 1e-12 * y.norm() + 1e-14 for x, y in zip(a, b, strict=True))


def test_there_are_all_kinds_of_leaves():
    kinds = {name.rsplit(".", 1)[-1] for name in LEAVES}
    assert kinds == {
        *("word_embeddings", "position_embeddings", "token_type_embeddings", "LayerNorm"),
        *("query", "key", "value", "dense"),
    }
    assert len(LEAVES) == 4 + 8 * CONFIG.num_hidden_layers + 1


@pytest.mark.parametrize("name", NAMES)
def test_a_hook_s_change_counts(encoder, name):
    before, fired = vectors(encoder), []

    def change(module, inputs, output):
        fired.append(name)
        return 1.5 * output + 0.25 * torch.linspace(0, 1, output.shape[-1], dtype=output.dtype)

    handle = encoder.get_submodule(name).register_forward_hook(change)
    assert not torch.allclose(vectors(encoder), before)
    assert fired == [name]
    handle.remove()
    assert torch.equal(vectors(encoder), before)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", LEAVES)
def test_a_module_that_is_called_gives_what_its_weights_give(encoder, name, padded):
    plain = with_gradients(encoder, padded)
    inputs = []
    handle = encoder.get_submodule(name).register_forward_pre_hook(
        lambda module, args: inputs.append(args)
    )
    assert is_close(with_gradients(encoder, padded), plain)
    assert len(inputs) == 1
    handle.remove()


@pytest.mark.parametrize("name", LEAVES)
def test_a_parametrised_weight_counts(encoder, name):
    plain, module = with_gradients(encoder), encoder.get_submodule(name)

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2.0 * weight

        def right_inverse(self, weight: Tensor) -> Tensor:
            return weight / 2.0

    parametrize.register_parametrization(module, "weight", Doubled())
    assert torch.allclose(vectors(encoder), plain[0], rtol=1e-12)
    with torch.no_grad():
        module.parametrizations.weight.original.mul_(3.0)
    assert not torch.allclose(vectors(encoder), plain[0])
    with_gradients(encoder)  # of every parameter


DENSE = [name for name in LEAVES if "dense" in name or "query" in name]


@pytest.mark.parametrize("normalise", [weight_norm, torch.nn.utils.weight_norm])
@pytest.mark.parametrize("name", DENSE)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weight_norm_counts(encoder, name, normalise):
    before, module = vectors(encoder), encoder.get_submodule(name)
    normalise(module)
    assert torch.allclose(vectors(encoder), before, rtol=1e-10)
    with torch.no_grad():
        next(p for n, p in module.named_parameters() if n.endswith(("_g", "original0"))).mul_(2.0)
    assert not torch.allclose(vectors(encoder), before)


class Biasless(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


def _other_class(module: nn.Module) -> None:
    module.__class__ = Biasless


def _other_forward(module: nn.Module) -> None:
    module.forward = lambda x: x @ module.weight.t()


def _no_bias(module: nn.Module) -> None:
    module.bias = None


@pytest.mark.parametrize("change", [_other_class, _other_forward, _no_bias])
@pytest.mark.parametrize("name", DENSE)
def test_another_forward_counts(encoder, name, change: Callable[[nn.Module], None]):
    changed, zeroed = vectors, vectors(encoder)
    module = encoder.get_submodule(name)
    bias = module.bias
    with torch.no_grad():
        kept = bias.clone()
        bias.zero_()
        zeroed = vectors(encoder)
        bias.copy_(kept)
    change(module)
    assert torch.allclose(changed(encoder), zeroed, rtol=1e-12)


def test_quantised_layers_are_called():
    from torch.ao.nn.quantized import dynamic

    encoder = random_model(pooling="cls").encoder
    before = vectors(encoder).detach()
    for layer in encoder.encoder.layer:
        for owner in (layer.attention.output, layer.intermediate, layer.output):
            owner.dense.qconfig = torch.ao.quantization.default_dynamic_qconfig
            owner.dense = dynamic.Linear.from_float(owner.dense)
    after = vectors(encoder)
    assert not torch.equal(after, before)
    assert torch.allclose(after, before, atol=0.2)


def test_hooks_of_all_modules_fire(encoder):
    plain, called = vectors(encoder), []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: called.append(module)
    )
    try:
        assert torch.allclose(vectors(encoder), plain, rtol=1e-12)
    finally:
        handle.remove()
    assert {id(encoder.get_submodule(name)) for name in NAMES} <= {id(m) for m in called}


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")  # of tables of ids
def test_backward_hooks_fire(encoder):
    grads = {}
    for name in LEAVES:
        encoder.get_submodule(name).register_full_backward_hook(
            lambda module, grad_input, grad_output, name=name: grads.update({name: grad_output[0]})
        )
    vectors(encoder).pow(3).sum().backward()
    assert set(grads) == set(LEAVES)


def test_embeddings_with_options_are_called(encoder):
    table = encoder.embeddings.word_embeddings
    assert is_plain(table)
    for option, value in (("padding_idx", 0), ("max_norm", 1.0), ("sparse", True)):
        other = nn.Embedding(CONFIG.vocab_size, CONFIG.hidden_size, **{option: value})
        assert not is_plain(other)


def test_a_model_says_what_is_not_plain():
    model = random_model(pooling="cls")
    assert why_not_plain(model) is None
    handle = model.encoder.encoder.layer[1].register_forward_hook(lambda *_: None)
    assert why_not_plain(model) == "encoder.encoder.layer.1 has hooks"
    handle.remove()
    model.encoder.pooler.dense.bias = None
    assert why_not_plain(model) == "encoder.pooler.dense has other options than the encoder's"
    model.encoder.pooler.dense = nn.Identity()
    assert "encoder.pooler.dense is a torch.nn.modules.linear.Identity" in why_not_plain(model)
