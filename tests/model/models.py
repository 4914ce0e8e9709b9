"""Small random models and batches that several test files share."""

from __future__ import annotations

import torch

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.data.task import BUILTIN_TASKS, TaskConfig
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.multitask import MultiTaskModel

CONFIG = BertConfig(
    vocab_size=97,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=112,
    max_position_embeddings=64,
)
# A BertModel in which no field has its default.
TINY = {
    "vocab_size": 61,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 40,
    "type_vocab_size": 3,
    "layer_norm_eps": 1e-6,
    "hidden_dropout_prob": 0.2,
    "attention_probs_dropout_prob": 0.3,
    "pad_token_id": 1,
    "initializer_range": 0.03,
}
TASKS = {name: BUILTIN_TASKS[name] for name in ("sst", "para", "sts")}


def random_model(
    dtype: torch.dtype = torch.float32,
    pooling: str = "mean",
    tasks: dict[str, TaskConfig] = TASKS,
) -> MultiTaskModel:
    """A model with weights large enough for its outputs to differ between inputs, in ``eval()``."""
    model = MultiTaskModel(MiniBert(CONFIG, pooling), tasks)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                parameter.normal_(std=0.08)
    return model.to(dtype).eval()


def random_batch(lengths: list[int], first_row: int = 0) -> TokenBatch:
    """A packed batch; the first and last token of each sequence are special."""
    num_tokens = sum(lengths)
    ends = torch.tensor(lengths).cumsum(0)
    is_special = torch.zeros(num_tokens, dtype=torch.bool)
    is_special[ends - 1] = True
    is_special[ends - torch.tensor(lengths)] = True
    return TokenBatch.from_packed(
        torch.randint(1, CONFIG.vocab_size, (num_tokens,)),
        torch.randint(0, 2, (num_tokens,)),
        is_special,
        torch.tensor(lengths),
        torch.arange(first_row, first_row + len(lengths)),
    )


def stream_of(batch: TokenBatch, seed: int = 5, step: int = 3) -> DropoutStream:
    return DropoutStream(batch, torch.tensor([seed, step]), CONFIG.max_position_embeddings)


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Replaces every parameter, biases and LayerNorm too, by random numbers."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


def assert_same_weights(model: MiniBert, original: torch.nn.Module) -> None:
    expected, got = original.state_dict(), model.state_dict()
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
