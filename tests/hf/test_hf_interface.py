"""``attn_implementation="sbrrt"`` in encoders that transformers lets choose their attention."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from sbrrt_fast import register_sbrrt_attention
from sbrrt_fast.errors import ConfigError
from tests.hf.models import WIDTH, WORDS, batch, build, errors, results, with_dropout

F32, F64 = torch.float32, torch.float64
IN_PLACE = "torch's attention runs in the place of sbrrt_fast's"


@pytest.fixture(autouse=True)
def _registered():
    register_sbrrt_attention()
    register_sbrrt_attention()  # once more changes nothing


def build_other(kind: str, **changes) -> torch.nn.Module:
    """XLM-RoBERTa, or another encoder of the same settings, for classification."""
    settings = {
        "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 96, "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "pad_token_id": 1,
        "bos_token_id": 0, "eos_token_id": 2, "num_labels": 3,
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(**settings | changes)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


MODELS = {
    "bert": lambda: build("bert"),
    "roberta": lambda: build("roberta"),
    "electra": lambda: build("electra"),
    "distilbert": lambda: build("distilbert"),
    "xlm-roberta": lambda: build_other("XLMRoberta"),
    "albert": lambda: build_other("Albert"),
}


def chosen(stock: torch.nn.Module) -> torch.nn.Module:
    model = copy.deepcopy(stock)
    model.set_attn_implementation("sbrrt")
    return model


def inputs_of(name: str) -> dict:
    return batch("bert" if name in ("bert", "electra", "distilbert") else "roberta")


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_same_with_padding(name):
    stock, inputs = MODELS[name](), inputs_of(name)
    found = errors(results(chosen(stock), inputs, F64), results(stock, inputs, F64))
    assert max(found.values()) < 1e-12


@pytest.mark.parametrize("name", ["bert", "xlm-roberta"])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_as_exact_as_torch_s(name, autocast):
    stock, inputs = MODELS[name](), inputs_of(name)
    exact = results(stock, inputs, F64)
    ours, theirs = (
        errors(results(m, inputs, F32, autocast), exact) for m in (chosen(stock), stock)
    )
    total = [sum(x * x for x in found.values()) ** 0.5 for found in (ours, theirs)]
    assert total[0] <= 2 * total[1]


@pytest.mark.parametrize("name", MODELS)
def test_without_padding_or_mask(name):
    stock, inputs = MODELS[name]().double(), inputs_of(name)
    ids = inputs["input_ids"][:1]
    for mask in (None, torch.ones_like(ids)):
        ours, theirs = (m(ids, attention_mask=mask).logits for m in (chosen(stock), stock))
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["bert", "roberta", "xlm-roberta"])
@pytest.mark.parametrize("what", ["left", "nothing", "4-d"])
def test_other_masks_run_torch_s_attention(name, what):
    stock, inputs = MODELS[name](), inputs_of(name)
    if what == "left":
        inputs = {n: x.flip(-1) if x.dim() == 2 else x for n, x in inputs.items()}
    elif what == "nothing":
        inputs["attention_mask"][2] = 0
    else:
        inputs["attention_mask"] = torch.ones(4, 1, 11, 11).tril().bool()
    with pytest.warns(UserWarning, match=IN_PLACE):
        ours = chosen(stock)(**inputs).logits
    torch.testing.assert_close(ours, stock(**inputs).logits)


def test_a_model_may_be_loaded_with_it(tmp_path):
    build("bert").save_pretrained(tmp_path)
    kind = transformers.BertForSequenceClassification
    stock = kind.from_pretrained(tmp_path)
    model = kind.from_pretrained(tmp_path, attn_implementation="sbrrt")
    assert model.config._attn_implementation == "sbrrt"
    inputs = batch("bert")
    torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits)


def test_a_scale_of_the_model_s_own_counts():
    stock = build("bert").double()
    for layer in stock.bert.encoder.layer:
        layer.attention.self.scaling = 0.3
    inputs = batch("bert")
    ours, theirs = (m(**inputs).logits for m in (chosen(stock), stock))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_repeats_the_masks_of_dropout(use_reentrant):
    model = chosen(build("bert", **with_dropout("bert", 0.0, 0.3))).train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    grads = []
    for checkpointed in (False, True):
        for layer in model.bert.encoder.layer:
            layer.gradient_checkpointing = checkpointed
        torch.manual_seed(1)
        model.zero_grad()
        model(**batch("bert")).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, replayed in zip(*grads, strict=True):
        assert torch.equal(plain, replayed)
    torch.manual_seed(2)
    model.zero_grad()
    model(**batch("bert")).loss.backward()
    assert not torch.equal(model.bert.embeddings.LayerNorm.weight.grad, grads[0][3])


def test_what_no_packing_can_stand_for_is_refused():
    config = transformers.GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=90)
    causal = transformers.GPT2Model(config)
    causal.set_attn_implementation("sbrrt")
    with pytest.raises(ConfigError, match=r"mask is another one .* choose .*'sdpa'"):
        causal(torch.tensor([[1, 2]]))
    model = chosen(build("bert"))
    with pytest.raises(ConfigError, match="no probabilities for output_attentions"):
        model(**batch("bert"), output_attentions=True)


def test_a_compiled_model_is_the_same():
    stock, inputs = build("bert"), batch("bert")
    compiled = torch.compile(chosen(stock), backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs).loss, stock(**inputs).loss)
