"""Dropout of a model that is given no stream, and activations that are computed again."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from tests.helpers import tiny_backbone
from tests.model.models import CONFIG, random_batch, random_model, stream_of

IDS = torch.randint(1, CONFIG.vocab_size, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9) < torch.tensor([[9], [4], [7]])).long()


@pytest.fixture
def encoder() -> MiniBert:
    return random_model().encoder.train()


def seeded(model, *arguments, seed: int = 1, **keywords):
    torch.manual_seed(seed)
    return model(*arguments, **keywords)


def test_train_drops_out_and_eval_does_not(encoder):
    first, second = seeded(encoder, IDS, MASK), encoder(IDS, MASK)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first, seeded(encoder, IDS, MASK, seed=2))
    encoder.eval()
    state = torch.get_rng_state()
    assert torch.equal(encoder(IDS, MASK), encoder(IDS, MASK))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(first, encoder(IDS, MASK))


def test_the_seed_repeats_masks(encoder):
    assert torch.equal(seeded(encoder, IDS, MASK), seeded(encoder, IDS, MASK))


def test_the_rate_is_the_config_s(encoder):
    batch = random_batch([30, 30])
    is_kept = encoder.embed(batch) != 0
    p = CONFIG.hidden_dropout_prob
    assert (
        abs(is_kept.double().mean().item() - (1 - p)) < 5 * (p * (1 - p) / is_kept.numel()) ** 0.5
    )


def test_attention_drops_out_by_itself(encoder):
    config = BertConfig(**{**vars(CONFIG), "hidden_dropout_prob": 0.0})
    encoder.set_config(config)
    assert not torch.allclose(encoder(IDS, MASK), encoder(IDS, MASK))


def test_without_probabilities_nothing_is_drawn(encoder):
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder.set_config(BertConfig(**{**vars(CONFIG), **none}))
    state = torch.get_rng_state()
    assert torch.equal(encoder(IDS, MASK), encoder(IDS, MASK))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_given_stream_is_what_drops(encoder):
    batch = random_batch([5, 8])
    in_train = encoder.encode(encoder.embed(batch, stream_of(batch)), batch, stream_of(batch))
    encoder.eval()
    in_eval = encoder.encode(encoder.embed(batch, stream_of(batch)), batch, stream_of(batch))
    assert torch.equal(in_train, in_eval)


def test_heads_drop_out_with_the_encoder():
    model, batch = random_model(), random_batch([5, 8, 4, 6])
    model.encoder.encoder.layer = model.encoder.encoder.layer[:0]  # pooled vectors alone drop out
    embeddings = model.embed(batch)

    def outputs() -> torch.Tensor:
        return model.outputs("para", embeddings, batch)

    assert torch.equal(outputs(), outputs())
    model.train()
    assert not torch.allclose(outputs(), outputs())


def test_a_loaded_encoder_is_in_eval(tmp_path):
    encoder = MiniBert.from_pretrained(tiny_backbone(tmp_path / "backbone"))
    assert not any(module.training for module in encoder.modules())
    assert encoder.name_or_path == str(tmp_path / "backbone")


def gradients(encoder: MiniBert, call) -> list[torch.Tensor]:
    result = seeded(call)
    return [result, *torch.autograd.grad(result.pow(3).sum(), used_parameters(encoder))]


def used_parameters(encoder: MiniBert) -> list[torch.Tensor]:
    return [p for name, p in encoder.named_parameters() if not name.startswith("pooler")]


def test_somebody_s_checkpoint_replays_the_masks(encoder):
    plain = gradients(encoder, lambda: encoder(IDS, MASK))
    replayed = gradients(encoder, lambda: checkpoint(encoder, IDS, MASK, use_reentrant=False))
    assert all(map(torch.equal, plain, replayed))


@pytest.mark.parametrize("options", [None, {"use_reentrant": False, "preserve_rng_state": False}])
def test_gradient_checkpointing_gives_the_same_gradients(encoder, options):
    calls = []
    encoder.encoder.layer[1].register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradients(encoder, lambda: encoder(IDS, MASK))
    assert len(calls) == 1
    encoder.gradient_checkpointing_enable(options)
    assert encoder.is_gradient_checkpointing
    again = gradients(encoder, lambda: encoder(IDS, MASK))
    assert len(calls) == 3  # once in the forward, once in the backward
    assert all(map(torch.equal, plain, again))
    encoder.gradient_checkpointing_disable()
    assert not encoder.is_gradient_checkpointing
    assert all(map(torch.equal, plain, gradients(encoder, lambda: encoder(IDS, MASK))))
    assert len(calls) == 4


def test_gradient_checkpointing_keeps_less(encoder):
    def num_bytes_kept() -> int:
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: (kept.append(x.nbytes), x)[1], lambda x: x
        ):
            encoder(IDS, MASK)
        return sum(kept)

    whole = num_bytes_kept()
    encoder.gradient_checkpointing_enable()
    assert num_bytes_kept() < whole / 2


def test_forward_mode_goes_past_checkpointing(encoder):
    batch = random_batch([5, 8])
    x = torch.randn(13, CONFIG.hidden_size)

    def tangent() -> torch.Tensor:
        stream = stream_of(batch)
        return torch.func.jvp(lambda y: encoder.encode(y, batch, stream), (x,), (x.flip(0),))[1]

    plain = tangent()
    encoder.gradient_checkpointing_enable()
    assert torch.equal(tangent(), plain)


def test_embeddings_stand_for_ids(encoder):
    encoder.eval()
    types = torch.randint(0, 2, IDS.shape)
    words = encoder.get_input_embeddings()(IDS)
    expected = encoder(IDS, MASK, types)
    got = encoder(inputs_embeds=words, attention_mask=MASK, token_type_ids=types)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)
    encoder.train()
    expected = seeded(encoder, IDS, MASK, types)
    got = seeded(encoder, None, MASK, types, inputs_embeds=words)
    assert torch.allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_embeddings_get_gradients(encoder):
    words = encoder.get_input_embeddings()(IDS)
    (by_table,) = torch.autograd.grad(seeded(encoder, IDS).pow(3).sum(), [table_of(encoder)])
    leaf = words.detach().requires_grad_()
    grad = torch.autograd.grad(seeded(encoder, inputs_embeds=leaf).pow(3).sum(), leaf)[0]
    summed = torch.zeros_like(by_table).index_add(0, IDS.flatten(), grad.flatten(0, 1))
    assert torch.allclose(summed, by_table, rtol=1e-4, atol=1e-4 * by_table.abs().max())


def table_of(encoder: MiniBert) -> torch.nn.Parameter:
    return encoder.get_input_embeddings().weight


def test_other_word_embeddings_are_used(encoder):
    encoder.eval()
    before = encoder(IDS)
    encoder.set_input_embeddings(torch.nn.Embedding(CONFIG.vocab_size, CONFIG.hidden_size))
    assert not torch.allclose(encoder(IDS), before)


def test_arguments_that_cannot_be_are_refused(encoder):
    words = encoder.get_input_embeddings()(IDS)
    for arguments in ({}, {"input_ids": IDS, "inputs_embeds": words}):
        with pytest.raises(ValueError, match="give input_ids or inputs_embeds, one of the two"):
            encoder(**arguments)
    encoder(IDS, output_attentions=None, output_hidden_states=False, return_dict=None)
    with pytest.raises(ValueError, match="output_attentions must be None; last hidden states"):
        encoder(IDS, output_attentions=True)
    with pytest.raises(TypeError, match="there is no argument 'labels'"):
        encoder(IDS, labels=None)


def test_what_people_read_of_an_encoder(encoder):
    assert (encoder.device, encoder.dtype) == (torch.device("cpu"), torch.float32)
    assert encoder.to(torch.bfloat16).dtype == torch.bfloat16
    config = encoder.config.to_dict()
    assert config["model_type"] == "bert"
    assert config["hidden_size"] == encoder.config.hidden_size == CONFIG.hidden_size
