"""SmartRegularizer.for_transformers and MomentumTeacher on stock models."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sbrrt_fast import BregmanConfig, MomentumTeacher, SmartConfig, SmartRegularizer
from sbrrt_fast.errors import ConfigError, WeightsError
from sbrrt_fast.smart.divergence import SQUARED, SYMMETRIC_KL
from sbrrt_fast.smart.replay import RandomState
from tests.smart.stock_models import bert, padded_batch, weight_gradient

transformers = pytest.importorskip("transformers")

BATCH = padded_batch()
MASK = BATCH["attention_mask"].bool()
LABELS = torch.tensor([0, 2, 1, 1])
SPECIAL_IDS = [2, 3]


def regularizer_of(model, divergence=None, **settings):
    config = SmartConfig(**settings)
    return SmartRegularizer.for_transformers(model, config, divergence, special_ids=SPECIAL_IDS)


def test_an_output_has_what_the_model_returned():
    model = bert().train()
    torch.manual_seed(0)
    smart = regularizer_of(model)(**BATCH, labels=LABELS)
    torch.manual_seed(0)
    plain = model(**BATCH, labels=LABELS)
    assert torch.equal(smart.logits, plain.logits)
    assert torch.equal(smart.model_output.loss, plain.loss)
    assert smart.delta.shape == (*MASK.shape, model.config.hidden_size)
    assert (smart.jacobian, smart.branch) == ("forward", "forward") and smart.loss > 0
    (smart.model_output.loss + smart.loss).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_nothing_of_the_embedding_layer_happens_twice():
    """Its own output put in its place gives the clean logits; the word embeddings do not."""
    model = bert().train()
    regularizer = regularizer_of(model)
    with regularizer.clean_pass() as seen:
        clean = model(**BATCH).logits
    seen_again = torch.get_rng_state()
    seen.state.restore()
    assert torch.equal(regularizer.replaced(seen.embeddings, **BATCH).logits, clean)
    assert torch.equal(torch.get_rng_state(), seen_again)
    seen.state.restore()
    with torch.no_grad():
        words = model.get_input_embeddings()(BATCH["input_ids"])
    assert not torch.allclose(regularizer.replaced(words, **BATCH).logits, clean, atol=1e-2)


def test_padding_and_special_tokens_stay():
    model = bert()
    inside = MASK & (BATCH["input_ids"] != 2) & (BATCH["input_ids"] != 3)
    for settings, perturbed in (({}, inside), ({"perturb_special": True}, MASK)):
        delta = regularizer_of(model, **settings)(**BATCH).delta
        assert torch.equal(delta.ne(0).any(-1), perturbed)


def test_special_tokens_are_those_of_the_tokenizer_or_the_configuration():
    class Tokenizer:
        cls_token_id, sep_token_id, pad_token_id, eos_token_id = 2, 3, 1, None

    model = bert(bos_token_id=5)
    own = SmartRegularizer.for_transformers(model)
    theirs = SmartRegularizer.for_transformers(model, tokenizer=Tokenizer())
    assert own.special_ids == [0, 5] and theirs.special_ids == [1, 2, 3]


def test_frozen_embeddings_are_perturbed_too():
    model = bert()
    loose = regularizer_of(model)(**BATCH, noise=torch.ones(4, 9, 32))
    for p in model.bert.embeddings.parameters():
        p.requires_grad_(False)
    frozen = regularizer_of(model)(**BATCH, noise=torch.ones(4, 9, 32))
    assert torch.equal(loose.delta, frozen.delta)
    frozen.loss.backward()
    assert model.bert.embeddings.LayerNorm.weight.grad is None


def test_values_are_told_by_the_configuration():
    assert regularizer_of(bert(1)).divergence is SQUARED
    assert regularizer_of(bert(2)).divergence is SYMMETRIC_KL
    assert regularizer_of(bert(3, problem_type="regression")).divergence is SQUARED
    with pytest.raises(ValueError, match="several labels at once"):
        regularizer_of(bert(3, problem_type="multi_label_classification"))
    smart = regularizer_of(bert(1))(**BATCH)
    assert smart.jacobian == "rows" and smart.loss > 0


def test_an_autocast_inside_of_the_model_is_seen():
    """Accelerate wraps forward in autocast: outside it is off."""
    model = bert(2)
    forward = model.forward
    model.forward = lambda *args, **kwargs: in_autocast(forward, args, kwargs)
    smart = regularizer_of(model, preset="paper")(**BATCH)
    assert (smart.branch, smart.tangent) == ("linear", "rows")
    exact = regularizer_of(bert(2).double(), preset="paper", branch="linear")(**BATCH)
    assert abs(smart.loss.item() / exact.loss.item() - 1) < 0.2
    grads = weight_gradient(smart.loss, model)
    assert all(
        g.norm() > 0
        for g, (n, _) in zip(grads, model.named_parameters(), strict=True)
        if n.endswith("dense.weight")
    )


def in_autocast(forward, args, kwargs):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return forward(*args, **kwargs)


def test_a_part_of_the_model_may_be_compiled():
    model = bert(2)
    noise = torch.ones(4, 9, 32)
    plain = regularizer_of(model)(**BATCH, noise=noise)
    model.bert.encoder.compile(backend="aot_eager")
    compiled = regularizer_of(model)(**BATCH, noise=noise)
    torch.testing.assert_close(compiled.loss, plain.loss, rtol=1e-3, atol=0)


def test_a_compiled_model_is_refused():
    in_place = bert()
    in_place.compile(backend="aot_eager")
    for model in (in_place, torch.compile(bert(), backend="aot_eager")):
        with pytest.raises(ValueError, match="compile what comes after it"):
            regularizer_of(model)


def test_copies_of_a_model_are_refused():
    with pytest.raises(ValueError, match="start a process per GPU instead"):
        regularizer_of(nn.DataParallel(bert()))


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"noise must be \(4, 9, 32\) as the embeddings are"):
        regularizer_of(bert())(**BATCH, noise=torch.ones(4, 9, 1))


def test_a_gain_moves_no_generator():
    smart = regularizer_of(bert().train())(**BATCH)
    before = torch.get_rng_state()
    assert smart.gain() > 1
    assert torch.equal(torch.get_rng_state(), before)


def test_a_decoder_is_perturbed_at_its_word_embeddings():
    config = transformers.GPT2Config(
        vocab_size=90, n_embd=32, n_layer=2, n_head=2, n_positions=20, num_labels=2, pad_token_id=1
    )
    torch.manual_seed(0)
    model = transformers.GPT2ForSequenceClassification(config).train()
    regularizer = regularizer_of(model)
    assert regularizer.layer is model.transformer.wte
    assert regularizer(**BATCH).loss > 0


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(90, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids, times=2):
        return sum(self.head(self.embeddings(input_ids).mean(1)) for _ in range(times))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"times": 2}, "calls Embedding 2 times"),
        ({"times": 1, "attention_mask": torch.ones(4, 3)}, "attention_mask must be"),
    ],
)
def test_batches_and_models_that_do_not_fit(batch, message):
    model = Twice()
    forward = model.forward
    model.forward = lambda attention_mask=None, **kwargs: forward(**kwargs)
    with pytest.raises(ValueError, match=message):
        regularizer_of(model)(input_ids=BATCH["input_ids"], **batch)


def test_layers_that_are_not_there_or_not_reached():
    with pytest.raises(ValueError, match="has no embedding layer that is known"):
        regularizer_of(nn.Linear(3, 3))
    model = bert()
    other = SmartRegularizer.for_transformers(model, embedding_layer=nn.Embedding(3, 3))
    with pytest.raises(ValueError, match="does not reach Embedding"):
        other(**BATCH)


# The teacher


def test_the_teacher_drops_out_as_the_student_did():
    model = bert().train()
    regularizer, teacher = regularizer_of(model), MomentumTeacher(model)
    smart = regularizer(**BATCH, labels=LABELS)
    arguments = {**BATCH, "labels": LABELS}
    assert teacher.loss(smart.logits, random_state=smart.random_state, **arguments) == 0
    fresh = teacher.loss(smart.logits, random_state=RandomState(), **arguments)
    assert fresh > 1e-3
    with pytest.raises(ValueError, match="give the state before its pass, random_state=smart"):
        teacher.loss(smart.logits, **BATCH)
    fresh.backward()
    assert model.classifier.weight.grad.norm() > 0
    assert all(p.grad is None for p in teacher.module.parameters())


def test_the_teacher_follows_and_is_saved():
    model = bert()
    teacher = MomentumTeacher(model, BregmanConfig(beta=0.75))
    before = model.classifier.weight.detach().clone()
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    teacher.update(1)
    expected = before + 0.25
    torch.testing.assert_close(teacher.module.classifier.weight, expected)
    other = MomentumTeacher(copy.deepcopy(model), BregmanConfig(beta=0.75))
    other.load_state_dict(teacher.state_dict())
    assert torch.equal(other(**BATCH).logits, teacher(**BATCH).logits)
    with pytest.raises(WeightsError, match="is not in the saved teacher"):
        other.load_state_dict({})
    loss = teacher.loss(model(**BATCH).logits, **BATCH)
    want = SYMMETRIC_KL(model(**BATCH).logits, teacher(**BATCH).logits).mean()
    assert torch.equal(loss, want) and loss > 0


def test_the_paper_s_schedule_needs_the_number_of_steps():
    with pytest.raises(ValueError, match="needs total_steps"):
        MomentumTeacher(bert(), BregmanConfig(schedule="paper"))
    MomentumTeacher(bert(), BregmanConfig(schedule="paper"), total_steps=10).update(3)


def test_a_teacher_s_settings_are_in_their_ranges():
    with pytest.raises(ConfigError, match=r"bregman\.beta: must be from 0 to 1, got 1\.5"):
        MomentumTeacher(bert(), BregmanConfig(beta=1.5))
