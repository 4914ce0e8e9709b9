"""SmartLoss around losses of sentence-transformers."""

from __future__ import annotations

import copy

import pytest
import torch

from sbrrt_fast import SmartConfig
from sbrrt_fast.smart.divergence import SQUARED, SYMMETRIC_KL
from tests.smart.examples import example, save_small_model
from tests.smart.stock_models import cosine, weight_gradient

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from sbrrt_fast.smart.sentence_loss import SmartLoss

FIRST, SECOND = ["a joy to", "slow", "and a joy"], ["a joy to joy to", "and slow", "to"]
SCORES, CLASSES = torch.tensor([1.0, 0.0, 0.4]), torch.tensor([1, 0, 2])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    save_small_model(folder)
    return folder


@pytest.fixture
def model(saved):
    """With the dropout of BERT's configuration, in ``train()``."""
    transformer = Transformer(str(saved))
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").train()


def columns(model):
    return [model.preprocess(FIRST), model.preprocess(SECOND)]


def sentences_at(model, delta):
    """Sentence embeddings where delta's columns are added to the embedding layer's output."""
    batches, begin, results = columns(model), 0, []
    for batch in batches:
        length = batch["input_ids"].shape[1]
        part = delta[:, begin : begin + length]
        hook = lambda module, args, output, part=part: output + part  # noqa: E731
        handle = model[0].auto_model.embeddings.register_forward_hook(hook)
        results.append(model(batch)["sentence_embedding"])
        handle.remove()
        begin += length
    return results


def exact(model, outputs, divergence, delta):
    """R_s of this perturbation by a float64 copy without dropout, and its weight gradient."""
    twin = copy.deepcopy(model).double().eval()
    clean, perturbed = (outputs(sentences_at(twin, d)) for d in (0 * delta, delta))
    loss = divergence(perturbed, clean).mean()
    return loss, weight_gradient(loss, twin)


def pair_cosine(sentences):
    return torch.cosine_similarity(*sentences)


@pytest.mark.parametrize("name", ["CosineSimilarityLoss", "CoSENTLoss", "ContrastiveLoss"])
def test_r_s_of_a_pair_is_the_change_of_its_cosine(model, name):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    loss = SmartLoss(getattr(losses, name)(model), SmartConfig(radius=1e-2, weight=3.0))
    parts = loss(columns(model), SCORES.round())
    smart = loss.smart_output
    assert parts["smart"] == 3.0 * smart.loss and smart.jacobian == "rows" and smart.gain() > 3
    reference, gradient = exact(model, pair_cosine, SQUARED, smart.delta.double())
    torch.testing.assert_close(smart.loss.double(), reference, rtol=2e-3, atol=0)
    assert cosine(weight_gradient(smart.loss, model), gradient) > 0.999
    plain = loss.loss(columns(model), SCORES.round())
    assert torch.equal(parts["base_loss"], plain)


def test_r_s_of_softmax_loss_is_of_its_classifier(model):
    inner = losses.SoftmaxLoss(model, 32, 3)
    loss = SmartLoss(inner, SmartConfig(radius=1e-2, weight=1.0))
    seen = []
    inner.classifier.register_forward_hook(lambda module, args, output: seen.append(output))
    parts = loss(columns(model), CLASSES)
    smart = loss.smart_output
    assert torch.equal(seen[0], smart.logits) and smart.gain() > 3
    sum(parts.values()).backward()
    assert inner.classifier.weight.grad.abs().sum() > 0 and inner.model is model
    assert loss.divergence is SYMMETRIC_KL


def test_padding_and_special_tokens_stay(model):
    loss = SmartLoss(losses.CoSENTLoss(model))
    loss(columns(model), SCORES)
    ids = torch.cat([column["input_ids"] for column in columns(model)], dim=1)
    is_perturbed = loss.smart_output.delta.abs().sum(-1) > 0
    special = torch.tensor(model.tokenizer.all_special_ids)
    unknown = model.tokenizer.unk_token_id
    assert torch.equal(is_perturbed, ~torch.isin(ids, special) | (ids == unknown))


def test_dropout_is_replayed_and_the_loss_is_the_plain_one(model):
    """R_s of masks drawn anew would not shrink with the radius."""
    values = []
    for radius in (1e-2, 1e-3):
        loss = SmartLoss(losses.CoSENTLoss(model), SmartConfig(radius=radius, weight=1.0))
        torch.manual_seed(5)
        parts = loss(columns(model), SCORES)
        values.append(loss.smart_output.loss.item())
        torch.manual_seed(5)
        assert torch.equal(parts["base_loss"], loss.loss(columns(model), SCORES))
    assert loss.smart_output.random_state is not None
    assert values[0] / values[1] == pytest.approx(100, rel=0.2)


def test_evaluation_adds_nothing(model):
    loss = SmartLoss(losses.CoSENTLoss(model))
    with torch.no_grad():
        assert isinstance(loss(columns(model), SCORES), torch.Tensor)
    model.eval()
    assert torch.equal(loss(columns(model), SCORES), loss.loss(columns(model), SCORES))
    assert loss.smart_output is None


def test_outputs_of_one_s_own(model):
    """A loss on one column: the sentence's first coordinate."""
    targets = torch.randn(3, 32)
    loss = SmartLoss(losses.MSELoss(model), outputs=lambda sentences: sentences[0][:, 0])
    sum(loss(columns(model)[:1], targets).values()).backward()
    assert loss.smart_output.logits.shape == (3,) and loss.smart_output.loss > 0
    with pytest.raises(ValueError, match="the batch has 1 columns; say what it is of"):
        SmartLoss(losses.MSELoss(model))(columns(model)[:1], targets)


def test_what_it_cannot_do_is_refused(model):
    with pytest.raises(ValueError, match=r"smart\.weight is 0"):
        SmartLoss(losses.CoSENTLoss(model), SmartConfig(weight=0.0))
    with pytest.raises(ValueError, match="MSELoss has no model"):
        SmartLoss(torch.nn.MSELoss())
    cached = SmartLoss(losses.CachedMultipleNegativesRankingLoss(model))
    with pytest.raises(ValueError, match="does not call its model once per column"):
        cached(columns(model))
    triplets = [*columns(model), model.preprocess(FIRST)]
    merged = SmartLoss(losses.TripletLoss(model), outputs=lambda sentences: sentences[0][:, 0])
    with pytest.raises(ValueError, match="merge or truncate columns are not supported"):
        merged(triplets)
    unpadded = [{"input_ids": torch.ones(9, dtype=torch.long)}] * 2
    with pytest.raises(ValueError, match="needs padded input_ids"):
        SmartLoss(losses.CoSENTLoss(model))(unpadded, SCORES)
    assert not any(m._forward_hooks for m in model.modules())


def test_the_example_trains_minilm(minilm_dir, tmp_path, capsys):
    pytest.importorskip("accelerate", reason="the Trainer of sentence-transformers needs it")
    pytest.importorskip("datasets", reason="the Trainer of sentence-transformers needs it")
    trainer = example("smart_sentence_transformers").main(str(minilm_dir), str(tmp_path))
    rows = [row for row in trainer.state.log_history if "smart" in row]
    assert len(rows) == 4 and all(row["smart"] > 0 for row in rows)
    assert rows[-1]["base_loss"] < rows[0]["base_loss"]
    assert trainer.loss.smart_output.jacobian == "rows" and "R_s" in capsys.readouterr().out
