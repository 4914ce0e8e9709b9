"""Adapters of the library peft on MiniBert."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from sbrrt_fast.model.bert import MiniBert
from tests.model.models import CONFIG, random_model

peft = pytest.importorskip("peft", reason="needs peft: pip install -e '.[lora]'")

IDS = torch.randint(1, CONFIG.vocab_size, (3, 9), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(9) < torch.tensor([[9], [4], [7]])).long()
TARGETS = ("query", "key", "value", "dense", "word_embeddings")


@pytest.fixture
def encoder() -> MiniBert:
    return random_model(pooling="cls").encoder


def pooled(encoder: MiniBert) -> torch.Tensor:
    return encoder.pooler(encoder(IDS, MASK)[:, 0])


def lora(*targets: str, **options):
    """Adapters that change something from the start."""
    return peft.LoraConfig(target_modules=list(targets), r=4, init_lora_weights=False, **options)


@pytest.mark.parametrize("target", TARGETS)
def test_adapters_have_effect_and_gradients_and_train_alone(encoder, target):
    before = pooled(encoder)
    frozen = {name: p.clone() for name, p in encoder.named_parameters()}
    peft.inject_adapter_in_model(lora(target), encoder)
    assert not torch.allclose(pooled(encoder), before)
    adapters = {n: p for n, p in encoder.named_parameters() if p.requires_grad}
    assert adapters
    assert all(".lora_" in name and f"{target}." in name for name in adapters)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    start = {name: p.clone() for name, p in adapters.items()}
    pooled(encoder.train()).pow(3).sum().backward()
    optimizer.step()
    assert not any(p.equal(start[name]) for name, p in adapters.items())
    kept = {n.replace("base_layer.", ""): p for n, p in encoder.named_parameters()}
    assert all(p.equal(kept[name]) for name, p in frozen.items())


def test_an_encoder_with_adapters_is_saved_merged(encoder, tmp_path):
    peft.inject_adapter_in_model(lora(*TARGETS), encoder)
    names = list(encoder.state_dict())
    encoder.save_pretrained(tmp_path / "saved")
    expected = encoder(IDS, MASK)
    theirs = AutoModel.from_pretrained(tmp_path / "saved").eval()(IDS, MASK).last_hidden_state
    ours = MiniBert.from_pretrained(tmp_path / "saved")
    is_real = MASK.bool()
    assert torch.allclose(theirs[is_real], expected[is_real], rtol=1e-4, atol=1e-4)
    assert torch.allclose(pooled(ours), pooled(encoder), rtol=1e-4, atol=1e-5)
    assert list(encoder.state_dict()) == names


def test_states_of_adapters_come_back(encoder):
    plain = {name: x.clone() for name, x in encoder.state_dict().items()}
    peft.inject_adapter_in_model(lora("query", "dense"), encoder)
    state = peft.get_peft_model_state_dict(encoder, adapter_name="default")
    again = MiniBert(CONFIG, "cls").eval()
    again.load_state_dict(plain)
    peft.inject_adapter_in_model(lora("query", "dense"), again)
    peft.set_peft_model_state_dict(again, state, adapter_name="default")
    assert torch.equal(pooled(again), pooled(encoder))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(pooled(again), pooled(encoder))


@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION"])
def test_get_peft_model(encoder, task, tmp_path):
    plain = MiniBert(CONFIG, "cls").eval()
    plain.load_state_dict(encoder.state_dict())
    model = peft.get_peft_model(encoder, lora("value", "dense", task_type=task)).eval()
    expected = model(input_ids=IDS, attention_mask=MASK)
    assert not torch.allclose(expected, plain(IDS, MASK))
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert torch.equal(again(input_ids=IDS, attention_mask=MASK), expected)
    merged = model.merge_and_unload()
    assert type(merged) is MiniBert
    assert torch.allclose(merged(IDS, MASK), expected, rtol=1e-4, atol=1e-4)


def test_peft_knows_its_targets_for_bert(encoder):
    model = peft.get_peft_model(encoder, peft.LoraConfig(r=2))
    assert model.peft_config["default"].target_modules == {"query", "value"}


def test_adapters_with_gradient_checkpointing(encoder):
    encoder.gradient_checkpointing_enable()
    model = peft.get_peft_model(encoder, lora("query", lora_dropout=0.3)).train()

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(2)
        adapters = [p for p in model.parameters() if p.requires_grad]
        result = model(input_ids=IDS, attention_mask=MASK)
        return torch.autograd.grad(result.pow(3).sum(), adapters)

    checkpointed = gradients()
    encoder.gradient_checkpointing_disable()
    assert all(map(torch.equal, checkpointed, gradients()))
