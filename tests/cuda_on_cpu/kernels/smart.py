"""The launchers of symmetric_kl, its Fisher product, smart_ascend and the random numbers."""

from __future__ import annotations

import torch

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import dense_rows, unwritten, with_stride
from tests.ops.op_checks import F32

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class SymmetricKlKernels:
    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    def call(self, function, *others):
        inputs = self.case.inputs
        tensors = (value for x in inputs for value in (x, *x.stride(), x.dtype))
        arguments = *inputs[0].shape, *tensors, *others
        library("symmetric_kl").call(function, *arguments, seed=self.seed)

    @property
    def value(self):
        out = unwritten(len(self.case.inputs[0]))
        self.call("forward", out)
        return [out]

    @property
    def gradients(self):
        grad = self.case.grad
        written = [unwritten(*x.shape, dtype=x.dtype) for x in self.case.inputs]
        self.call("backward", grad, grad.stride(0), *written)
        return written


class FisherKernels(SymmetricKlKernels):
    @property
    def value(self):
        out = unwritten(*self.case.inputs[0].shape)
        self.call("fisher", out)
        return [out]


class AscendKernels:
    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    @property
    def value(self):
        return [self.ascend(*self.case.inputs, **options) for options in self.case.settings]

    def ascend(self, delta, gradient, *, radius, **options):
        out = unwritten(*delta.shape, dtype=delta.dtype)
        case, delta, gradient = self.case, dense_rows(delta), dense_rows(gradient)
        rows = *with_stride(delta), delta.dtype, *with_stride(gradient), gradient.dtype
        library("smart_ascend").call(
            "ascend", len(delta), case.num_sequences, delta.shape[1], *rows, case.mask,
            case.sequence, out, options["step_size"], int(options["normalize_gradient"]),
            int(options["projection"] == "ball"), radius, int(options["norm"] == "inf"),
            int(options["level"] == "sequence"), seed=self.seed,
        )  # fmt: skip
        return out


class RandomKernels:
    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    def call(self, function, dtype, *others):
        case = self.case
        offsets = case.offsets.contiguous()
        out = torch.full((len(offsets), case.width), -1, dtype=dtype)
        arguments = len(offsets), case.width, case.rng, offsets, case.site, out, *others
        library("philox_ops").call(function, *arguments, seed=self.seed)
        return out


class NoiseKernels(RandomKernels):
    @property
    def value(self):
        return [self.call("noise", F32)]


class BitsKernels(RandomKernels):
    @property
    def value(self):
        return [self.call("bits", torch.int32)]


class MaskKernels(RandomKernels):
    @property
    def value(self):
        return [self.mask(*setting) for setting in self.case.settings]

    def mask(self, p, dtype):
        scale = torch.tensor([1.0 / (1.0 - p)], dtype=torch.float64).to(dtype)
        kept = int(scale.view(INTEGERS[dtype.itemsize]))
        return self.call("mask", dtype, p, kept, dtype.itemsize)
