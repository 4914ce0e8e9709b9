"""An encoder of transformers from a folder: safetensors alone, and no code that comes with it."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sbrrt_fast.errors import SbrrtError, WeightsError
from sbrrt_fast.json_file import as_json
from sbrrt_fast.model.families import FAMILIES, has_pooler
from sbrrt_fast.model.hub import read_pooler
from sbrrt_fast.model.modules import SentenceModules
from sbrrt_fast.model.tensors import (
    first_of,
    open_tensors,
    readable,
    shapes_only,
    weight_files,
)
from sbrrt_fast.model.transformers_encoder import TransformersEncoder
from sbrrt_fast.model.transformers_shape import attention_dropout, set_dropout, shape_of

_ADVICE = "choose an encoder of text, such as bert-base-uncased or roberta-base"
_BUFFERS = ("position_ids", "token_type_ids", "inv_freq")
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def read_encoder(
    modules: SentenceModules,
    hidden_dropout: float | None = None,
    attention_dropout: float | None = None,
) -> TransformersEncoder:
    """The encoder of a checkpoint, in fp32 on the CPU, in ``eval()``.

    Args:
        modules: the checkpoint's layers.
        hidden_dropout, attention_dropout: probabilities in the configuration's place.

    Raises:
        WeightsError: transformers is missing or does not know the model, it is a decoder or not of
            text, weights are pickled, damaged or missing, or its results depend on padding.
        ConfigError: it has no such dropout.
    """
    folder = modules.encoder
    if importlib.util.find_spec("transformers") is None:
        raise WeightsError(
            f"{folder}: is no BertModel, and other encoders need the library transformers: run "
            "`pip install 'sbrrt_fast[transformers]'`"
        )
    with _quietly(), _one_line(folder, "transformers cannot load it"):
        model, takes_types = _load(folder, hidden_dropout, attention_dropout)
    _check_encoder(model, folder)
    shape = shape_of(model, takes_types, has_pooler(folder / "config.json"))
    encoder = TransformersEncoder(model, shape, modules.pooling, modules)
    if encoder.pooler is not None:
        shapes = {n: list(x.shape) for n, x in encoder.pooler.dense.state_dict().items()}
        encoder.pooler.dense.load_state_dict(read_pooler(modules, shapes))
    return encoder.eval()


def _load(
    folder: Path, hidden_dropout: float | None, attention: float | None
) -> tuple[nn.Module, bool]:
    """The model, and whether it takes token types."""
    import transformers  # slow

    config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL)
    kind = _model_class(config, folder)
    set_dropout(config, hidden_dropout, attention)
    _check_shapes(kind, config, folder)
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}
    if attention_dropout(config):  # in torch's attention other passes could not repeat it
        options["attn_implementation"] = "eager"
    with torch.random.fork_rng(devices=[]):
        model, report = kind.from_pretrained(
            folder,
            config=config,
            output_loading_info=True,
            local_files_only=True,
            **options,
            **_without_pooler(kind),
        )
    missing = sorted(n for n in report["missing_keys"] if not n.startswith("pooler."))
    problems = [f"{readable(name)} is missing" for name in missing]
    problems += [f"{readable(n)} has no place in it" for n in _unread(model, report)]
    _raise_misfit(folder, problems)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model.requires_grad_(), "token_type_ids" in inspect.signature(kind.forward).parameters


def _model_class(config: Any, folder: Path) -> type[nn.Module]:
    """transformers' class for a configuration, if it can be an encoder of text."""
    import transformers

    path, kind = folder / "config.json", as_json(config.model_type)
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False):
        raise WeightsError(f"{path}: model_type {kind} has a decoder; {_ADVICE}")
    kinds = getattr(config, "position_embedding_type", None), getattr(config, "pruned_heads", None)
    if config.model_type in FAMILIES and (kinds[0] not in (None, "absolute") or kinds[1]):
        raise WeightsError(
            f"{path}: transformers computes absolute positions and whole layers of a {kind}, and "
            f"position_embedding_type or pruned_heads say otherwise; {_ADVICE}"
        )
    known = transformers.MODEL_MAPPING.get(type(config), None)
    if isinstance(known, tuple | list):
        known = known[0]
    taken = inspect.signature(known.forward).parameters if known else {}
    if not {"inputs_embeds", "attention_mask"} <= taken.keys():
        raise WeightsError(
            f"{path}: model_type {kind} is no encoder that takes embeddings of text and their "
            f"mask; {_ADVICE}"
        )
    return known


def _without_pooler(kind: type[nn.Module]) -> dict[str, bool]:
    takes = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if takes else {}


def _check_shapes(kind: type[nn.Module], config: Any, folder: Path) -> None:
    """Compares the stored tensors with the configuration before anything has memory."""
    with shapes_only():
        expected = {n: list(x.shape) for n, x in kind(config).state_dict().items()}
    problems = []
    for path in weight_files(folder, "AutoModel"):
        with open_tensors(path) as file:
            for stored in list(file.keys()):
                name = stored.removeprefix(f"{kind.base_model_prefix}.")
                shape = file.get_slice(stored).get_shape()
                if shape != expected.get(name, shape):
                    problems.append(f"{readable(stored)} is {shape}, expected {expected[name]}")
    _raise_misfit(folder, problems)


def _unread(model: nn.Module, report: dict[str, Any]) -> Iterator[str]:
    """Stored tensors of the encoder, and not of a head on it, that the model has no place for."""
    modules = {name for name, _ in model.named_children()} - {"pooler"}
    for stored in sorted(report["unexpected_keys"]):
        name = stored.removeprefix(f"{model.base_model_prefix}.")
        if name.partition(".")[0] in modules and not name.endswith(_BUFFERS):
            yield stored


def _raise_misfit(folder: Path, problems: list[str]) -> None:
    if problems:
        raise WeightsError(
            f"{folder}: the weights do not fit config.json: {first_of(problems)}; use the "
            "config.json that was saved with these weights"
        )


@torch.no_grad()
def _check_encoder(model: nn.Module, folder: Path) -> None:
    """Tries the model: each token's state depends on later ones, and none on padding.

    Raises:
        WeightsError: it is a decoder, or gives no hidden states from embeddings.
    """
    where, words = folder / "config.json", model.eval().get_input_embeddings()
    if not isinstance(words, nn.Embedding):
        raise WeightsError(f"{where}: the model has no table of words; {_ADVICE}")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, words.embedding_dim, generator=generator) * words.weight.std()
    x[1, :3] = x[0, :3]  # the same beginning, another end
    mask = torch.ones(2, 6, dtype=torch.int64)
    mask[1, 3:] = 0
    with _one_line(folder, "it does not run on embeddings"):
        long, padded = model(inputs_embeds=x, attention_mask=mask).last_hidden_state
        short = model(inputs_embeds=x[1:, :3], attention_mask=mask[1:, :3]).last_hidden_state[0]
    if long.shape != (6, model.config.hidden_size):
        raise WeightsError(f"{where}: there is not one hidden state of each token; {_ADVICE}")
    if not torch.allclose(padded[:3], short, rtol=1e-3, atol=1e-3 * float(short.abs().max())):
        raise WeightsError(f"{where}: its hidden states depend on padding; {_ADVICE}")
    if torch.equal(long[:3], padded[:3]):
        raise WeightsError(f"{where}: it is a decoder, no token sees those after it; {_ADVICE}")


@contextmanager
def _one_line(folder: Path, what: str) -> Iterator[None]:
    """WeightsError for whatever transformers raises, which has no common base."""
    try:
        yield
    except SbrrtError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"{folder}: {what} ({type(error).__name__}: {reason}); {_ADVICE}"
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' bars and reports; what is wrong is raised."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
