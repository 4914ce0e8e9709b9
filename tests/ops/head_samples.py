"""Valid calls of the writing ops of heads and objectives, of random sizes."""

from __future__ import annotations

import random

import torch

VECTORS = (1, 2, 3, 0)  # pooled vectors in the features of each kind of head


def heads(draw: random.Random) -> dict:
    hidden, fields, row, offset, size = draw.choice([1, 3, 8, 17]), [], draw.randint(0, 2), 0, 0
    for _ in range(draw.choice([1, 1, 2, 4])):
        kind, count = draw.randrange(4), draw.randint(1, 3)
        outputs = 1 if kind == 3 else draw.choice([1, 1, 2, 5])
        bias = offset + outputs * VECTORS[kind] * hidden
        fields += [kind, count, row, outputs, *((-1, -1) if kind == 3 else (offset, bias))]
        row += count * (1 if kind == 0 else 2) + draw.randint(0, 1)
        offset = offset if kind == 3 else bias + outputs + draw.randint(0, 2)
        size += count * outputs
    names = ("pooled", "pooled_tangent", "dpooled", "other_pooled")
    values = {name: torch.randn(row + draw.randint(0, 2), hidden) for name in ("pooled",)}
    values |= {name: torch.randn_like(values["pooled"]) for name in names[1:]}
    for name in ("factors", "other_factors"):
        dropped = torch.rand_like(values["pooled"]) < 0.2
        values[name] = None if draw.random() < 0.4 else torch.where(dropped, 0.0, 1.25)
    flat = ("cotangents", "other_cotangents", "out")
    values |= {name: torch.randn(size) for name in flat}
    if draw.random() < 0.5:
        values |= dict.fromkeys(("other_pooled", "other_factors", "other_cotangents"))
    count = len(fields) // 6
    return values | {
        "weights": torch.randn(offset + 1), "dweights": torch.randn(offset + 1), "heads": fields,
        "scales": [draw.choice([1.0, 5.0]) for _ in range(count)],
    }  # fmt: skip


def losses(draw: random.Random) -> dict:
    tasks = [(draw.randrange(3), draw.randint(1, 4)) for _ in range(draw.choice([1, 2, 5]))]
    fields = [(kind, n, draw.choice([1, 2, 5]) if kind == 0 else 1) for kind, n in tasks]
    size, count = sum(n * outputs for _, n, outputs in fields), len(fields)
    names = ("outputs", "adversarial", "targets", "tangents", "changes")
    values = {name: torch.randn(size) for name in names}
    values |= {name: torch.zeros(size) for name in ("grad_outputs", "grad_adversarial")}
    classes = [outputs if kind == 0 else 2 for kind, _, outputs in fields]
    labels = [torch.randint(k, (n,)) for (_, n, _), k in zip(fields, classes, strict=True)]
    values |= {"labels": torch.cat(labels).float(), "terms": torch.zeros(count, 4)}
    values["smart_values"] = None if draw.random() < 0.5 else torch.rand(count)
    if draw.random() < 0.3:
        values |= dict.fromkeys(("adversarial", "grad_adversarial", "smart_values"))
    if draw.random() < 0.3:
        values["targets"] = None
    given = [draw.random() < 0.5 for _ in fields]
    values["class_weights"] = [
        torch.rand(k if has and kind != 2 else 0)
        for has, k, (kind, _, _) in zip(given, classes, fields, strict=True)
    ]
    for name in ("label_means", "label_scales"):
        values[name] = [
            torch.rand(() if has and kind == 2 else 0, dtype=torch.float64) + 0.5
            for has, (kind, _, _) in zip(given, fields, strict=True)
        ]
    numbers = [x for _ in fields for x in (draw.choice([1.0, 0.5]), draw.choice([0.0, 0.1]))]
    weights = {name: draw.choice([0.0, 1.0]) for name in ("smart_weight", "bregman_weight")}
    return values | weights | {
        "losses": [x for row in fields for x in row], "numbers": numbers, "smart_factor": 0.5,
        "out": torch.zeros(size),
    }  # fmt: skip


def smoothness_values(draw: random.Random) -> dict:
    values = losses(draw)
    return values | {"out": torch.zeros(len(values["losses"]) // 3)}
