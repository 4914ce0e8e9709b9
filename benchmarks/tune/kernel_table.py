"""How many kernels an op of the step launches on a GPU, without one.

Ours are read off ``csrc/cuda``: which launchers a binding calls, and how many kernels one of them
launches; ``tests/benchmarks/test_kernel_count.py`` holds the tables below against those sources.
Torch's follow its CUDA implementation:

- An elementwise op, a reduction and a matrix product are one kernel each. Large reductions that
  clear a counter first, and products that a library splits along the inner dimension, take one more
  here and there; which ones is the library's choice at run time.
- Filling, copying and clearing are one, whether a kernel or a node of the graph that copies memory.
- Views and allocations are none.
- Composite ops that the dispatcher shows as one are counted by their parts, with the reason beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.pretended_gpu import name_of
from sbrrt_fast.errors import SbrrtError

# Op of the extension -> the launchers of csrc/cuda that its binding may call, each at most once.
LAUNCHERS: dict[str, tuple[str, ...]] = {
    "adamw_ema_": ("adamw_ema",),
    "adamw_ema_rows_": ("adamw_ema_rows",),
    "attention_backward_into": ("attention_backward",),
    "attention_forward_into": ("attention_forward",),
    "attention_jvp_into": ("attention_jvp",),
    "bias_gelu_backward_into": ("column_sums", "gelu_grad"),
    "bias_gelu_forward_into": ("gelu_forward",),
    "bias_gelu_jvp_into": ("column_sums", "gelu_grad"),  # the sums are the backward's alone
    "column_sums_into": ("column_sums",),
    "dropout_add_layernorm_backward_into": ("layernorm_backward",),
    "dropout_add_layernorm_forward_into": ("layernorm_forward",),
    "dropout_add_layernorm_jvp_into": ("layernorm_jvp",),
    "dropout_mask_into": ("dropout_mask",),
    "embed_backward_into": ("column_sums", "embed_backward", "embed_tables"),
    "embed_forward_into": ("embed_forward",),
    "gradient_norm_into": ("gradient_norm",),
    "heads_forward_into": ("heads_forward",),
    "heads_jvp_into": ("heads_jvp",),
    "heads_vjp_into": ("heads_vjp",),
    "heads_weight_gradients_into": ("heads_weight_gradients",),
    "mm_into": (),  # the library's
    "objective_into": ("objective",),
    "philox_bits_into": ("philox_bits",),
    "smart_ascend_into": ("smart_ascend",),
    "smart_noise_into": ("smart_noise",),
    "smoothness_cotangents_into": ("smoothness_cotangents",),
    "smoothness_values_into": ("smoothness_values",),
    "symmetric_kl_backward_into": ("symmetric_kl_backward",),
    "symmetric_kl_fisher_into": ("symmetric_kl_fisher",),
    "symmetric_kl_forward_into": ("symmetric_kl_forward",),
}
TWO_KERNELS = {"attention_backward", "embed_tables"}  # launchers of two, one after the other
ONE_OF_TWO = {"attention_forward", "attention_jvp"}  # launchers of one of two
MAX_SHORT_KEYS = 128  # kMaxShortKeys
TENSORS_PER_LAUNCH = {"adamw_ema_": 400, "gradient_norm_into": 1024}  # kMax...Tensors
# Zeros that the bindings write: gradient_norm's ticket, and a gradient where there are none; those
# of embed_backward per table.
CLEARED = {"gradient_norm_into": 2, "embed_backward_into": 1}

READS_STRIDES = {
    "mm_into",
    "symmetric_kl_backward_into",
    "symmetric_kl_fisher_into",
    "symmetric_kl_forward_into",
}
PARAMETERS = {"bias", "weight", "shift"}  # read as float32

Arguments = Mapping[str, object]


class UnknownOp(SbrrtError):
    """The tables do not have an op."""


def num_kernels(op: torch._ops.OpOverload, args: tuple, kwargs: dict, result: object) -> int:
    """How many kernels an op on device tensors launches.

    Args:
        args, kwargs, result: of a call, with the shapes and strides that it has on a GPU.

    Raises:
        UnknownOp: it is in no table.
    """
    name = name_of(op)
    if op.is_view or op.namespace == "prims" or name in NOTHING:
        return 0
    arguments = _named(op, args) | kwargs
    if op.namespace == "sbrrt":
        return _ours(name, arguments)
    made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    if made and not any(x.numel() for x in made):
        return 0
    count = TORCH.get(name, 1 if torch.Tag.pointwise in op.tags else None)
    if count is None:
        raise UnknownOp(f"{op}: how many kernels it launches is not in benchmarks/kernel_table.py")
    return count(arguments) if callable(count) else count


def _named(op: torch._ops.OpOverload, args: tuple) -> dict[str, object]:
    return {argument.name: x for argument, x in zip(op._schema.arguments, args, strict=False)}


def _ours(name: str, a: Arguments) -> int:
    if name not in LAUNCHERS:
        raise UnknownOp(f"sbrrt::{name} has no CUDA kernels in benchmarks/kernel_table.py")
    count = OURS.get(name, lambda a: max(len(LAUNCHERS[name]), 1))
    return count(a) + (0 if name in READS_STRIDES else _copies(a))


def _copies(a: Arguments) -> int:
    """Arguments that a binding copies first: rows with gaps between features, other dtypes."""
    tensors = {name: x for name, x in a.items() if isinstance(x, Tensor) and x.numel() > 1}
    sparse = [x for x in tensors.values() if x.dim() and x.stride(-1) != 1 and x.shape[-1] > 1]
    cast = [name for name in PARAMETERS & tensors.keys() if tensors[name].dtype != torch.float32]
    return len(sparse) + len(cast)


def _attention_backward(a: Arguments) -> int:
    """One short kernel or two long ones, as ``plan_of`` of attention_launch.cuh chooses."""
    num_tokens, num_sequences = len(a["query"]), len(a["cu_seqlens"]) - 1
    keys = 32
    while keys < min(a["max_length"], MAX_SHORT_KEYS):
        keys *= 2
    is_mean_long = keys == 32 or num_tokens > keys // 4 * num_sequences
    return 1 if a["max_length"] <= keys and is_mean_long else 2


def _with_sums(a: Arguments) -> int:
    """The sums; gradients that are not float32 are rounded from them."""
    wanted = [a[name] for name in ("dbias", "dweight", "dshift") if a.get(name) is not None]
    return 1 + bool(wanted) + sum(x.dtype != torch.float32 for x in wanted)


def _embed_backward(a: Arguments) -> int:
    """The rows, the sums, two for all tables; tables with more rows than tokens are cleared."""
    tables = [a[name] for name in ("dword", "dposition", "dtype") if a[name] is not None]
    cleared = sum(len(table) > len(a["ids"]) for table in tables)
    return _with_sums(a) + 2 * bool(tables) + cleared


def _in_launches(name: str, tensors: str, cleared: int = 0) -> Callable[[Arguments], int]:
    def count(a: Arguments) -> int:
        return math.ceil(len(a[tensors]) / TENSORS_PER_LAUNCH[name]) + cleared

    return count


OURS: dict[str, Callable[[Arguments], int]] = {  # where it is not one per launcher
    "adamw_ema_": _in_launches("adamw_ema_", "params"),
    "attention_backward_into": _attention_backward,
    "bias_gelu_backward_into": _with_sums,
    "bias_gelu_jvp_into": lambda a: 1,
    "embed_backward_into": _embed_backward,
    "gradient_norm_into": _in_launches("gradient_norm_into", "grads", cleared=1),
}

# A launch of torch._foreach_* takes so many tensors, by the number of lists, and so many chunks.
FOREACH_TENSORS, FOREACH_CHUNKS, FOREACH_CHUNK = {1: 110, 2: 64}, 320, 65536


def _foreach(a: Arguments, num_lists: int = 2) -> int:
    launches = tensors = chunks = 0
    for x in a["self"]:
        tensors += 1
        for _ in range(math.ceil(x.numel() / FOREACH_CHUNK)):
            chunks += 1
            if chunks == FOREACH_CHUNKS:
                launches, chunks, tensors = launches + 1, 0, 1
        if tensors == FOREACH_TENSORS[num_lists] and chunks:
            launches, chunks, tensors = launches + 1, 0, 0
    return launches + (chunks > 0)


NOTHING = {
    "_efficientzerotensor", "_has_same_storage_numel", "empty", "empty_like", "empty_strided",
    "is_same_size", "new_empty", "new_empty_strided", "to",
}  # fmt: skip
TORCH: dict[str, int | Callable[[Arguments], int]] = {
    **dict.fromkeys(("mm", "mv", "addmm", "bmm"), 1),
    **dict.fromkeys(("sum", "mean", "amax", "any", "linalg_vector_norm"), 1),
    **dict.fromkeys(("zeros", "ones", "full", "zeros_like", "ones_like", "scalar_tensor"), 1),
    **dict.fromkeys(("new_zeros", "fill_", "zero_", "masked_fill_", "arange"), 1),
    **dict.fromkeys(("copy_", "clone", "_to_copy", "index", "index_select", "scatter_"), 1),
    **dict.fromkeys(("_log_softmax", "_log_softmax_backward_data", "nll_loss_forward"), 1),
    "cat": lambda a: math.ceil(len(a["tensors"]) / 128),  # as many inputs as a launch takes
    "stack": lambda a: math.ceil(len(a["tensors"]) / 128),
    "constant_pad_nd": 2,  # the value, and a copy into a part of it
    "slice_backward": 2,  # zeros, and a copy into a part of them
    "select_backward": 2,
    "index_add": 2,  # a copy, and the sums into it
    "scatter_reduce": 2,
    "nll_loss_backward": 2,  # the gradient is cleared first
    "binary_cross_entropy_with_logits": 6,  # log_sigmoid, ones, minus, times, minus, mean
    "mse_loss": 2,  # the squares, their mean
    "mse_loss_backward": 1,
    "_foreach_lerp_": _foreach,
    "_foreach_zero_": partial(_foreach, num_lists=1),
}
