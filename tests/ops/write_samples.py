"""Valid calls of every op that writes into given memory, of random sizes.

``sample(op, draw)`` gives arguments by name, as in the schema; ``written(op)`` names those that
the op writes.
"""

from __future__ import annotations

import random
from itertools import accumulate

import torch
from torch import Tensor

from sbrrt_fast.ops import written_out  # noqa: F401 - defines mm_into
from tests.ops import head_samples
from tests.ops.op_checks import BF16, F32
from tests.ops.op_references import embed_forward, layernorm_forward

ops = torch.ops.sbrrt


def schema(op: str, library: str = "sbrrt"):
    return getattr(getattr(torch.ops, library), op).default._schema


def written(op: str, library: str = "sbrrt") -> list[str]:
    arguments = schema(op, library).arguments
    return [a.name for a in arguments if a.alias_info and a.alias_info.is_write]


def writing_ops(library: str = "sbrrt") -> list[str]:
    """All there are."""
    names = [n.split("::") for n in torch._C._dispatch_get_all_op_names()]
    return sorted(n for space, n in names if space == library and written(n, library))


def sample(op: str, draw: random.Random) -> dict:
    family = next((name for name in SAMPLES if op.startswith(name)), None)
    assert family, f"no sample of {op}: add one to SAMPLES in tests/ops/write_samples.py"
    values = SAMPLES[family](draw)
    return {a.name: values[a.name] for a in schema(op).arguments}


def gelu(draw) -> dict:
    dtype, size = draw.choice([F32, BF16]), (draw.randint(0, 6), draw.choice([1, 3, 8, 16, 19, 32]))
    names = ["x", "grad", "x_tangent", "out", "dx"]
    values = {name: torch.randn(size).to(dtype) for name in names}
    values |= {"bias": torch.randn(size[1]), "dbias": torch.zeros(size[1])}
    return values | ({"dbias": None} if draw.random() < 0.5 else {})


def gelu_forward(draw) -> dict:
    """Of the last rows, or of none, with tangents."""
    return last_rows(draw, gelu(draw), ["x_tangent", "out_tangent"], like="out")


def last_rows(draw, values: dict, names: list[str], like: str) -> dict:
    """With tangents of the last rows or without; a result's is like the result itself."""
    count = draw.randint(0, len(values["x"]))
    values["out_tangent"] = torch.zeros_like(values[like])
    for name in names:
        whole = None if draw.random() < 0.5 and name == "low_tangent" else values[name]
        values[name] = None if whole is None else whole[len(whole) - count :].clone()
    return values | dict.fromkeys(names) if draw.random() < 0.4 else values


def layernorm_forward_sample(draw) -> dict:
    values = layernorm(draw)
    values["low_tangent"] = torch.zeros(values["x"].shape, dtype=BF16)
    names = ["x_tangent", "residual_tangent", "out_tangent", "low_tangent"]
    return last_rows(draw, values, names, like="residual")


def layernorm(draw) -> dict:
    """With an eps that keeps rows of few elements well conditioned."""
    num_rows, width = draw.randint(0, 6), draw.choice([2, 5, 8, 16, 17, 32])
    low, size = draw.choice([F32, BF16]), (num_rows, width)
    values = {n: torch.randn(size).to(low) for n in ("x", "product", "x_tangent", "dx")}
    names = ["residual", "grad", "residual_tangent", "out", "dresidual"]
    values |= {name: torch.randn(size) for name in names}
    values |= {"weight": torch.rand(width), "shift": torch.randn(width), "bias": torch.randn(width)}
    if draw.random() < 0.3:
        values["product"] = None
    values["low"] = None if draw.random() < 0.5 else torch.zeros(size, dtype=BF16)
    values |= {"eps": 0.1, "p": draw.choice([0.0, 0.1, 0.5]), "site": draw.randrange(2**32)}
    values |= {"rng": torch.tensor([draw.randrange(2**63), 7])}
    values |= {"offsets": torch.arange(num_rows) * width}
    values |= segments(draw, num_rows, width)
    names = ["x", "bias", "residual", "weight", "shift", "eps", "p", "rng", "site", "offsets"]
    _, mean, rstd, _ = layernorm_forward(*(values[name] for name in names))
    return values | {"mean": mean.float(), "rstd": rstd.float()}


def segments(draw, num_rows: int, width: int) -> dict:
    """Of random lengths, some empty, with their sums in a wider matrix; or none."""
    if draw.random() < 0.5:
        return {"segments": None, "sums": None}
    bounds = sorted(draw.randint(0, num_rows) for _ in range(draw.randrange(3)))
    bounds = torch.tensor([0, *bounds, num_rows], dtype=torch.int32)
    memory = torch.zeros(len(bounds) - 1, 3 * width + draw.choice([0, 0, 5]))
    return {"segments": bounds, "sums": memory[:, : 3 * width].unflatten(1, (3, width))}


def column_sums(draw) -> dict:
    layers, rows, width = draw.randint(0, 3), draw.randint(0, 7), draw.choice([1, 5, 16, 33])
    memory = torch.randn(rows, layers, width + 3).to(draw.choice([F32, BF16]))
    x, weights = memory[..., :width].transpose(0, 1), torch.randn(rows)
    return {"x": x if draw.random() < 0.5 else x.contiguous(), "out": torch.zeros(layers, width),
            "weights": None if draw.random() < 0.5 else weights}  # fmt: skip


def attention(draw) -> dict:
    lengths = [draw.choice([0, 1, 2, 5, 11]) for _ in range(draw.randrange(4))]
    num_heads, dtype = draw.randint(1, 2), draw.choice([F32, BF16])
    size, max_length = (sum(lengths), num_heads * 32), max(lengths, default=0)
    names = ["query", "key", "value", "grad", "query_tangent", "key_tangent", "value_tangent"]
    names += ["dquery", "dkey", "dvalue"]
    values = {name: torch.randn(size).to(dtype) for name in names}
    values |= {
        "cu_seqlens": torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        "max_length": max_length,
        "num_heads": num_heads,
        "p": draw.choice([0.0, 0.1, 0.5]),
        "rng": torch.tensor([draw.randrange(2**63), 7]),
        "site": draw.randrange(2**32),
        "rows": torch.arange(len(lengths)),
        "max_positions": max_length + draw.choice([0, 3]),
    }
    values |= {"out": torch.empty(size).to(dtype), "logsumexp": torch.empty(size[0], num_heads)}
    forward = schema("attention_forward_into").arguments
    ops.attention_forward_into(*(values[argument.name] for argument in forward))
    return values


def embed(draw) -> dict:
    num_tokens, width = draw.randint(0, 6), draw.choice([2, 5, 8, 16, 17])
    dtype, sizes = draw.choice([F32, BF16]), {"word": 5, "position": 7, "type": 2}
    names = ("ids", "positions", "types")
    values = {
        name: torch.tensor([draw.randrange(n) for _ in range(num_tokens)], dtype=torch.int64)
        for name, n in zip(names, sizes.values(), strict=True)
    }
    order = torch.stack([values[name].argsort(stable=True) for name in names])
    values["order"] = None if draw.random() < 0.5 else order
    for name, n in sizes.items():
        values |= {
            name: torch.randn(n, width).to(dtype),
            f"d{name}": torch.zeros(n, width).to(dtype),
        }
    values |= {"weight": torch.rand(width), "shift": torch.randn(width)}
    values |= {"dweight": torch.zeros(width), "dshift": torch.zeros(width)}
    for name in ("dword", "dposition", "dtype", "dweight", "dshift"):
        if draw.random() < 0.2:
            values[name] = None
    values |= {name: torch.randn(num_tokens, width).to(dtype) for name in ("grad", "out")}
    values |= {"eps": 0.1, "p": draw.choice([0.0, 0.1, 0.5]), "site": draw.randrange(2**32)}
    values |= {"rng": torch.tensor([draw.randrange(2**63), 7])}
    values |= {"offsets": torch.arange(num_tokens) * width}
    names = [*names, *sizes, "weight", "shift", "eps", "p", "rng", "site", "offsets"]
    _, mean, rstd = embed_forward(*(values[name] for name in names))
    return values | {"mean": mean.float(), "rstd": rstd.float()}


def symmetric_kl(draw) -> dict:
    size, dtypes = (draw.randint(0, 6), draw.choice([1, 2, 5, 17])), [F32, BF16]
    logits, delta = (torch.randn(size).to(draw.choice(dtypes)) for _ in range(2))
    values = {"logits": logits, "delta": delta, "grad": torch.randn(size[0])}
    values |= {"dlogits": torch.zeros_like(logits), "ddelta": torch.zeros_like(delta)}
    return values | {"tangent": delta, "out": torch.zeros(size[0])}


def fisher(draw) -> dict:
    values = symmetric_kl(draw)
    return values | {"out": torch.zeros(values["logits"].shape)}


def smart_ascend(draw) -> dict:
    size, dtypes = (draw.randint(0, 9), draw.choice([1, 2, 5, 17])), [F32, BF16]
    delta, gradient = (torch.randn(size).to(draw.choice(dtypes)) for _ in range(2))
    return {
        "delta": delta, "gradient": gradient, "mask": torch.rand(size[0]) > 0.2,
        "sequence": torch.arange(size[0]) // 3, "num_sequences": 3,
        "step_size": draw.choice([1e-3, 0.7, float("inf")]),
        "normalize_gradient": draw.random() < 0.5,
        "projection": draw.choice(["ball", "normalize"]), "radius": draw.choice([1e-5, 0.5]),
        "norm": draw.choice(["inf", "2"]), "level": draw.choice(["token", "sequence"]),
        "out": torch.zeros_like(delta),
    }  # fmt: skip


def random_numbers(draw) -> dict:
    """Of dropout_mask_into, philox_bits_into and smart_noise_into, but for their result."""
    num_rows = draw.randint(0, 6)
    offsets = torch.tensor([draw.randrange(10**9) for _ in range(num_rows)], dtype=torch.int64)
    return {"offsets": offsets, "p": draw.choice([0.0, 0.1, 0.5]), "site": draw.randrange(2**32),
            "rng": torch.tensor([draw.randrange(2**63), 7])}  # fmt: skip


def mask(draw) -> dict:
    values = random_numbers(draw)
    size = len(values["offsets"]), draw.choice([1, 3, 8, 17])
    return values | {"out": torch.zeros(size, dtype=draw.choice([F32, BF16]))}


def bits(draw) -> dict:
    values = mask(draw)
    return values | {"out": values["out"].to(torch.int32)}


def noise(draw) -> dict:
    values = random_numbers(draw)
    return values | {"out": torch.zeros(len(values["offsets"]), draw.choice([4, 8, 20]))}


def norm(draw) -> dict:
    shapes = [draw.choice([(), (3,), (2, 5), (0, 2)]) for _ in range(draw.choice([1, 2, 9]))]
    dtype = draw.choice([F32, BF16])
    grads = [torch.randn(shape).to(draw.choice([dtype, F32])) for shape in shapes]
    return {"grads": grads, "max_norm": draw.choice([0.0, 0.5]), "out": torch.zeros(3)}


def mm(draw) -> dict:
    rows, inner, columns = draw.randint(0, 7), draw.randint(1, 9), draw.randint(1, 9)
    rows = draw.choice([rows, inner])
    columns = draw.choice([columns, inner])
    dtype = draw.choice([F32, BF16])
    sizes = {"a": (rows, inner), "b": (inner, columns), "out": (rows, columns)}
    values = {name: torch.randn(size).to(dtype) for name, size in sizes.items()}
    for name in ("a", "b"):
        if draw.random() < 0.3:
            values[name] = values[name].t().contiguous().t()
    return values


def adamw(draw) -> dict:
    count = draw.choice([0, 1, 2, 3, 9])  # 9: more tensors than are compared one by one
    shapes = [draw.choice([(), (3,), (2, 5), (0, 2), (17,)]) for _ in range(count)]
    names = ["params", "grads", "exp_avg", "exp_avg_sq", "ema"]
    values = {name: [torch.rand(shape) for shape in shapes] for name in names}
    for i in range(count):
        kind = draw.choice(["float32", "bfloat16", "none", "neither"])
        if kind == "bfloat16":
            values["grads"][i] = values["grads"][i].to(BF16)
        left_out = {"none": names[1:2], "neither": names[1:4]}.get(kind, ())
        for name in left_out if values["params"][i].numel() else ():
            values[name][i] = torch.empty(0)
    step = torch.tensor(3) if draw.random() < 0.5 else torch.arange(2, 2 + count)
    for name in ("low_precision", "ema_low_precision"):
        values[name] = [torch.zeros(shape, dtype=BF16) for shape in shapes]
        if draw.random() < 0.3:
            values[name] = []
    return values | numbers() | {"weight_decay": [0.1] * count, "step": step}


def adamw_rows(draw) -> dict:
    num_rows, width = draw.randint(1, 7), draw.choice([1, 4, 5])
    chosen = torch.arange(num_rows)[torch.rand(num_rows) < 0.5]
    tables = {n: torch.rand(num_rows, width) for n in ("param", "exp_avg", "exp_avg_sq", "ema")}
    touched = torch.ones(num_rows, dtype=torch.bool)
    return tables | numbers() | {
        "grad": torch.rand(len(chosen), width), "rows": chosen, "touched": touched,
        "weight_decay": 0.1,
    }  # fmt: skip


def numbers() -> dict:
    return {
        "learning_rate": torch.tensor(1e-2), "beta1": 0.9, "beta2": 0.99, "eps": 1e-3,
        "clip_factor": torch.tensor(0.5), "step": torch.tensor(3), "ema_beta": 0.9,
    }  # fmt: skip


SAMPLES = {
    "bias_gelu_forward_into": gelu_forward,
    "bias_gelu": gelu,
    "dropout_mask_into": mask,
    "embed": embed,
    "gradient_norm_into": norm,
    "philox_bits_into": bits,
    "smart_ascend_into": smart_ascend,
    "smart_noise_into": noise,
    "symmetric_kl_fisher_into": fisher,
    "symmetric_kl": symmetric_kl,
    "dropout_add_layernorm_forward_into": layernorm_forward_sample,
    "dropout_add_layernorm": layernorm,
    "attention": attention,
    "column_sums_into": column_sums,
    "heads": head_samples.heads,
    "objective_into": head_samples.losses,
    "smoothness_cotangents_into": head_samples.losses,
    "smoothness_values_into": head_samples.smoothness_values,
    "mm_into": mm,
    "adamw_ema_rows_": adamw_rows,
    "adamw_ema_": adamw,
}


def tensors(values: dict) -> dict[tuple[str, int], Tensor]:
    """Every tensor by argument and place in its list, -1 outside a list."""
    found = {}
    for name, value in values.items():
        items = list(enumerate(value)) if isinstance(value, list) else [(-1, value)]
        found |= {(name, i): x for i, x in items if isinstance(x, Tensor)}
    return found


def put(values: dict, place: tuple[str, int], x: Tensor) -> None:
    name, i = place
    if i < 0:
        values[name] = x
    else:
        values[name] = [*values[name][:i], x, *values[name][i + 1 :]]
