"""Which modules are what MiniBert has built, so that an op may take their weights past them.

A module that was replaced, parametrised, or given a hook or an adapter computes something else than
its weights say. It is called.
"""

from __future__ import annotations

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from sbrrt_fast.errors import WeightsError
from sbrrt_fast.model.tensors import shapes_only

_EVERYWHERE = (  # torch's own dictionaries, which it changes in place
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
_LEAVES = (nn.Linear, nn.LayerNorm, nn.Embedding)
_PACKAGE = __name__.partition(".")[0] + "."


def is_plain(module: nn.Module) -> bool:
    """Whether calling a Linear, LayerNorm or Embedding does no more than its class's formula with
    all of its weights.

    It is asked in every pass: hooks and adapters come and go.
    """
    if type(module) not in _LEAVES or is_hooked(module):
        return False
    if type(module) is nn.Embedding:
        return not _is_special(module)
    parameters = module._parameters  # torch's own look-up of a parameter takes longer than all this
    return parameters.get("weight") is not None and parameters.get("bias") is not None


def is_hooked(module: nn.Module) -> bool:
    """Whether calling a module does more than, or something else than, its class's ``forward``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or any(_EVERYWHERE)
        or "forward" in module.__dict__
    )


def _is_special(table: nn.Embedding) -> bool:
    """Whether an embedding renormalises rows, or has gradients of its own kind."""
    options = table.padding_idx is not None, table.max_norm is not None
    return any(options) or table.scale_grad_by_freq or table.sparse


def product_and_bias(dense: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """x W^T and the bias, for an op that adds it: of any other module its result, and zeros."""
    if is_plain(dense):
        return F.linear(x, dense.weight), dense.bias
    result = dense(x)
    dtype = torch.promote_types(result.dtype, torch.float32)
    return result, result.new_zeros(result.shape[-1], dtype=dtype)


def why_not_plain(model: nn.Module) -> str | None:
    """Which module of a model is not as the package builds it, so that passes which read its
    weights would miss something; None where there is none."""
    for name, module in model.named_modules():
        if reason := _why_not(module):
            return f"{name or 'the model'} {reason}"
    return None


def _why_not(module: nn.Module) -> str | None:
    kind = type(module)
    is_ours = kind.__module__.startswith(_PACKAGE) or kind is nn.ModuleList
    if not is_ours and kind not in _LEAVES:
        return f"is a {kind.__module__}.{kind.__qualname__}"
    if is_hooked(module):
        return "has hooks"
    return None if is_ours or is_plain(module) else "has other options than the encoder's"


def plain_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """The weights that an encoder computes with, by the names that they have where all modules are
    plain: adapters are merged into them, parametrisations computed. The encoder stays as it is.

    Args:
        encoder: a ``MiniBert``.

    Raises:
        WeightsError: a module has no such weight, or has it only while it is called.
    """
    if why_not_plain(encoder) is None:
        return encoder.state_dict()
    with shapes_only():
        names = type(encoder)(encoder.config, encoder.pooling).state_dict()
    layers: dict[str, nn.Module] = {}
    tensors = {}
    for name in names:
        path, _, leaf = name.rpartition(".")
        if path not in layers:
            layers[path] = _merged(_submodule(encoder, path))
        tensors[name] = _weight(layers[path], path, leaf).detach()
    return tensors


def merged_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state of any model by the names that it has without peft's adapters, which are merged
    into the weights. The model stays as it is."""
    layers = {path: _merged(m) for path, m in model.named_modules() if _is_adapted(m)}
    prefixes = tuple(f"{path}." if path else "" for path in layers)
    state = model.state_dict().items()
    tensors = {n: x.detach() for n, x in state if not n.startswith(prefixes)}
    for prefix, layer in zip(prefixes, layers.values(), strict=True):
        tensors |= {prefix + name: x.detach() for name, x in layer.state_dict().items()}
    return tensors


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise WeightsError(f"{path}: the encoder has no such module any more; {_ADVICE}") from None


def _merged(module: nn.Module) -> nn.Module:
    """The layer under peft's adapters, as a copy that has them in its weights."""
    if not _is_adapted(module):
        return module
    merged = deepcopy(module)
    if not merged.merged:
        merged.merge()
    return merged.get_base_layer()


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "merge") and hasattr(module, "get_base_layer")


def _weight(module: nn.Module, path: str, leaf: str) -> Tensor:
    is_parametrised = leaf in getattr(module, "parametrizations", ())
    if not is_parametrised and module._parameters.get(leaf) is None:
        kind = type(module).__name__
        raise WeightsError(f"{path}.{leaf}: {kind} has no such parameter; {_ADVICE}")
    return getattr(module, leaf)


_ADVICE = "put a plain layer in its place (such as torch.nn.utils.remove_weight_norm makes) first"
