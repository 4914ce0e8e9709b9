"""The launchers of task_heads and objective."""

from __future__ import annotations

from functools import cached_property

import torch

from tests.cuda_on_cpu import library
from tests.cuda_on_cpu.cuda_rows import dense_rows, unwritten, with_stride


class HostArrays:
    """Arrays in the host's memory, as an export takes them; they live as long as this."""

    def __init__(self, *values: list):
        kinds = [torch.float64 if isinstance(x[0], float) else torch.int64 for x in values]
        self.tensors = [torch.tensor(x, dtype=k) for x, k in zip(values, kinds, strict=True)]
        self.addresses = [x.data_ptr() for x in self.tensors]


class HeadKernels:
    """Of a case of any of the four ops."""

    function: str

    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    def call(self, pooled, factors, *others):
        table = self.case.table
        host = HostArrays(table.heads, table.scales)
        numbers = len(table.specs), table.hidden_size, *host.addresses
        arguments = *numbers, *self.rows(pooled, factors), *others
        library("task_heads").call(self.function, *arguments, seed=self.seed)

    def rows(self, pooled, factors):
        pairs = [(None, 0) if x is None else with_stride(dense_rows(x)) for x in (pooled, factors)]
        return [x for pair in pairs for x in pair]


class ForwardKernels(HeadKernels):
    function = "forward"

    @property
    def value(self):
        pooled, factors, weights = self.case.split(self.case.inputs)
        out = unwritten(self.case.table.num_outputs)
        self.call(pooled, factors, weights, len(out), out)
        return [out]


class JvpKernels(HeadKernels):
    function = "jvp"

    @property
    def value(self):
        pooled, factors, weights, tangent = self.case.split(self.case.inputs)
        out = unwritten(self.case.table.num_outputs)
        self.call(pooled, factors, weights, *with_stride(dense_rows(tangent)), len(out), out)
        return [out]


class VjpKernels(HeadKernels):
    function = "vjp"

    @property
    def value(self):
        pooled, factors, weights, cotangents = self.case.split(self.case.inputs)
        out = unwritten(*pooled.shape)
        self.call(pooled, factors, weights, cotangents, len(pooled), out)
        return [out]


class WeightKernels(HeadKernels):
    function = "weight_gradients"

    @property
    def value(self):
        passes = self.case.passes(self.case.inputs)
        out = self.case.start.clone()
        (pooled, factors, cotangents), *rest = passes
        other = [*self.rows(*rest[0][:2]), rest[0][2]] if rest else [None, 0, None, 0, None]
        self.call(pooled, factors, cotangents, *other, out)
        return [out]


class LossKernels:
    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    @cached_property
    def table(self):
        return self.case.table

    def call(self, function, *others):
        table, kernels = self.table, library("objective")
        with kernels.device(self.seed) as device:
            tensors = zip(table.class_weights, table.label_means, table.label_scales, strict=True)
            places = [device.pointer(x) if x.numel() else 0 for row in tensors for x in row]
            host = HostArrays(table.losses, table.numbers, places)
            device.call(function, len(table.specs), *host.addresses, *others)

    def smoothness(self, function, size):
        out = unwritten(size)
        self.call(function, *self.case.inputs, self.table.num_examples, out)
        return [out]


class ObjectiveKernels(LossKernels):
    @property
    def value(self):
        case, table = self.case, self.table
        outputs, labels, z, targets, reported = case.split(case.inputs)
        written = [unwritten(len(table.specs), 4), unwritten(len(outputs))]
        written += [] if z is None else [unwritten(len(outputs))]
        grads = [*written, None][:3]
        numbers = table.smart_weight, table.bregman_weight, case.factor
        self.call("all_terms", *numbers, outputs, labels, z, targets, reported, *grads)
        return written


class CotangentKernels(LossKernels):
    @property
    def value(self):
        return self.smoothness("cotangents", self.table.num_outputs)


class ValueKernels(LossKernels):
    @property
    def value(self):
        return self.smoothness("values", len(self.table.specs))
