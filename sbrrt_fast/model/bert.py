"""MiniBert: BERT's encoder as its paper describes it, on batches of side-by-side sequences.

Parameter names are those of Hugging Face's BertModel. Hidden states are [num_tokens, hidden] in
the layout of the batch (``data.batch``). Source: arXiv 1810.04805.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sbrrt_fast.data.batch import TokenBatch
from sbrrt_fast.model.backbone import read_config, resolve_backbone
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.dropout import DropoutStream
from sbrrt_fast.model.hub import read_weights, save_encoder
from sbrrt_fast.model.layers import BertEmbeddings, BertEncoder, BertPooler
from sbrrt_fast.model.modules import read_modules
from sbrrt_fast.model.plain import plain_tensors
from sbrrt_fast.model.pooling import POOLINGS, mean_pool
from sbrrt_fast.model.push import push_encoder
from sbrrt_fast.model.tensors import shapes_only

_POOLER = "pooler.dense."
_POSITIONS = "embeddings.position_embeddings.weight"
_OUTPUTS = ("output_attentions", "output_hidden_states", "return_dict")


class MiniBert(nn.Module):
    """A BERT encoder with pooling, or one of another family whose layers are BERT's.

    Attributes:
        reserved_positions: [num_reserved_positions, hidden], rows of the stored position table
            that no token has; they are written as they were read.

    Args:
        config: its shape.
        pooling: ``cls`` (tanh pooler on the first token), ``cls_token`` (the first token's hidden
            state as it is) or ``mean`` (over real tokens).
    """

    def __init__(self, config: BertConfig, pooling: str = "cls"):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"MiniBert: pooling must be one of {POOLINGS}, got {pooling!r}")
        self.config, self.pooling = config, pooling
        self.embeddings = BertEmbeddings(config)
        self.encoder = BertEncoder(config)
        self.pooler = BertPooler(config) if pooling == "cls" else None
        self.reserved_positions = torch.zeros(config.num_reserved_positions, config.hidden_size)
        self.apply(self._initialize)

    def set_config(self, config: BertConfig) -> None:
        """Changes dropout probabilities; the shape must stay."""
        for module in self.modules():
            if hasattr(module, "config"):
                module.config = config

    def set_backend(self, backend: str) -> None:
        """Chooses the implementation of all ops: ``auto`` or one that ``sbrrt-fast info`` shows."""
        for module in self.modules():
            if hasattr(module, "backend"):
                module.backend = backend

    def embed(
        self,
        batch: TokenBatch,
        stream: DropoutStream | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """The embedding layer's output [num_tokens, hidden]: what SMART perturbs.

        Args:
            stream: dropout's masks, whether in ``train()`` or not; see ``own_stream`` for None.
            inputs_embeds: [num_tokens, hidden], in place of the word embeddings of the ids.
        """
        return self.embeddings(batch, stream or self.own_stream(batch), inputs_embeds)

    def encode(
        self, embeddings: Tensor, batch: TokenBatch, stream: DropoutStream | None = None
    ) -> Tensor:
        """Last hidden states [num_tokens, hidden] from the embedding layer's output."""
        return self.encoder(embeddings, batch, stream or self.own_stream(batch))

    def own_stream(self, batch: TokenBatch, drops: bool = True) -> DropoutStream | None:
        """The masks of a pass that is given none: new ones in ``train()``, none in ``eval()``.

        Args:
            drops: see ``DropoutStream``.
        """
        config = self.config
        if not self.training or not (
            config.hidden_dropout_prob or config.attention_probs_dropout_prob
        ):
            return None
        backend = self.embeddings.backend
        return DropoutStream.drawn(batch, config.max_position_embeddings, backend, drops)

    def pool(self, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """One vector per sequence, [num_sequences, hidden], of the hidden states' dtype."""
        if self.pooling == "mean":
            return mean_pool(hidden, batch)
        first = batch.pad(hidden)[:, 0]
        return first if self.pooler is None else self.pooler(first)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        **outputs: None,
    ) -> Tensor:
        """Last hidden states of a padded batch; with dropout in ``train()``.

        Args:
            input_ids: int64 [num_sequences, max_length].
            attention_mask: the same shape, 1 at real tokens, which come first; all real if None.
            token_type_ids: the same shape; zeros if None.
            inputs_embeds: word embeddings [num_sequences, max_length, hidden] in place of the ids.
            outputs: what callers of transformers' models pass, such as ``return_dict``; None.

        Returns:
            [num_sequences, max_length, hidden].

        Raises:
            ValueError: ids and embeddings, or neither. TypeError: another argument than these.
        """
        _check_outputs(outputs)
        batch = _padded_batch(input_ids, inputs_embeds, attention_mask, token_type_ids)
        stream = self.own_stream(batch)
        words = None if inputs_embeds is None else inputs_embeds.flatten(0, 1)
        return batch.pad(self.encode(self.embed(batch, stream, words), batch, stream))

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, module: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.embeddings.word_embeddings = module

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Keeps each layer's input alone, and computes the rest again in the backward.

        Args:
            gradient_checkpointing_kwargs: of ``torch.utils.checkpoint.checkpoint``.
        """
        options = gradient_checkpointing_kwargs or {}
        self.encoder.checkpointing = {"use_reentrant": False, **options}

    def gradient_checkpointing_disable(self) -> None:
        """Keeps activations for the backward again."""
        self.encoder.checkpointing = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed again."""
        return self.encoder.checkpointing is not None

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the first floating-point parameter."""
        return next(p.dtype for p in self.parameters() if p.is_floating_point())

    @classmethod
    def from_pretrained(cls, name: str | Path, pooling: str = "checkpoint", **hub: Any) -> MiniBert:
        """Loads ``minilm``, a folder of a Hugging Face model or a hub id, in ``eval()``.

        Args:
            pooling: see ``from_folder``.
            hub: of a hub id: ``revision``, ``cache_dir``, ``token`` and ``local_files_only``.

        Raises:
            WeightsError: also where there is no such backbone, see ``resolve_backbone``.
        """
        model = cls.from_folder(resolve_backbone(str(name), **hub), pooling)
        model.name_or_path = str(name)
        return model

    @classmethod
    def from_folder(cls, directory: str | Path, pooling: str = "checkpoint") -> MiniBert:
        """An encoder with the weights of a folder of Hugging Face's BertModel, or of a family in
        ``families.FAMILIES``, in fp32 on the CPU, in ``eval()``.

        Args:
            pooling: ``cls`` (needs the checkpoint's pooler), ``cls_token``, ``mean``, or what
                ``checkpoint`` says.

        Returns:
            the encoder, with ``source``, the folder of its weights and tokenizer, and ``origin``,
            what ``read_modules`` took of the checkpoint and what it left out.

        Raises:
            WeightsError: see ``read_config``, ``read_modules`` and ``hub.read_weights``.
        """
        modules = read_modules(directory, pooling)
        config = read_config(modules.encoder)
        with shapes_only():
            model = cls(config, modules.pooling)
        shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        shapes[_POSITIONS][0] += config.num_reserved_positions
        tensors = read_weights(modules, shapes)
        sizes = config.num_reserved_positions, config.max_position_embeddings
        model.reserved_positions, tensors[_POSITIONS] = tensors[_POSITIONS].split(sizes)
        model.load_state_dict(tensors, strict=True, assign=True)
        model.source, model.origin = modules.encoder, modules
        model.name_or_path = str(directory)
        return model.eval()

    def stored_tensors(self) -> dict[str, Tensor]:
        """The weights as transformers' model of this family has them, adapters merged.

        Raises:
            WeightsError: see ``plain.plain_tensors``.
        """
        tensors = plain_tensors(self)
        if not self.config.has_pooler:
            tensors = {n: x for n, x in tensors.items() if not n.startswith("pooler.")}
        table = tensors[_POSITIONS]
        return {**tensors, _POSITIONS: torch.cat([self.reserved_positions.to(table), table])}

    def pooler_tensors(self) -> dict[str, Tensor]:
        """``weight`` and ``bias`` of the tanh layer of ``cls``; nothing where there is none."""
        tensors = plain_tensors(self).items()
        return {n.removeprefix(_POOLER): x for n, x in tensors if n.startswith(_POOLER)}

    def save_pretrained(self, directory: str | Path, tokenizer=None) -> None:
        """Writes a folder that transformers' model of this family reads, adapters merged into its
        weights; see ``model.hub.save_encoder``."""
        save_encoder(self, Path(directory), tokenizer)

    def push_to_hub(self, repo_id: str, tokenizer=None, **options: Any) -> str:
        """Saves the encoder as a repository on the Hugging Face hub and returns its address.

        Args:
            repo_id: ``user/name``. tokenizer: see ``model.hub.save_encoder``.
            options: ``token``, ``private``, ``revision`` and ``commit_message``, see
                ``model.push.push_encoder``, which says what it raises.
        """
        return push_encoder(self, repo_id, tokenizer, **options)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def _padded_batch(
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    token_type_ids: Tensor | None,
) -> TokenBatch:
    """The batch of a call; with embeddings its ids are zeros, which nothing reads."""
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("MiniBert: give input_ids or inputs_embeds, one of the two")
    if input_ids is None:
        shape = inputs_embeds.shape[:2]
        input_ids = torch.zeros(shape, dtype=torch.int64, device=inputs_embeds.device)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if token_type_ids is None:
        token_type_ids = torch.zeros_like(input_ids)
    return TokenBatch.from_padded(input_ids, attention_mask, token_type_ids)


def _check_outputs(outputs: dict[str, Any]) -> None:
    for name, value in outputs.items():
        if name not in _OUTPUTS:
            raise TypeError(f"MiniBert: there is no argument {name!r}")
        if value:
            raise ValueError(f"MiniBert: {name} must be None; last hidden states are the result")
