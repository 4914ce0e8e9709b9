"""The benchmarks by the stage of a run that they belong to."""

from __future__ import annotations

from benchmarks.cases.adamw_ema import AdamwEma
from benchmarks.cases.assemble import Assemble
from benchmarks.cases.attention import Attention
from benchmarks.cases.compiled_round import CompiledRound
from benchmarks.cases.embed import Embed
from benchmarks.cases.encode import Encode
from benchmarks.cases.evaluate import Evaluate
from benchmarks.cases.gelu import BiasGelu
from benchmarks.cases.layernorm import LayerNorm
from benchmarks.cases.optimizer import Optimizer
from benchmarks.cases.random_numbers import DropoutMask, SmartNoise
from benchmarks.cases.round import Round
from benchmarks.cases.smart_ascend import SmartAscend
from benchmarks.cases.sweep import Sweep
from benchmarks.cases.symmetric_kl import Fisher, SymmetricKl

OPS = (
    Attention, LayerNorm, BiasGelu, Embed, AdamwEma, Optimizer, SymmetricKl, Fisher, SmartNoise,
    SmartAscend, DropoutMask,
)  # fmt: skip
BENCHMARKS = {
    "round": (Round,),
    "sweep": (Sweep,),
    "evaluate": (Assemble, Evaluate, Encode),
    "ops": OPS,
    "compiled": (CompiledRound,),
}
