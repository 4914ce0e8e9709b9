"""LoRA (arXiv 2106.09685) for the trainer's encoder: peft's adapters, our dropout.

Dropout's masks come from the pass's ``DropoutStream``, so that clean, adversarial and teacher
passes share them as all others, and a resumed run repeats them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.config import LoraConfig
from sbrrt_fast.errors import ConfigError
from sbrrt_fast.model.bert import MiniBert
from sbrrt_fast.model.dropout import ADAPTER_SITE, DropoutStream
from sbrrt_fast.model.layers import BertLayer
from sbrrt_fast.model.load_encoder import Encoder

_NAME = "default"  # peft's, of an adapter
_ALSO = {  # what other encoders call the matrices of ``lora.targets``
    "query": ("query_proj", "q_lin", "q_proj", "q", "Wqkv"),
    "key": ("key_proj", "k_lin", "k_proj", "k", "Wqkv"),
    "value": ("value_proj", "v_lin", "v_proj", "v", "Wqkv"),
    "dense": ("out_lin", "out_proj", "o", "lin1", "lin2", "ffn", "ffn_output", "Wo", "Wi"),
    "word_embeddings": ("tok_embeddings",),
}


class AdapterDropout(nn.Module):
    """Dropout of what goes into an adapter, with the masks of the pass it is in.

    Args:
        p: probability of dropping an element. site: of its masks.

    Attributes:
        stream: of the pass; None drops nothing.
    """

    def __init__(self, p: float, site: int):
        super().__init__()
        self.p, self.site = p, site
        self.stream: DropoutStream | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[num_tokens, width]."""
        return self.stream.drop(x, self.p, self.site) if self.stream else x

    def __getstate__(self) -> dict[str, Any]:
        """Without the stream, which is a pass's: copies of a model start with none."""
        return {**vars(self), "stream": None}


def add_lora(encoder: Encoder, lora: LoraConfig, seed: int) -> None:
    """Puts adapters into an encoder and freezes everything else in it.

    Args:
        encoder: of transformers' own, dropout is peft's, by torch's generator as all of them.
        seed: of the adapters' initial weights, with which they change nothing.

    Raises:
        ConfigError: peft is not installed, or the encoder has no such matrices.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            "lora.rank: adapters need the library peft; run `pip install 'sbrrt_fast[lora]'`, or "
            "set it to 0"
        )
    import peft  # slow

    is_ours, names = isinstance(encoder, MiniBert), _module_names(encoder, lora.targets)
    rates = {"lora_dropout": 0.0 if is_ours else lora.dropout}
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names, **rates)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)  # heads are drawn with the seed itself
        peft.inject_adapter_in_model(config, encoder, _NAME)
    if lora.dropout and is_ours:
        _add_dropout(encoder, lora.dropout)


def _module_names(encoder: Encoder, targets: Sequence[str]) -> list[str]:
    """What an encoder calls these matrices."""
    leaves = (nn.Linear, nn.Embedding)
    named = [n for n, module in encoder.named_modules() if isinstance(module, leaves)]
    present = dict.fromkeys(name.rpartition(".")[2] for name in named)
    found = {t: [n for n in (t, *_ALSO[t]) if n in present] for t in targets}
    if absent := [target for target, names in found.items() if not names]:
        raise ConfigError(
            f"lora.targets: this {encoder.config.architecture} has no '{absent[0]}', its matrices "
            f"are {', '.join(present)}; choose other targets"
        )
    return list(dict.fromkeys(name for names in found.values() for name in names))


def _add_dropout(encoder: MiniBert, p: float) -> None:
    site = ADAPTER_SITE
    for layer in encoder.encoder.layer:
        layer.register_forward_pre_hook(_hand_stream)
        for module in list(layer.modules()):
            if hasattr(module, "lora_dropout"):
                module.lora_dropout[_NAME] = AdapterDropout(p, site)
                site += 1


def _hand_stream(layer: BertLayer, inputs: tuple) -> None:
    """Before a layer's pass: its adapters drop out by the stream that the layer was given."""
    _, _, stream = inputs
    for module in layer.modules():
        if isinstance(module, AdapterDropout):
            module.stream = stream
