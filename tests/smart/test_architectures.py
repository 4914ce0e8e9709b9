"""R_s of stock architectures, on small random models, against float64: gradients and values."""

from __future__ import annotations

import pytest
import torch

from sbrrt_fast import SmartRegularizer
from sbrrt_fast.config import SmartConfig
from sbrrt_fast.smart.divergence import SYMMETRIC_KL
from tests.smart.stock_models import VOCAB, Exact, cosine, padded_batch, weight_gradient

transformers = pytest.importorskip("transformers")

SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.15,
    "pad_token_id": 1,
}
DISTIL = {
    "vocab_size": VOCAB,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 64,
    "max_position_embeddings": 40,
    "initializer_range": 0.15,
    "pad_token_id": 1,
}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0}
LARGE = {"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
ARCHITECTURES = {
    "Bert": SHAPE,
    "Roberta": SHAPE,
    "DistilBert": DISTIL,
    "Electra": SHAPE | {"embedding_size": 16},
    "MPNet": SHAPE,
    "DebertaV2": SHAPE | DISENTANGLED,
    "XLMRoberta": SHAPE,
    "ModernBert": SHAPE | {"local_attention": 4, "global_attn_every_n_layers": 2},
    "Albert": SHAPE | {"embedding_size": 16},
    "BertLarge": SHAPE | LARGE | {"num_hidden_layers": 1, "initializer_range": 0.03},
}
BATCH = padded_batch()
MASK = BATCH["attention_mask"].bool()


def model_of(architecture: str, num_labels: int = 3) -> torch.nn.Module:
    name = architecture.removesuffix("Large")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        num_labels=num_labels, **ARCHITECTURES[architecture]
    )
    return getattr(transformers, f"{name}ForSequenceClassification")(config)


def outputs_at(model, x):
    return SmartRegularizer.for_transformers(model).replaced(x, **BATCH).logits


def embeddings_of(model):
    with SmartRegularizer.for_transformers(model).clean_pass() as seen:
        model(**BATCH)
    return seen.embeddings


class Seen:
    """One call of the regulariser, and the same in float64 under the same dropout masks."""

    def __init__(self, model, bf16: bool, **settings):
        self.model, self.noise = model, None
        config = SmartConfig(perturb_special=True, norm="2", level="sequence", **settings)
        regularizer = SmartRegularizer.for_transformers(model, config)
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            with regularizer.clean_pass() as seen:
                result = model(**BATCH)
            self.noise = torch.randn_like(seen.embeddings)
            self.smart = regularizer.around(seen, result, BATCH, self.noise)
        self.exact = Exact(model, outputs_at, embeddings_of, seen.state)

    def direction(self):
        """Delta in float64, from the same noise: the ascent's gradient per sequence."""
        gradient = self.exact.gradient(SYMMETRIC_KL, self.noise * MASK[..., None]) * MASK[..., None]
        return gradient / gradient.flatten(1).norm(dim=1)[:, None, None]


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_directions_values_and_gradients_are_those_of_float64(architecture, training, bf16):
    seen = Seen(model_of(architecture).train(training), bf16, radius=1.0)
    smart, least = seen.smart, 0.99 if bf16 else 0.999
    assert (smart.jacobian, smart.branch) == ("forward", "forward")
    assert smart.delta[~MASK].eq(0).all()
    assert cosine(smart.delta, seen.direction()) >= least
    expected = seen.exact.loss(SYMMETRIC_KL, smart.delta).item()
    assert abs(smart.loss.item() / expected - 1) < (0.1 if bf16 else 1e-3)
    want = seen.exact.weight_gradient(SYMMETRIC_KL, smart.delta)
    assert cosine(weight_gradient(smart.loss, seen.model), want) >= least
