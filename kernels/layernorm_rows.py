"""What LayerNorm's kernels share: rows of residual + dropout(x + bias), statistics, projection."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_floats, check_last_rows, check_rows, check_written_rows, strided
from .launch import launch
from .rows import RowDropout, load_float, row_factors, tile_rows


@triton.jit
def normalize(b_s, m, width, eps):
    """(mean, rstd, standardised rows) of rows that are 0 where ``m`` is False."""
    mean = tl.sum(b_s, axis=1, keep_dims=True) / width
    b_centred = tl.where(m, b_s - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(b_centred * b_centred, axis=1, keep_dims=True) / width + eps)
    return mean, rstd, b_centred * rstd


@triton.jit
def standardize(b_s, p_mean, p_rstd, o_row, m, num_rows):
    """(standardised rows, rstd) from the rows' statistics."""
    mean = load_float(p_mean, o_row, o_row < num_rows)
    rstd = load_float(p_rstd, o_row, o_row < num_rows)
    return tl.where(m, (b_s - mean) * rstd, 0.0), rstd


@triton.jit
def project(b_g, b_z, rstd, width):
    """rstd (g - mean(g) - z mean(g z)): LayerNorm's derivative, its own adjoint."""
    mean = tl.sum(b_g, axis=1, keep_dims=True) / width
    product = tl.sum(b_g * b_z, axis=1, keep_dims=True) / width
    return rstd * (b_g - mean - b_z * product)


@triton.jit
def residual_tile(
    x,
    p_bias,
    residual,
    p_offsets,
    dropout,
    i_first,
    num_rows,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    DROPS: tl.constexpr,
):
    """A tile's rows, features, mask, dropout's factors M and residual + M (x + bias).

    x and residual are (pointer, stride); dropout is (stream, threshold, scale); the tile begins
    with row i_first.
    """
    o_row, o, m = tile_rows(i_first, num_rows, width, ROWS, BLOCK)
    b_factor = row_factors(p_offsets, o_row, num_rows, dropout, BLOCK, DROPS)
    b_x = load_float(x[0], o_row * x[1] + o, m) + load_float(p_bias, o, o < width)
    b_s = load_float(residual[0], o_row * residual[1] + o, m) + b_factor * b_x
    return o_row, o, m, b_factor, b_s


@dataclass(frozen=True)
class ResidualSum:
    """residual + dropout(x + bias) and LayerNorm's weight, which all three host functions read."""

    op: str
    x: Tensor
    bias: Tensor
    residual: Tensor
    weight: Tensor
    dropout: RowDropout

    @property
    def shape(self) -> torch.Size:
        return self.x.shape

    def check(self) -> None:
        num_rows, width = check_rows(self.op, "x", self.x)
        check_floats(
            self.op, self.x.device, bias=(self.bias, (width,)),
            residual=(self.residual, (num_rows, width)), weight=(self.weight, (width,)),
        )  # fmt: skip
        self.dropout.check(self.op, num_rows, self.x.device)

    def check_results(self, out: Tensor, low: Tensor | None) -> None:
        """low: a copy of out in another dtype, if it is wanted."""
        op, device = self.op, self.x.device
        check_written_rows(op, "out", out, self.residual.dtype, self.shape, device)
        if low is not None:
            check_floats(op, device, low=(low, self.shape))
            check_written_rows(op, "low", low, low.dtype, self.shape, device)

    def check_tangents(
        self, x_tangent: Tensor | None, residual_tangent: Tensor | None,
        out_tangent: Tensor | None, low_tangent: Tensor | None,
    ) -> int:  # fmt: skip
        """Of the last rows; returns how many there are."""
        op, device = self.op, self.x.device
        is_given = [t is not None for t in (x_tangent, residual_tangent, out_tangent)]
        if any(is_given) != all(is_given) or (low_tangent is not None and not all(is_given)):
            raise ValueError(
                f"{op}: x_tangent, residual_tangent and out_tangent go together, and low_tangent "
                "with them; pass all of them or none"
            )
        if x_tangent is None:
            return 0
        check_last_rows(op, "x_tangent", x_tangent, self.x)
        shape = x_tangent.shape
        check_floats(op, device, residual_tangent=(residual_tangent, shape))
        check_written_rows(op, "out_tangent", out_tangent, self.residual.dtype, shape, device)
        if low_tangent is not None:
            check_floats(op, device, low_tangent=(low_tangent, shape))
            dtype = low_tangent.dtype
            check_written_rows(op, "low_tangent", low_tangent, dtype, shape, device)
        return len(x_tangent)

    def read(self) -> dict[str, Tensor]:
        """The tensors by name."""
        tensors = {"x": self.x, "bias": self.bias, "residual": self.residual}
        return {**tensors, "weight": self.weight, **self.dropout.read()}

    def launch(self, kernel, num_programs: int, *arguments, **constants) -> None:
        """With the kernels' common arguments before the others."""
        tensors = *strided(self.x), self.bias.contiguous(), *strided(self.residual)
        common = *tensors, self.weight.contiguous(), *self.dropout.arguments()
        drops = self.dropout.p > 0
        launch(kernel, (num_programs,), *common, *arguments, DROPS=drops, **constants)
