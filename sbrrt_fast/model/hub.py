"""Hugging Face BertModel folders in and out: weights as safetensors, with their tokenizer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.backbone import (
    ONLY_SUPPORTED,
    POOLING_FOLDER,
    TOKENIZER_FILES,
    read_config,
    read_json,
    read_pooling,
    resolve_backbone,
)
from sbrrt_fast.model.bert import MiniBert

__all__ = ["load_encoder", "read_config", "read_pooling", "resolve_backbone", "save_encoder"]

_FLOATS = ("F64", "F32", "F16", "BF16")
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TANH_FOLDER = "2_Dense"
_WRITTEN = {
    "config.json",
    _WEIGHTS,
    "modules.json",
    POOLING_FOLDER,
    _TANH_FOLDER,
    *TOKENIZER_FILES,
}
_SPECIAL_TOKENS = {
    f"{name}_token": f"[{name.upper()}]" for name in ("cls", "sep", "pad", "unk", "mask")
}


class _NoRandomNumbers(TorchFunctionMode):
    """Leaves out ``normal_``, which imports the compiler (a second) for meta tensors."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.nn.init.normal_, Tensor.normal_):
            return None
        return function(*args, **(kwargs or {}))


def load_encoder(directory: str | Path, pooling: str = "checkpoint") -> MiniBert:
    """An encoder with the weights of a Hugging Face BertModel folder, in fp32 on the CPU.

    Weights are safetensors, in one file or sharded. A ``bert.`` prefix and TensorFlow's LayerNorm
    names (``gamma``, ``beta``) are understood; heads are left out. ``model.source`` is the folder.

    Args:
        pooling: ``cls`` (needs the checkpoint's pooler), ``mean``, or what ``checkpoint`` says.

    Raises:
        WeightsError: see ``read_config`` and ``read_pooling``; or the weights are pickled,
            truncated, or do not fit ``config.json``.
    """
    directory = Path(directory)
    config = read_config(directory)
    pooling = read_pooling(directory) if pooling == "checkpoint" else pooling
    with torch.device("meta"), _NoRandomNumbers():  # shapes alone, until the weights are read
        model = MiniBert(config, pooling)
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict(_read_weights(directory, shapes), strict=True, assign=True)
    model.source = directory
    return model


def save_encoder(
    model: MiniBert, directory: str | Path, tokenizer: Tokenizer | str | Path | Any | None = None
) -> None:
    """Writes a folder that transformers' BertModel and AutoTokenizer, sentence-transformers and
    ``load_encoder`` read.

    The folder is written beside its place and renamed, so that it is never half written; a folder
    that is already there is replaced, and is absent only between two renames. For
    sentence-transformers, the tanh pooler of ``cls`` is written once more as a Dense module.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``, anything with ``save_pretrained``, or a folder
            whose tokenizer files are copied; if None, those of the folder that the encoder came
            from (``model.source``), if any.

    Raises:
        WeightsError: ``directory`` exists and holds other files, which replacing would delete.
    """
    directory = Path(directory).resolve()
    _check_replaceable(directory)
    fresh = directory.with_name(f".{directory.name}.{os.getpid()}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        _write_config(model, fresh)
        _write_weights(model.state_dict(), fresh)
        _write_modules(model, fresh)
        _write_tokenizer(model, fresh, tokenizer)
        _put_in_place(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _read_weights(directory: Path, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The tensors named in ``shapes``; WeightsError lists those that are missing or do not fit."""
    tensors: dict[str, Tensor] = {}
    problems: dict[str, str] = {}
    for path in _weight_files(directory):
        _read_file(path, shapes, tensors, problems)
    missing = [name for name in shapes if name not in tensors and name not in problems]
    if {"pooler.dense.weight", "pooler.dense.bias"} <= set(missing):
        raise WeightsError(
            f"{directory}: the checkpoint was saved without a pooler, which pooling 'cls' needs; "
            "use pooling 'mean' (model.pooling)"
        )
    problems |= {name: f"{name} {shapes[name]} is missing" for name in missing}
    if problems:
        listed = list(problems.values())
        more = f"; and {len(listed) - 4} more" if len(listed) > 4 else ""
        raise WeightsError(
            f"{directory}: the weights do not fit config.json: {'; '.join(listed[:4])}{more}; "
            "use the config.json that was saved with these weights"
        )
    return tensors


def _read_file(
    path: Path, shapes: dict[str, list[int]], tensors: dict[str, Tensor], problems: dict[str, str]
) -> None:
    """Adds one file's encoder tensors to ``tensors``, and to ``problems`` what does not fit."""
    with _open(path) as file:
        for stored in sorted(file.keys()):
            name = _encoder_name(stored)
            if name is None or (name.startswith("pooler.") and name not in shapes):
                continue
            reason = _misfit(file.get_slice(stored), shapes.get(name), name in tensors)
            if reason:
                problems[name] = f"{stored} {reason}"
            else:  # a copy is aligned and does not depend on the file
                tensors[name] = file.get_tensor(stored).to(torch.float32, copy=True)


def _encoder_name(stored: str) -> str | None:
    """BertModel's name of a stored tensor; None for heads and buffers."""
    name = stored.removeprefix("bert.")
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    name = name.replace("LayerNorm.beta", "LayerNorm.bias")
    is_encoder = name.startswith(("embeddings.", "encoder.", "pooler."))
    return name if is_encoder and name not in _BUFFERS else None


def _misfit(stored: Any, shape: list[int] | None, is_repeated: bool) -> str | None:
    """Why a tensor (a slice of a safetensors file) cannot be used, or None."""
    if shape is None:
        return "has no place in this encoder"
    if is_repeated:
        return "is there twice"
    if stored.get_shape() != shape:
        return f"is {stored.get_shape()}, expected {shape}"
    if stored.get_dtype() not in _FLOATS:
        return f"is {stored.get_dtype()}, expected one of {', '.join(_FLOATS)}"
    return None


def _weight_files(directory: Path) -> list[Path]:
    if (directory / _WEIGHTS).is_file():
        return [directory / _WEIGHTS]
    index = directory / _INDEX
    if not index.is_file():
        raise WeightsError(
            f"{directory} has no {_WEIGHTS}; pickled weights (pytorch_model.bin) are not loaded, "
            "because unpickling can run any code: convert them once with transformers, "
            "BertModel.from_pretrained(DIR).save_pretrained(NEW_DIR, safe_serialization=True)"
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{index}: weight_map is missing; download the checkpoint again")
    paths = [directory / Path(str(name)).name for name in sorted(set(shards.values()))]
    for path in paths:
        if not path.is_file():
            raise WeightsError(f"{index} names {path.name}, which is missing; download it again")
    return paths


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: truncated or not a safetensors file ({error}); download or save it again"
        ) from error


def _check_replaceable(directory: Path) -> None:
    if directory.is_file():
        raise WeightsError(f"{directory} is a file; give a folder to save the encoder in")
    others = sorted({p.name for p in directory.iterdir()} - _WRITTEN) if directory.is_dir() else []
    if others:
        raise WeightsError(
            f"{directory} holds other files ({', '.join(others[:3])}), which saving an encoder "
            "there would delete; give a new folder"
        )


def _put_in_place(fresh: Path, directory: Path) -> None:
    if not directory.exists():
        fresh.rename(directory)
        return
    old = directory.with_name(f".{directory.name}.{os.getpid()}.old")
    directory.rename(old)
    fresh.rename(directory)
    shutil.rmtree(old)


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_config(model: MiniBert, folder: Path) -> None:
    fixed = {name: value for name, value in ONLY_SUPPORTED.items() if name != "pruned_heads"}
    config = {"architectures": ["BertModel"], **fixed, **asdict(model.config)}
    _write_json(folder / "config.json", config)


def _write_weights(tensors: dict[str, Tensor], folder: Path) -> None:
    path = folder / _WEIGHTS
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o666 & folder.stat().st_mode)  # save_file lets nobody but the owner read it


def _write_modules(model: MiniBert, folder: Path) -> None:
    """sentence-transformers' list of modules, their settings, and the pooler's weights."""
    pooling, width = model.pooling, model.config.hidden_size
    paths = {"Transformer": "", "Pooling": POOLING_FOLDER}
    settings = {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
    }
    _write_json(folder / POOLING_FOLDER / "config.json", settings)
    if pooling == "cls":
        paths["Dense"] = _TANH_FOLDER
        settings = {"in_features": width, "out_features": width, "bias": True}
        settings["activation_function"] = "torch.nn.modules.activation.Tanh"
        _write_json(folder / _TANH_FOLDER / "config.json", settings)
        weights = {f"linear.{k}": v for k, v in model.pooler.dense.state_dict().items()}
        _write_weights(weights, folder / _TANH_FOLDER)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(paths.items())
    ]
    _write_json(folder / "modules.json", modules)


def _write_tokenizer(model: MiniBert, folder: Path, tokenizer: Any) -> None:
    if tokenizer is None:
        tokenizer = getattr(model, "source", None)
    if isinstance(tokenizer, Tokenizer):
        tokenizer.save(str(folder / "tokenizer.json"))
        settings = _tokenizer_settings(tokenizer, model.config.max_position_embeddings)
        _write_json(folder / "tokenizer_config.json", settings)
        _write_vocabulary(tokenizer, folder / "vocab.txt")
    elif isinstance(tokenizer, str | Path):
        for name in TOKENIZER_FILES:
            if (Path(tokenizer) / name).is_file():
                shutil.copyfile(Path(tokenizer) / name, folder / name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _write_vocabulary(tokenizer: Tokenizer, path: Path) -> None:
    """vocab.txt: one token per line, its id is the line's number; not written if ids have gaps."""
    vocabulary = {number: token for token, number in tokenizer.get_vocab().items()}
    if sorted(vocabulary) == list(range(len(vocabulary))):
        lines = "".join(f"{vocabulary[i]}\n" for i in range(len(vocabulary)))
        path.write_text(lines, encoding="utf-8", newline="\n")


def _tokenizer_settings(tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """tokenizer_config.json: AutoTokenizer takes the normaliser's options from here."""
    special = {key: t for key, t in _SPECIAL_TOKENS.items() if tokenizer.token_to_id(t) is not None}
    settings = {**special, "model_max_length": max_length}
    normalizer = json.loads(tokenizer.to_str())["normalizer"] or {}
    if normalizer.get("type") != "BertNormalizer" or len(special) < len(_SPECIAL_TOKENS):
        return {**settings, "tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        **settings,
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer["lowercase"],
        "strip_accents": normalizer["strip_accents"],
        "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
    }
