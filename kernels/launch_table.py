"""Blocks, warps and stages of every kernel by shape class, each with its reason.

``python -m benchmarks.tune.launch_table`` writes this file: where it has timed a class on a GPU,
the reason is the measurement. What is not timed is chosen by what ``aot`` counts: no spills, few
registers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """How one class is launched.

    Attributes:
        constants: of the kernel, by name; blocks are powers of 2.
        why: the reason or the measurement.
    """

    constants: dict[str, int]
    why: str


TABLE: dict[str, Choice] = {
    "attention forward 16-bit tile 16": Choice(
        {"query": 16, "key": 16, "num_warps": 1},
        "a warp per 16 queries keeps sums over keys within a warp",
    ),
    "attention forward 16-bit tile 32": Choice(
        {"query": 32, "key": 32, "num_warps": 2},
        "a warp per 16 queries keeps sums over keys within a warp",
    ),
    "attention forward 16-bit tile 64": Choice(
        {"query": 64, "key": 64, "num_warps": 4},
        "a warp per 16 queries keeps sums over keys within a warp",
    ),
    "attention forward 16-bit tile 128": Choice(
        {"query": 64, "key": 128, "num_warps": 4},
        "a warp per 16 queries keeps sums over keys within a warp; 128 queries spill",
    ),
    "attention forward 32-bit tile 16": Choice(
        {"query": 16, "key": 16, "num_warps": 2},
        "float32 products have no matrix instructions: more warps, to fit in registers",
    ),
    "attention forward 32-bit tile 32": Choice(
        {"query": 32, "key": 32, "num_warps": 4},
        "float32 products have no matrix instructions: more warps, to fit in registers",
    ),
    "attention backward 16-bit tile 16": Choice(
        {"query": 16, "key": 16, "num_warps": 1},
        "a warp per 16 queries keeps sums over keys within a warp",
    ),
    "attention backward 16-bit tile 32": Choice(
        {"query": 32, "key": 32, "num_warps": 2},
        "a warp per 16 queries keeps sums over keys within a warp",
    ),
    "attention backward 16-bit tile 64": Choice(
        {"query": 64, "key": 64, "num_warps": 4},
        "a warp per 16 queries keeps sums over keys within a warp",
    ),
    "attention backward 16-bit tile 128": Choice(
        {"query": 128, "key": 128, "num_warps": 8},
        "a warp per 16 queries keeps sums over keys within a warp; one program holds all queries",
    ),
    "attention backward 32-bit tile 16": Choice(
        {"query": 16, "key": 16, "num_warps": 2},
        "float32 products have no matrix instructions: more warps, to fit in registers",
    ),
    "attention backward 32-bit tile 32": Choice(
        {"query": 32, "key": 32, "num_warps": 8},
        "float32 products have no matrix instructions: more warps, to fit in registers",
    ),
    "attention jvp 16-bit tile 16": Choice(
        {"query": 16, "key": 16, "num_warps": 1},
        "a warp per 16 queries keeps sums over keys within a warp",
    ),
    "attention jvp 16-bit tile 32": Choice(
        {"query": 32, "key": 32, "num_warps": 2},
        "a warp per 16 queries keeps sums over keys within a warp",
    ),
    "attention jvp 16-bit tile 64": Choice(
        {"query": 64, "key": 64, "num_warps": 4},
        "a warp per 16 queries keeps sums over keys within a warp",
    ),
    "attention jvp 32-bit tile 16": Choice(
        {"query": 16, "key": 16, "num_warps": 2},
        "float32 products have no matrix instructions: more warps, to fit in registers",
    ),
    "attention jvp 32-bit tile 32": Choice(
        {"query": 32, "key": 32, "num_warps": 8},
        "float32 products have no matrix instructions: more warps, to fit in registers",
    ),
    "attention forward 16-bit loop": Choice(
        {"query": 64, "key": 64, "num_warps": 4, "num_stages": 2},
        "the largest blocks without spills on sm_80 and sm_90",
    ),
    "attention backward_query 16-bit loop": Choice(
        {"query": 64, "key": 32, "num_warps": 4, "num_stages": 2},
        "the largest blocks without spills on sm_80 and sm_90",
    ),
    "attention backward_key 16-bit loop": Choice(
        {"query": 32, "key": 64, "num_warps": 4, "num_stages": 2},
        "the largest blocks without spills on sm_80 and sm_90",
    ),
    "attention jvp 16-bit loop": Choice(
        {"query": 64, "key": 32, "num_warps": 4, "num_stages": 2},
        "the largest blocks without spills on sm_80 and sm_90",
    ),
    "attention forward 32-bit loop": Choice(
        {"query": 32, "key": 32, "num_warps": 8, "num_stages": 1},
        "the largest blocks without spills; no matrix instructions, so more warps",
    ),
    "attention backward_query 32-bit loop": Choice(
        {"query": 32, "key": 32, "num_warps": 8, "num_stages": 1},
        "the largest blocks without spills; no matrix instructions, so more warps",
    ),
    "attention backward_key 32-bit loop": Choice(
        {"query": 32, "key": 32, "num_warps": 8, "num_stages": 1},
        "the largest blocks without spills; no matrix instructions, so more warps",
    ),
    "attention jvp 32-bit loop": Choice(
        {"query": 16, "key": 32, "num_warps": 8, "num_stages": 1},
        "the largest blocks without spills; no matrix instructions, so more warps",
    ),
    "layernorm forward 512": Choice(
        {"ROWS": 1, "num_warps": 2},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "layernorm forward 1024": Choice(
        {"ROWS": 1, "num_warps": 4},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "layernorm backward 512": Choice(
        {"ROWS": 1, "num_warps": 2},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "layernorm backward 1024": Choice(
        {"ROWS": 1, "num_warps": 4},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "layernorm jvp 512": Choice(
        {"ROWS": 1, "num_warps": 2},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "layernorm jvp 1024": Choice(
        {"ROWS": 1, "num_warps": 4},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "embed forward 512": Choice(
        {"ROWS": 1, "num_warps": 2},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "embed forward 1024": Choice(
        {"ROWS": 1, "num_warps": 4},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "embed backward 512": Choice(
        {"ROWS": 1, "num_warps": 2},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "embed backward 1024": Choice(
        {"ROWS": 1, "num_warps": 4},
        "eight elements a thread: a 16-byte load of bfloat16, two Philox blocks",
    ),
    "adamw_ema_rows_ 512": Choice(
        {"ROWS": 1, "num_warps": 2},
        "eight elements a thread: two 16-byte loads of each tensor",
    ),
    "adamw_ema_rows_ 1024": Choice(
        {"ROWS": 1, "num_warps": 4},
        "eight elements a thread: two 16-byte loads of each tensor",
    ),
    "smart_ascend 512": Choice(
        {"num_warps": 2},
        "eight elements a thread, which are float64",
    ),
    "smart_ascend 1024": Choice(
        {"num_warps": 4},
        "eight elements a thread, which are float64",
    ),
    "gelu forward": Choice(
        {"ROWS": 16, "COLUMNS": 256, "num_warps": 8},
        "sixteen elements a thread, as the backward",
    ),
    "gelu jacobian": Choice(
        {"ROWS": 16, "COLUMNS": 256, "num_warps": 8},
        "sixteen elements a thread: 32 take 144 registers in the backward",
    ),
    "smart_noise": Choice(
        {"ROWS": 2, "COLUMNS": 256, "num_warps": 4},
        "one Philox block a thread, whose float64 sine and logarithm fill its registers",
    ),
    "embed table": Choice(
        {"TOKENS": 32, "COLUMNS": 128, "num_warps": 4},
        "all tokens share one or two types: 32 rows at a time keep that sum to twenty steps",
    ),
    "column sums": Choice(
        {"ROWS": 32, "COLUMNS": 64, "num_warps": 4},
        "partial sums per tile: two full 128-byte lines of float32 a row",
    ),
    "adamw_ema_": Choice(
        {"BLOCK": 2048, "num_warps": 8},
        "eight elements a thread: two 16-byte accesses to each of up to seven tensors",
    ),
    "gradient_norm": Choice(
        {"BLOCK": 1024, "num_warps": 4},
        "eight elements a thread: two 16-byte loads",
    ),
    "task_heads": Choice(
        {"BLOCK": 256, "num_warps": 2},
        "four elements a thread: a 16-byte load, and enough programs of a few dozen vectors",
    ),
    "dropout_mask": Choice(
        {"ROWS": 4, "COLUMNS": 256, "num_warps": 4},
        "eight elements a thread: two Philox blocks",
    ),
}
