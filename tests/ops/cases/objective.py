"""The objective of groups of tasks, and SMART's smoothness."""

from __future__ import annotations

import torch

from sbrrt_fast.ops import objective_reference as reference
from sbrrt_fast.ops.objective import (
    LossSpec,
    ObjectiveTable,
    objective,
    smoothness_cotangents,
    smoothness_values,
)
from tests.ops.cases.base import Bad, Case, Drawn, Op, Reason, Sample
from tests.ops.head_groups import heads_of
from tests.ops.op_checks import F32

EVERY_LOSS = ("smooth", "smooth yes-no", "length", "sst", "para", "sts")
ALL = ("adversarial", "targets")
# tasks, examples of each, scale of the changes, which further outputs there are, whether R_s is
# told, dtype
SAMPLES = {
    "one example": (("para",), 1, 0.3, ALL, False, F32),
    "loss alone": (EVERY_LOSS, 5, 0.3, (), False, F32),
    "teacher alone": (EVERY_LOSS, 5, 0.3, ("targets",), False, F32),
    "tiny changes": (EVERY_LOSS, 17, 1e-5, ALL, False, F32),
    "changes": (EVERY_LOSS, 7, 0.3, ALL, True, F32),
    "large changes": (EVERY_LOSS, 7, 30.0, ("adversarial",), False, F32),
    "primes": (("kinds", "minutes"), 31, 1.0, ALL, True, F32),
}
NATIVE = {
    "many classes": (("topics", "sst"), 9, 0.5, ALL, False, F32),
    "many examples": (EVERY_LOSS, 211, 0.5, ALL, False, F32),
}


class LossCase(Case):
    """Of w and changes of it."""

    def __init__(self, sample: Sample):
        tasks, count, scale, self.others, self.reports, dtype = sample
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(tasks) + count)
            heads = heads_of(list(tasks), [count] * len(tasks), dtype=dtype)
        self.table, self.labels, self.factor = heads.losses(), heads.labels, 0.25
        draw, size = Drawn(count), self.table.num_outputs
        self.outputs = draw(size, dtype=dtype, scale=2)
        self.changes = draw(size, dtype=dtype, scale=scale)
        self.targets = draw(size, dtype=dtype)
        self.values = draw(len(tasks), dtype=dtype)
        self.inputs = [self.outputs, self.changes]

    def check(self, ours, stock, exact, approximation):
        """Everything is computed in double: what remains is the rounding of the result."""
        for mine, truth in zip(ours, exact, strict=True):
            assert mine.shape == truth.shape
            error = (mine.double() - truth).abs()
            assert (error <= (1.2e-7 + approximation) * truth.abs().max() + 1e-38).all()


class ObjectiveCase(LossCase):
    def __init__(self, sample: Sample):
        super().__init__(sample)
        given = {"adversarial": self.outputs + self.changes, "targets": self.targets}
        self.inputs = [self.outputs, *(given[name] for name in self.others)]
        if self.reports:
            self.inputs.append(self.values)
        self.inputs.append(self.labels)

    def split(self, inputs) -> tuple:
        """(outputs, labels, adversarial, targets, smart_values), None where there is none."""
        outputs, *rest, labels = inputs
        values = rest.pop() if self.reports else None
        given = dict(zip(self.others, rest, strict=True))
        return outputs, labels, given.get("adversarial"), given.get("targets"), values

    def function(self, backend):
        def run(*inputs):
            *vectors, values = self.split(inputs)
            found = objective(self.table, *vectors, self.factor, values, backend=backend)
            return [x for x in found if x is not None]

        return run

    def stock(self, *inputs):
        *vectors, values = self.split(inputs)
        found = reference.objective_reference(self.table, *vectors, self.factor, values)
        return [x for x in found if x is not None]


class CotangentCase(LossCase):
    def function(self, backend):
        return lambda w, t: smoothness_cotangents(self.table, w, t, backend=backend)

    def stock(self, outputs, tangents):
        return reference.smoothness_cotangents_reference(self.table, outputs, tangents)


class ValueCase(LossCase):
    def function(self, backend):
        return lambda w, d: smoothness_values(self.table, w, d, backend=backend)

    def stock(self, outputs, changes):
        return reference.smoothness_values_reference(self.table, outputs, changes)

    def check_value(self, value, exact):
        """Small divergences keep their digits."""
        error = (value[0].double() - exact[0]).abs()
        assert (error <= 1.2e-7 * exact[0]).all()


# Two examples of three classes, two of one logit, one value.
GOOD_LOSSES = [0, 2, 3, 1, 2, 1, 2, 1, 1]


def good() -> dict:
    vectors = ("outputs", "adversarial", "targets", "grad_outputs", "grad_adversarial", "tangents",
               "changes")  # fmt: skip
    none, doubles = torch.empty(0), torch.empty(0, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    return {name: torch.ones(9) for name in vectors} | {
        "labels": torch.ones(5), "smart_values": torch.ones(3), "terms": torch.zeros(3, 4),
        "class_weights": [torch.ones(3), none, none], "label_means": [doubles, doubles, one],
        "label_scales": [doubles, doubles, one], "losses": [*GOOD_LOSSES],
        "numbers": [1.0, 0.1, 1.0, 0.0, 0.5, 0.0], "smart_weight": 1.0, "bregman_weight": 1.0,
        "smart_factor": 1.0, "out": torch.zeros(9),
    }  # fmt: skip


def changed(place: int, value: int) -> list[int]:
    """The good losses but for one number."""
    return [*GOOD_LOSSES[:place], value, *GOOD_LOSSES[place + 1 :]]


def listed(name: str, place: int, value: torch.Tensor) -> list[torch.Tensor]:
    """A good list but for one tensor."""
    return [value if i == place else x for i, x in enumerate(good()[name])]


SMOOTHNESS_BAD = (
    Bad("outputs", torch.ones(9).double(), TypeError, "outputs must have dtype"),
    Bad("outputs", torch.ones(8), ValueError, "outputs must be a dense tensor"),
    Bad("tangents", torch.ones(8), ValueError, "tangents must be a dense tensor"),
    Bad("changes", torch.ones(9).long(), TypeError, "changes must have dtype"),
    Bad("losses", [], ValueError, "losses must have 3 numbers for each task, got 0"),
    Bad("losses", GOOD_LOSSES[:-1], ValueError, "losses must have 3 numbers for each task"),
    Bad("losses", changed(0, 3), ValueError, "losses must be kind, num_examples"),
    Bad("losses", changed(1, 0), ValueError, "losses must be kind, num_examples"),
    Bad("losses", changed(5, 2), ValueError, "losses must be kind, num_examples"),
    Bad("out", torch.ones(7), ValueError, "out must be a dense tensor"),
)
DOUBLES = torch.ones(3).double()
BAD = (
    *SMOOTHNESS_BAD,
    Bad("labels", torch.ones(4), ValueError, "labels must be a dense tensor"),
    Bad("adversarial", torch.ones(8), ValueError, "adversarial must be a dense tensor"),
    Bad("adversarial", None, ValueError, "adversarial and grad_adversarial come together"),
    Bad("targets", DOUBLES, TypeError, "targets must have dtype"),
    Bad("smart_values", torch.ones(2), ValueError, "smart_values must be a dense tensor"),
    Bad("class_weights", good()["class_weights"][:2], ValueError, "one entry for each of 3 tasks"),
    Bad("class_weights", listed("class_weights", 0, torch.ones(2)), ValueError, "class_weights.0."),
    Bad("class_weights", listed("class_weights", 2, torch.ones(1)), ValueError, "class_weights.2."),
    Bad("class_weights", listed("class_weights", 0, DOUBLES), TypeError, "class_weights.0. must"),
    Bad("label_means", listed("label_means", 2, torch.ones(())), TypeError, "label_means.2. must"),
    Bad("label_means", listed("label_means", 0, DOUBLES[0]), ValueError, "label_means.0. must be"),
    Bad("label_means", listed("label_means", 2, DOUBLES[:0]), ValueError, "come together"),
    Bad("numbers", [1.0], ValueError, "numbers must have 2 for each of 3 tasks, got 1"),
    Bad("numbers", [1.0, 1.0] * 3, ValueError, "label smoothing, which must be in"),
    Bad("numbers", [float("nan"), 0.0] * 3, ValueError, "must be finite"),
    Bad("smart_factor", float("inf"), ValueError, "must be finite"),
    Bad("terms", torch.ones(3, 3), ValueError, "terms must be a dense tensor"),
    Bad("grad_outputs", torch.ones(18)[::2], ValueError, "must be contiguous"),
)


def _table(num_classes: int = 2) -> ObjectiveTable:
    return ObjectiveTable([LossSpec("cross_entropy", 1, num_classes, 1.0)], 1.0, 1.0, "cpu")


def _doubles(backend):
    return objective(_table(), torch.ones(2).double(), torch.ones(1), backend=backend)


def _many_classes(backend):
    return smoothness_values(_table(1025), *torch.ones(2, 1025), backend=backend)


REASONS = (
    Reason(_doubles, "float64 tensors run on the reference"),
    Reason(_many_classes, "1025 classes are above 1024", ("triton",)),
)
COMMON = {
    "native": NATIVE, "small": "changes", "repeated": ("many examples",),
    "orders": ("changes", "tiny changes"), "sized": lambda rows: SAMPLES["changes"],
    "reasons": REASONS, "is_differentiated": False, "warns": True,
}  # fmt: skip
OBJECTIVE = Op("objective", ObjectiveCase, SAMPLES, good=good, bad=BAD, **COMMON)
COTANGENTS = Op(
    "smoothness_cotangents", CotangentCase, SAMPLES, good=good, bad=SMOOTHNESS_BAD, **COMMON
)
VALUES = Op(
    "smoothness_values", ValueCase, SAMPLES, good=lambda: good() | {"out": torch.zeros(3)},
    bad=SMOOTHNESS_BAD, **COMMON,
)  # fmt: skip
