"""What the kernels do not know runs as before, and says why."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import transformers
from torch import nn

from sbrrt_fast import apply_sbrrt_kernels
from sbrrt_fast.errors import BackendError, ConfigError
from tests.hf.models import FAMILIES, batch, build, taken

AS_BEFORE = "a call runs on transformers' own layers: "


def assert_runs_as_before(model: nn.Module, reason: str, **call) -> None:
    """A call gives what the model gave, padding too, with a warning that has the reason."""
    fused = taken(model)
    with pytest.warns(UserWarning, match=f"{AS_BEFORE}.*{reason}"):
        ours = fused(**call)
    theirs = model(**call)
    assert ours.keys() == theirs.keys()
    for name, x in theirs.items():
        pair = zip(ours[name], x, strict=True) if isinstance(x, tuple) else [(ours[name], x)]
        for found, expected in pair:
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_on_the_left(family):
    """A model may read its first position, which is padding then."""
    inputs = batch(family)
    flipped = {name: x.flip(-1) if x.dim() == 2 else x for name, x in inputs.items()}
    model = build(family)
    assert_runs_as_before(model, "begins with padding", **flipped)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_of_padding_alone(family):
    inputs = batch(family)
    inputs["attention_mask"][2] = 0
    assert_runs_as_before(build(family), "begins with padding", **inputs)


def test_masks_that_are_not_of_padding():
    model, inputs = build("bert"), batch("bert", (6, 6))
    causal = torch.ones(2, 1, 6, 6).tril().bool()
    call = inputs | {"attention_mask": causal}
    assert_runs_as_before(model, "no .num_sequences, length. mask of padding", **call)


def test_probabilities_are_those_of_the_model_as_it_was():
    model = build("bert", attn_implementation="eager")
    assert_runs_as_before(model, "output_attentions", output_attentions=True, **batch("bert"))


def test_sequences_above_512_tokens():
    model = build("bert", max_position_embeddings=520)
    ids = torch.randint(4, 90, (1, 513))
    assert_runs_as_before(model, "513 tokens, above 512", input_ids=ids)
    mask = torch.ones_like(ids)
    assert_runs_as_before(model, "513 tokens, above 512", input_ids=ids, attention_mask=mask)
    mask[0, 512:] = 0  # the longest sequence counts, not the padded length
    fused = taken(model)
    ours, theirs = (m(ids, attention_mask=mask).logits for m in (fused, model))
    torch.testing.assert_close(ours, theirs)


def test_a_prepared_cache():
    model = build("bert", "")
    cache = transformers.DynamicCache(config=model.config)
    fused = taken(model)
    with pytest.warns(UserWarning, match="it has (cache|past_key_values)"):
        fused(batch("bert")["input_ids"], past_key_values=cache)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_decoder": True}, "config.is_decoder is set"),
        ({"is_decoder": True, "add_cross_attention": True}, "config.is_decoder is set"),
        ({"num_attention_heads": 4}, "neither 32 nor 64"),
        ({"chunk_size_feed_forward": 1}, "chunk_size_feed_forward"),
        ({"hidden_act": "relu"}, "not gelu"),
        ({"hidden_act": "gelu_new"}, "not gelu"),
    ],
)
def test_a_setting_that_the_kernels_do_not_know(changes, reason):
    stock, inputs = build("bert", **changes), batch("bert")
    fused = copy.deepcopy(stock)
    report = apply_sbrrt_kernels(fused)
    assert any(reason in text for text in report.left_alone.values())
    assert reason in str(report)
    torch.testing.assert_close(fused(**inputs).logits, stock(**inputs).logits)


def test_an_activation_is_left_alone_and_the_rest_is_taken():
    report = apply_sbrrt_kernels(build("bert", hidden_act="relu"))
    assert "bert.encoder.layer.1.attention.self" in report.taken
    assert "bert.encoder.layer.1.intermediate" in report.left_alone
    report = apply_sbrrt_kernels(build("distilbert", activation="relu"))
    assert "distilbert.transformer.layer.1" in report.taken
    assert "distilbert.transformer.layer.1.ffn" in report.left_alone


def test_an_activation_that_is_replaced_afterwards_counts():
    stock = build("bert")
    fused = taken(stock)
    for model in (stock, fused):
        for layer in model.bert.encoder.layer:
            layer.intermediate.intermediate_act_fn = nn.ReLU()
    inputs = batch("bert")
    torch.testing.assert_close(fused(**inputs).logits, stock(**inputs).logits)


def test_a_layer_of_another_kind_leaves_its_encoder_alone():
    class Louder(type(build("bert").bert.encoder.layer[0].output)):
        def forward(self, hidden_states, input_tensor):
            return 2 * super().forward(hidden_states, input_tensor)

    stock = build("bert")
    stock.bert.encoder.layer[1].output.__class__ = Louder
    fused = copy.deepcopy(stock)
    report = apply_sbrrt_kernels(fused)
    assert report.taken == ["bert.embeddings"]
    assert "layer 1.output is a Louder" in report.left_alone["bert.encoder"]
    inputs = batch("bert")
    torch.testing.assert_close(fused(**inputs).logits, stock(**inputs).logits)


def test_a_model_without_a_known_encoder_is_refused():
    config = transformers.GPT2Config(n_layer=1, n_embd=32, n_head=1, vocab_size=90)
    with pytest.raises(ConfigError, match="GPT2Model has no encoder that the kernels know"):
        apply_sbrrt_kernels(transformers.GPT2Model(config))
    with pytest.raises(ConfigError, match="Linear has no encoder"):
        apply_sbrrt_kernels(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="got str"):
        apply_sbrrt_kernels("bert-base-uncased")


def test_backends_are_checked():
    with pytest.raises(ConfigError, match="backend must be one of auto, "):
        apply_sbrrt_kernels(build("bert"), backend="fast")
    if not torch.cuda.is_available():
        with pytest.raises(BackendError, match="backend 'cuda' cannot run"):
            apply_sbrrt_kernels(build("bert"), backend="cuda")


def test_a_named_backend_is_the_one_that_runs():
    stock, inputs = build("bert"), batch("bert")
    found = taken(stock, backend="reference")(**inputs).logits
    torch.testing.assert_close(found, stock(**inputs).logits)
    with pytest.raises(BackendError, match="float64, which runs on the reference"):
        taken(stock, backend="cpu").double()(**inputs)


def test_nothing_imports_transformers_early():
    code = (
        "import sys, sbrrt_fast, sbrrt_fast.api; sbrrt_fast.apply_sbrrt_kernels;"
        "sbrrt_fast.register_sbrrt_attention; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_report_is_a_table():
    model = build("bert")
    lines = str(apply_sbrrt_kernels(model)).splitlines()
    assert lines[0].split() == ["module", "number", "class", "runs"]
    assert any(line.split() == ["bert.encoder.layer.*.attention.self", "2", "BertSelfAttention", "attention"] for line in lines)  # fmt: skip # noqa: E501
    assert any(line.startswith("classifier ") and "as before" in line for line in lines)
    assert [line.split(":")[0] for line in lines[-4:]] == [
        "embed", "attention", "dropout_add_layernorm", "bias_gelu",
    ]  # fmt: skip
    again = apply_sbrrt_kernels(model)
    assert str(again).splitlines() == lines
