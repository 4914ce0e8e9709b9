"""The names of the variants of a round, the most telling first, and what is behind each.

Ours are ``fast``, ``plain`` (no SMART, no teacher) or ``reference``, with a precision. Hugging
Face's are ``hf``, a precision, and the attention or how it is compiled. ``joint`` is one optimiser
step per round on the summed loss, on both sides; without it there is a step per task.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.harness.rounds import sbrrt
from benchmarks.harness.settings import Settings
from sbrrt_fast.config import BregmanConfig, RunConfig, SmartConfig

FAST, PLAIN, REFERENCE = "fast bf16", "plain bf16", "reference fp32"
BF16_PEER, FP32_PEER = "hf bf16 sdpa", "hf fp32 sdpa"
JOINT = " joint"


def both(*names: str) -> tuple[str, ...]:
    """Each with a step per task, and joint."""
    return tuple(f"{name}{steps}" for name in names for steps in ("", JOINT))


# What the goals need, which a short run still has.
OF_GOALS = both(FAST, "hf fp32 eager", BF16_PEER, PLAIN, "hf bf16 eager")
OURS_BESIDE = both("fast fp32", "plain fp32")
PEERS_BESIDE = both(
    "hf fp32 eager plain", "hf bf16 sdpa plain", FP32_PEER, "hf bf16 eager plain",
    "hf fp32 sdpa plain",
)  # fmt: skip
TF32 = both("hf tf32 eager", "hf tf32 sdpa", "hf tf32 eager plain", "hf tf32 sdpa plain")
GPU_ONLY = tuple(f"{FAST} {way}" for way in ("triton", "cuda", "uncaptured"))
COMPILED = both("hf bf16 compile")
GRAPHS = both("hf bf16 graphs")
ALL = (*OF_GOALS, *OURS_BESIDE, *PEERS_BESIDE, *TF32, REFERENCE, *GPU_ONLY)
# Of a model that takes long, and of a quick run.
FEW = both(FAST, BF16_PEER)
QUICK = both(FAST, "hf fp32 eager", BF16_PEER, PLAIN)
QUICK_GPU = (*QUICK, REFERENCE, *TF32[:2], *GPU_ONLY)


def is_peer(name: str) -> bool:
    return name.startswith("hf ")


def precision_of(name: str) -> str:
    """``fp32``, ``tf32`` or ``bf16``."""
    return name.split()[1]


def is_joint(name: str) -> bool:
    return name.endswith(JOINT)


def is_plain(name: str) -> bool:
    return "plain" in name.split()


def counterpart(name: str) -> str:
    """Ours in bf16 that does what a variant does: SBRRT or plain, with as many steps."""
    return (PLAIN if is_plain(name) else FAST) + JOINT * is_joint(name)


def with_fp32_peer(name: str) -> str:
    """A peer in float32 in the place of one in bfloat16; ours as it is."""
    return name.replace("bf16", "fp32") if is_peer(name) else name


def fitting(names: tuple[str, ...], settings: Settings) -> list[str]:
    """Without TF32 on a CPU, which has none."""
    return [name for name in names if settings.is_gpu or precision_of(name) != "tf32"]


def config_of(name: str) -> RunConfig:
    """The run behind one of our variants."""
    kind, precision, *rest = name.split()
    config = sbrrt("joint" if "joint" in rest else "per_task", precision)
    if kind == "reference":
        config = replace(config, backend="reference")
    if kind == "plain":
        config = replace(config, smart=SmartConfig(), bregman=BregmanConfig())
    if rest and rest[0] in ("triton", "cuda"):
        config = replace(config, backend=rest[0])
    if "uncaptured" in rest:
        config = replace(config, graphs=False)
    return config
