"""Any encoder of transformers with ``MiniBert``'s interface, for the passes under autograd.

What SMART perturbs are its word embeddings, which go in as ``inputs_embeds``; batches are padded
inside. Its dropouts draw from torch's generator, which every pass begins at the key of its
``DropoutStream``: passes that share a stream share their masks, and a resumed run repeats them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.hub import save_encoder
from sbrrt_fast.model.layers import BertPooler
from sbrrt_fast.model.modules import SentenceModules
from sbrrt_fast.model.plain import merged_tensors
from sbrrt_fast.model.pooling import mean_pool
from sbrrt_fast.model.transformers_shape import EncoderShape


class TransformersEncoder(nn.Module):
    """An encoder of transformers with pooling.

    Args:
        model: without its own pooler. shape: of it.
        pooling: one of ``pooling.POOLINGS``. origin: what was taken of the checkpoint.

    Attributes:
        pooler: the tanh layer of ``cls``, or None.
        source: folder of weights and tokenizer. origin, name_or_path: as of ``MiniBert``.
    """

    def __init__(
        self, model: nn.Module, shape: EncoderShape, pooling: str, origin: SentenceModules
    ):
        super().__init__()
        self.model, self.config, self.pooling = model, shape, pooling
        self.pooler = BertPooler(shape) if pooling == "cls" else None
        self.source, self.origin, self.name_or_path = origin.encoder, origin, str(origin.encoder)

    def set_backend(self, backend: str) -> None:
        """Does nothing: its modules are transformers', not ops."""

    def embed(
        self,
        batch: TokenBatch,
        stream: DropoutStream | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """The word embeddings [num_tokens, embedding_size]: what SMART perturbs.

        Args:
            stream: not used: nothing drops out here. inputs_embeds: in their place.
        """
        if inputs_embeds is not None:
            return inputs_embeds
        return self.model.get_input_embeddings()(batch.input_ids)

    def encode(
        self, embeddings: Tensor, batch: TokenBatch, stream: DropoutStream | None = None
    ) -> Tensor:
        """Last hidden states [num_tokens, hidden] from word embeddings.

        Args:
            stream: what the dropouts' masks are keyed by, whether in ``train()`` or not, and
                whether there are any; see ``own_stream`` for None.
        """
        inputs = {
            "inputs_embeds": batch.pad(embeddings),
            "attention_mask": batch.key_mask.to(torch.int64),
        }
        if self.config.type_vocab_size:
            inputs["token_type_ids"] = batch.pad(batch.token_types)
        with self._dropping(stream or self.own_stream(batch)):
            return batch.unpad(self.model(**inputs).last_hidden_state)

    def own_stream(self, batch: TokenBatch, drops: bool = True) -> DropoutStream | None:
        """The key of a pass that is given none: a new one in ``train()``, none in ``eval()``.

        Args:
            drops: see ``DropoutStream``.
        """
        if not self.training:
            return None
        return DropoutStream.drawn(batch, self.config.max_position_embeddings, "auto", drops)

    def pool(self, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """One vector per sequence, [num_sequences, hidden], of the hidden states' dtype."""
        if self.pooling == "mean":
            return mean_pool(hidden, batch)
        first = batch.pad(hidden)[:, 0]
        return first if self.pooler is None else self.pooler(first)

    def stored_tensors(self) -> dict[str, Tensor]:
        """The weights as transformers' class has them, adapters merged."""
        tensors = merged_tensors(self.model)
        if not self.config.has_pooler:
            return tensors
        prefix = "pooler." if self.config.model_type == "albert" else "pooler.dense."
        return tensors | {prefix + name: x for name, x in self.pooler_tensors().items()}

    def pooler_tensors(self) -> dict[str, Tensor]:
        """``weight`` and ``bias`` of the tanh layer; nothing where there is none."""
        return {} if self.pooler is None else merged_tensors(self.pooler.dense)

    def save_pretrained(self, directory: str | Path, tokenizer: Any = None) -> None:
        """Writes a folder that transformers reads; see ``model.hub.save_encoder``."""
        save_encoder(self, Path(directory), tokenizer)

    @contextmanager
    def _dropping(self, stream: DropoutStream | None) -> Iterator[None]:
        """Inside, dropouts draw from generators that begin at the stream's key; without one that
        drops there are none. Afterwards modes and generators are as before."""
        device, was_training = next(self.parameters()).device, self.model.training
        drops = stream is not None and stream.drops
        self.model.train(drops)
        try:
            if not drops:
                yield
                return
            devices = [device] if device.type == "cuda" else []
            with torch.random.fork_rng(devices=devices):
                _generator(device).manual_seed(stream.host_key)
                yield
        finally:
            self.model.train(was_training)


def _generator(device: torch.device) -> torch.Generator:
    """The one that dropout draws from on a device."""
    if device.type != "cuda":
        return torch.default_generator
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
