"""Peers that are compared where they are installed, and said to be absent where they are not."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.harness.benchmark import Absent


def _imported(module: str, distribution: str):
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            raise Absent(f"{distribution} is not installed") from None
        raise Absent(f"{distribution} does not import: {error}") from error
    except Exception as error:  # a package that does not fit this torch may raise anything
        raise Absent(f"{distribution} does not import: {error}") from error


def _on_gpu(x_device: torch.device, distribution: str) -> None:
    if x_device.type != "cuda":
        raise Absent(f"{distribution} needs a GPU")


def hugging_face() -> ModuleType:
    """``peers.hugging_face``, which imports transformers."""
    return _peers("hugging_face")


def hugging_face_round() -> ModuleType:
    """``peers.hugging_face_round``, which imports transformers."""
    return _peers("hugging_face_round")


def _peers(name: str) -> ModuleType:
    try:
        return import_module(f"benchmarks.peers.{name}")
    except ModuleNotFoundError as error:
        raise Absent(f"{error.name} is not installed") from None


def sentence_transformer(folder: Path, device: torch.device):
    """A folder's model in sentence-transformers, without dropout."""
    module = _imported("sentence_transformers", "sentence-transformers")
    import_module("transformers.utils.logging").disable_progress_bar()
    return module.SentenceTransformer(str(folder), device=str(device)).eval()


def liger_layernorm(device: torch.device) -> Callable[..., Tensor]:
    """(x, weight, shift, eps) by liger-kernel."""
    module = _imported("liger_kernel.ops.layer_norm", "liger-kernel")
    _on_gpu(device, "liger-kernel")
    return module.LigerLayerNormFunction.apply


def apex_layernorm(device: torch.device) -> Callable[..., Tensor]:
    """(x, weight, shift, eps) by apex."""
    module = _imported("apex.normalization.fused_layer_norm", "apex")
    _on_gpu(device, "apex")
    return lambda x, weight, shift, eps: module.fused_layer_norm_affine(
        x, weight, shift, weight.shape, eps
    )


def apex_adam(device: torch.device) -> Callable:
    """apex.optimizers.FusedAdam, whose default is AdamW."""
    module = _imported("apex.optimizers", "apex")
    _on_gpu(device, "apex")
    return module.FusedAdam


def flash_attention(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """flash_attn_varlen_func, packed and with dropout."""
    return _packed("flash_attn", "flash-attn", device, dtype).flash_attn_varlen_func


def torch_varlen(device: torch.device, dtype: torch.dtype) -> Callable[..., Tensor]:
    """torch's own packed attention, which has no dropout."""
    name = "torch.nn.attention.varlen"
    return _packed(name, name, device, dtype).varlen_attn


def _packed(module: str, distribution: str, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """A module of packed attention in 16 bits. Raises Absent."""
    packed = _imported(module, distribution)
    _on_gpu(device, distribution)
    if dtype not in (torch.float16, torch.bfloat16):
        raise Absent(f"{distribution} takes float16 and bfloat16 alone")
    return packed
