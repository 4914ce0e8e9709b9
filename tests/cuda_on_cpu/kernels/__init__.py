"""How a case of the ops' table is computed by the CUDA kernels on the CPU, by op.

``KERNELS[op](case)`` has ``value``, ``gradients`` and ``tangent``, lists of tensors in the order of
the op's inputs; ``seed`` draws another order of threads. Results start as NaN.
"""

from __future__ import annotations

from tests.cuda_on_cpu.kernels.adamw import AdamwKernels, NormKernels, RowsKernels
from tests.cuda_on_cpu.kernels.attention import AttentionKernels
from tests.cuda_on_cpu.kernels.embed import EmbedKernels
from tests.cuda_on_cpu.kernels.gelu import GeluKernels
from tests.cuda_on_cpu.kernels.heads import (
    CotangentKernels,
    ForwardKernels,
    JvpKernels,
    ObjectiveKernels,
    ValueKernels,
    VjpKernels,
    WeightKernels,
)
from tests.cuda_on_cpu.kernels.layernorm import LayerNormKernels
from tests.cuda_on_cpu.kernels.smart import (
    AscendKernels,
    BitsKernels,
    FisherKernels,
    MaskKernels,
    NoiseKernels,
    SymmetricKlKernels,
)

KERNELS = {
    "adamw_ema_": AdamwKernels,
    "adamw_ema_rows_": RowsKernels,
    "attention": AttentionKernels,
    "bias_gelu": GeluKernels,
    "dropout_add_layernorm": LayerNormKernels,
    "dropout_mask": MaskKernels,
    "embed": EmbedKernels,
    "gradient_norm": NormKernels,
    "heads_forward": ForwardKernels,
    "heads_jvp": JvpKernels,
    "heads_vjp": VjpKernels,
    "heads_weight_gradients": WeightKernels,
    "objective": ObjectiveKernels,
    "philox_bits": BitsKernels,
    "smart_ascend": AscendKernels,
    "smart_noise": NoiseKernels,
    "smoothness_cotangents": CotangentKernels,
    "smoothness_values": ValueKernels,
    "symmetric_kl": SymmetricKlKernels,
    "symmetric_kl_fisher": FisherKernels,
}
