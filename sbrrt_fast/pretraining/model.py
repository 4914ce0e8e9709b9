"""The model of pre-training: an encoder with the heads of transformers' BertForPreTraining."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.layers import BertPooler


def product(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """x W^T + b, computed in ``dtype``, as float32."""
    return F.linear(x.to(dtype), weight.to(dtype)).float() + bias


class MaskedWordTransform(nn.Module):
    """LN(gelu(h W^T + b)), before the decoder."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        return self.LayerNorm(F.gelu(product(hidden, self.dense.weight, self.dense.bias, dtype)))


class MaskedWordHead(nn.Module):
    """Logits of all words; the decoder's matrix is the word table."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.transform = MaskedWordTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, words: Tensor, dtype: torch.dtype) -> Tensor:
        """float32 [num_masked, vocab_size], from the masked tokens' hidden states.

        Args:
            hidden: [num_masked, hidden]. words: the word table [vocab_size, hidden].
            dtype: of the matrix products.
        """
        return product(self.transform(hidden, dtype), words, self.bias, dtype)


class PretrainingHeads(nn.Module):
    """The heads by the names of transformers' models, below ``cls``.

    Args:
        config: the encoder's. next_sentence: whether there is a head for it.
        has_pooler: whether the encoder has a tanh pooler of its own.

    Attributes:
        pooler: the tanh pooler that the next-sentence head works on, where the encoder has none of
            its own; it is ``bert.pooler`` in transformers.
    """

    def __init__(self, config: BertConfig, next_sentence: bool, has_pooler: bool):
        super().__init__()
        self.predictions = MaskedWordHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2) if next_sentence else None
        self.pooler = BertPooler(config) if next_sentence and not has_pooler else None


class PretrainingModel(nn.Module):
    """An encoder and the heads of pre-training, fresh ones by the seed.

    Attributes:
        is_fresh: whether the masked-word head is one that was never trained.

    Args:
        encoder: whose weights. next_sentence: whether next sentences are predicted.
        seed: of the heads' weights; the global random state is left alone.
    """

    def __init__(self, encoder: MiniBert, next_sentence: bool, seed: int = 0):
        super().__init__()
        self.encoder, self.config, self.is_fresh = encoder, encoder.config, True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cls = PretrainingHeads(self.config, next_sentence, encoder.pooler is not None)
            self.cls.apply(self._initialize)

    @property
    def words(self) -> nn.Parameter:
        """The word table."""
        return self.encoder.embeddings.word_embeddings.weight

    @property
    def pooler(self) -> BertPooler | None:
        """What the next-sentence head works on."""
        return self.encoder.pooler if self.cls.pooler is None else self.cls.pooler

    def head_parameters(self) -> list[nn.Parameter]:
        """All parameters that a loss reaches by no way through the encoder, but the word table."""
        own = list(self.cls.parameters())
        is_own = self.cls.seq_relationship is None or self.cls.pooler is not None
        return own if is_own else [*own, *self.encoder.pooler.parameters()]

    def trained_tensors(self) -> dict[str, Tensor]:
        """All weights, by name."""
        return self.state_dict()

    def set_dropout(self, hidden: float | None, attention: float | None) -> None:
        """Changes dropout probabilities; None leaves the checkpoint's."""
        chosen = {"hidden_dropout_prob": hidden, "attention_probs_dropout_prob": attention}
        values = {name: p for name, p in chosen.items() if p is not None}
        self.encoder.set_config(replace(self.encoder.config, **values))

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)
