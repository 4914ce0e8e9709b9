"""The launchers of adamw_ema_, adamw_ema_rows_ and gradient_norm."""

from __future__ import annotations

import math

import torch

from tests.cuda_on_cpu import ELEMENT, library
from tests.ops.cases.adamw import numbers, row_gradient


def update_numbers(learning_rate, clip_factor, step, betas, ema_beta, eps=1e-8):
    """What the kernels take of an update's numbers, in order."""
    rate = learning_rate, int(learning_rate.dim() > 0), int(learning_rate.dtype == torch.float64)
    step = step, int(step.dim() > 0), int(step.dtype == torch.int64)
    return *rate, clip_factor, *step, *betas, eps, ema_beta


def update(lists, grads, weight_decay, settings, copies=((), ()), seed=0):
    """Updates params, exp_avg, exp_avg_sq and ema in place; entries may be missing or empty."""
    decay = torch.tensor(weight_decay).double()
    with library("adamw").device(seed) as device:
        tensors = [[x[i] if len(x) else None for x in (*lists, *copies)] for i in range(len(grads))]
        found = [
            [device.pointer(x) if x is not None and x.numel() else 0 for x in (*entries, grad)]
            for entries, grad in zip(tensors, grads, strict=True)
        ]
        addresses, sizes = torch.tensor(found), torch.tensor([p.numel() for p in lists[0]])
        types = torch.tensor([ELEMENT[g.dtype] for g in grads])
        host = (x.data_ptr() for x in (addresses, sizes, types, decay))
        device.call("update", *update_numbers(**settings), len(grads), *host)


def update_rows(lists, found, touched, settings, seed=0):
    """The same of a table of which some rows have a gradient."""
    arguments = *lists, found.values, 0.1, *lists[0].shape, len(found.rows), found.rows, touched
    library("adamw").call("update_rows", *update_numbers(**settings), *arguments, seed=seed)


def norm(grads, per_launch=1000, seed=0):
    """The norm alone."""
    return clipped_norm(grads, 0.0, per_launch, seed)[0]


def clipped_norm(grads, max_norm, per_launch=1000, seed=0):
    """float32 [3]: norm, clip factor, whether the norm is finite."""
    num_partial = sum(-(-g.numel() // 16384) for g in grads)
    partial, ticket = torch.zeros(num_partial + 1, dtype=torch.int64), torch.zeros(1).int()
    out = torch.full((3,), math.nan)
    with library("gradient_norm").device(seed) as device:
        addresses = torch.tensor([device.pointer(g) if g.numel() else 0 for g in grads])
        sizes = torch.tensor([g.numel() for g in grads])
        types = torch.tensor([ELEMENT[g.dtype] for g in grads])
        host = addresses.data_ptr(), sizes.data_ptr(), types.data_ptr(), per_launch
        sums = num_partial, partial, ticket
        device.call("norm", float(max_norm), len(grads), *host, *sums, out)
    return out


class AdamwKernels:
    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    @property
    def value(self):
        *lists, grads = self.case.lists(self.case.inputs)
        lists = [[x.clone() for x in xs] for xs in lists]
        update(lists, grads, self.case.weight_decay, self.case.numbers, seed=self.seed)
        return [x for xs in lists for x in xs]


class RowsKernels:
    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    @property
    def value(self):
        param, m, v, ema = lists = [x.clone() for x in self.case.inputs]
        touched = torch.zeros(len(param), dtype=torch.bool)
        for step in self.case.STEPS:
            found = row_gradient(self.case.size, step)
            update_rows([param, m, v, ema], found, touched, numbers(step), self.seed)
            assert torch.equal(touched, (v != 0).any(1))
        return lists


class NormKernels:
    """With any number of tensors to a launch."""

    def __init__(self, case, seed=0):
        self.case, self.seed = case, seed

    @property
    def value(self):
        return [norm(self.case.inputs, count, self.seed) for count in (1, 2, 1000)]
