"""The objective of a group of tasks and SMART's smoothness: docs/math/objective.md.

A program has a task, whose examples it takes ROWS at a time. There are some dozens of outputs, so
all is computed in float64: rounding of the inputs and of the results is all that remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_written_rows, strided
from .launch import launch
from .loss_table import (
    BINARY,
    SQUARED,
    TABLE_FIELDS,
    Losses,
    check_lists,
    check_numbers,
    check_vector,
    kept_table,
    loss_table,
    read_losses,
)
from .previous_kernel import await_previous
from .symmetric_kl import compare, log_softmax
from .tensor_table import addresses, tensor_at
from .write_set import check_write_set, count_change

ROWS, MAX_CLASSES = 16, 1024


def _blocks(losses: Losses) -> dict[str, int]:
    """ROWS, CLASSES and num_warps: two elements a thread, with many numbers of each at once."""
    classes = triton.next_power_of_2(losses.num_classes)
    rows = max(1, min(ROWS, MAX_CLASSES // classes))
    return {"ROWS": rows, "CLASSES": classes, "num_warps": min(max(rows * classes // 64, 1), 16)}


@triton.jit
def _tile(task, i_start, ROWS: tl.constexpr, CLASSES: tl.constexpr):
    """Examples [ROWS, 1] from i_start on, classes [1, CLASSES], places of their outputs, and masks
    of examples, of classes and of outputs; task: ``_task``."""
    kind, num_examples, num_outputs, first_output, _ = task
    is_binary = tl.where(kind == BINARY, 1, 0)
    o_row, o_class = i_start + tl.arange(0, ROWS)[:, None], tl.arange(0, CLASSES)[None, :]
    m_row = o_row < num_examples
    m_class = m_row & (o_class < num_outputs + is_binary)
    o = first_output + o_row * num_outputs + o_class - is_binary
    return o_row, o_class, o, m_row, m_class, m_class & (o_class >= is_binary)


@triton.jit
def _task(p_losses):
    """(kind, num_examples, num_outputs, first output, first example) of the program's task."""
    p = p_losses + tl.program_id(0) * TABLE_FIELDS
    first = (tl.load(p + 3), tl.load(p + 4))
    return tl.load(p), tl.load(p + 1), tl.load(p + 2), first[0], first[1]


@triton.jit
def _logits(p, tile):
    """Outputs as logits, float64: 0 for the first class of a binary task, -inf for none."""
    _, _, o, m_row, m_class, m_output = tile
    b_x = tl.load(p + o, mask=m_output, other=0.0).to(tl.float64)
    return tl.where(m_class | (m_row == 0), b_x, float("-inf"))


@triton.jit
def _changes(p, tile):
    """Changes of outputs as those of logits, float64; 0 for none."""
    return tl.load(p + tile[2], mask=tile[5], other=0.0).to(tl.float64)


@triton.jit
def _divergence(b_base, b_change, tile, task):
    """(l_s [ROWS], its gradients in the moved logits and in the base [ROWS, CLASSES])."""
    kind, _, num_outputs, _, _ = task
    m, is_squared = tile[4], kind == SQUARED
    num_classes = tl.where(kind == BINARY, 2, num_outputs)
    b_q, b_ratio, b_diff = compare(b_base, b_change, m, num_classes)
    b_p, b_value = b_q + b_diff, tl.sum(b_diff * b_ratio, axis=1)
    b_centred = b_ratio - tl.sum(b_p * b_ratio, axis=1)[:, None]
    b_moved = b_p * b_centred + b_diff
    b_own = -b_q * (b_centred + b_value[:, None]) - b_diff
    b_moved = tl.where(is_squared, 2.0 * b_change, b_moved)
    b_own = tl.where(is_squared, -2.0 * b_change, b_own)
    return tl.where(is_squared, tl.sum(b_change * b_change, axis=1), b_value), b_moved, b_own


@triton.jit
def _class_loss(b_logits, b_label, p_weights, smoothing, num_classes, tile):
    """(Cross entropy [ROWS], its gradient [ROWS, CLASSES]); NaN where the label is no class."""
    _, o_class, _, m_row, m_class, _ = tile
    b_index = b_label.to(tl.int64)
    is_class = (b_index.to(tl.float64) == b_label) & (b_index >= 0) & (b_index < num_classes)
    has_weights = p_weights.to(tl.int64) != 0
    p_factor = p_weights + tl.where(is_class, b_index, 0)
    m_factor = is_class & m_row & (tl.zeros_like(b_index) + has_weights.to(tl.int64) > 0)
    b_factor = tl.load(p_factor, mask=m_factor, other=1.0).to(tl.float64)
    b_factor = tl.where(is_class | (m_row == 0), b_factor, float("nan"))
    b_target = smoothing / num_classes + tl.where(o_class == b_index, 1.0 - smoothing, 0.0)
    b_target = tl.where(m_class, b_target, 0.0)
    b_log_q = log_softmax(b_logits)
    b_parts = tl.where(b_target > 0.0, b_target * b_log_q, 0.0)
    b_loss = -tl.sum(b_parts, axis=1)[:, None] * b_factor
    b_grad = b_factor * (tl.exp(b_log_q) - b_target)
    return tl.sum(b_loss, axis=1), tl.where(m_class, b_grad, 0.0)


@triton.jit
def _squared_loss(b_outputs, b_label, p_mean, p_scale, m_row):
    """(Squared error [ROWS], its gradient [ROWS, CLASSES]) of values in training units."""
    mean, scale = tl.zeros((), tl.float64), tl.full((), 1.0, tl.float64)
    if p_mean.to(tl.int64) != 0:
        mean, scale = tl.load(p_mean), tl.load(p_scale)
    b_error = tl.where(m_row, b_outputs - (b_label - mean) / scale, 0.0)
    return b_error * b_error, 2.0 * b_error


@triton.jit
def _loss(p_outputs, p_labels, p_addresses, smoothing, tile, task):
    """(A task's loss [ROWS], its gradient [ROWS, CLASSES])."""
    kind, _, num_outputs, _, first_example = task
    o_row, o_class, _, m_row, _, _ = tile
    p_address = p_addresses + tl.program_id(0)
    num_tasks = tl.num_programs(0)
    b_label = tl.load(p_labels + first_example + o_row, mask=m_row, other=0.0).to(tl.float64)
    num_classes = tl.where(kind == BINARY, 2, num_outputs)
    b_logits = _logits(p_outputs, tile)
    p_weights = tensor_at(p_address, tl.float32, False)
    b_loss, b_grad = _class_loss(b_logits, b_label, p_weights, smoothing, num_classes, tile)
    p_mean = tensor_at(p_address + num_tasks, tl.float64, False)
    p_scale = tensor_at(p_address + 2 * num_tasks, tl.float64, False)
    m_value = m_row & (o_class == 0)
    b_squares, b_twice = _squared_loss(_changes(p_outputs, tile), b_label, p_mean, p_scale, m_value)
    b_squared = tl.sum(b_squares, axis=1)
    if kind == SQUARED:
        b_loss, b_grad = b_squared, b_twice
    return tl.where(tl.max(m_row.to(tl.int32), axis=1) > 0, b_loss, 0.0), b_grad


@triton.jit
def _objective_kernel(
    p_outputs,  # float32 [num_outputs]
    p_labels,  # float32 [num_examples]
    p_adversarial,  # float32 [num_outputs], or None
    p_targets,  # float32 [num_outputs], or None
    p_reported,  # float32 [num_tasks], or None
    p_losses,  # int64 [num_tasks, TABLE_FIELDS]
    p_numbers,  # float64 [num_tasks, 2] of weight and smoothing, then three of all tasks
    p_addresses,  # int64 [3, num_tasks]: class weights, means and scales of labels
    p_terms,  # float32 [num_tasks, 4], rows terms_stride apart
    terms_stride,
    p_grad_outputs,  # float32 [num_outputs]
    p_grad_adversarial,  # float32 [num_outputs], or None
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    await_previous()
    i_task, task = tl.program_id(0), _task(p_losses)
    p_number = p_numbers + 2 * i_task
    p_common = p_numbers + 2 * tl.num_programs(0)
    weight, smoothing = tl.load(p_number), tl.load(p_number + 1)
    by_smart, by_bregman, factor = tl.load(p_common), tl.load(p_common + 1), tl.load(p_common + 2)
    count = task[1].to(tl.float64)
    b_losses = tl.zeros((ROWS,), tl.float64)
    b_smart, b_bregman = tl.zeros((ROWS,), tl.float64), tl.zeros((ROWS,), tl.float64)
    for i_start in range(0, task[1], ROWS):
        tile = _tile(task, i_start, ROWS, CLASSES)
        o, m = tile[2], tile[5]
        b_loss, b_grad = _loss(p_outputs, p_labels, p_addresses, smoothing, tile, task)
        b_losses += b_loss
        b_w, b_own = _logits(p_outputs, tile), _changes(p_outputs, tile)
        if p_adversarial is not None:
            b_change = _changes(p_adversarial, tile) - b_own
            b_value, b_moved, b_base = _divergence(b_w, b_change, tile, task)
            b_smart += b_value
            b_grad += by_smart * factor * b_base
            b_moved = weight / count * by_smart * factor * b_moved
            tl.store(p_grad_adversarial + o, b_moved.to(tl.float32), mask=m)
        if p_targets is not None:
            b_change = b_own - _changes(p_targets, tile)
            b_value, b_moved, _ = _divergence(_logits(p_targets, tile), b_change, tile, task)
            b_bregman += b_value
            b_grad += by_bregman * b_moved
        tl.store(p_grad_outputs + o, (weight / count * b_grad).to(tl.float32), mask=m)
    loss, bregman = tl.sum(b_losses, axis=0) / count, tl.sum(b_bregman, axis=0) / count
    smart = factor * tl.sum(b_smart, axis=0) / count
    if p_reported is not None:
        smart = tl.load(p_reported + i_task).to(tl.float64)
    p_term = p_terms + terms_stride * i_task
    tl.store(p_term, loss.to(tl.float32))
    tl.store(p_term + 1, smart.to(tl.float32))
    tl.store(p_term + 2, bregman.to(tl.float32))
    total = weight * (loss + by_smart * smart + by_bregman * bregman)
    tl.store(p_term + 3, total.to(tl.float32))


@triton.jit
def _cotangents_kernel(
    p_outputs,  # float32 [num_outputs], as all vectors
    p_tangents,
    p_losses,  # int64 [num_tasks, TABLE_FIELDS]
    p_out,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    await_previous()
    task = _task(p_losses)
    kind, count = task[0], task[1].to(tl.float64)
    for i_start in range(0, task[1], ROWS):
        tile = _tile(task, i_start, ROWS, CLASSES)
        b_tangent, b_q = _changes(p_tangents, tile), tl.exp(log_softmax(_logits(p_outputs, tile)))
        b_product = b_q * (b_tangent - tl.sum(b_q * b_tangent, axis=1)[:, None])
        b_product = tl.where(kind == SQUARED, b_tangent, b_product)
        tl.store(p_out + tile[2], (2.0 / count * b_product).to(tl.float32), mask=tile[5])


@triton.jit
def _values_kernel(
    p_outputs,  # float32 [num_outputs]
    p_changes,  # float32 [num_outputs]
    p_losses,  # int64 [num_tasks, TABLE_FIELDS]
    p_out,  # float32 [num_tasks]
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    await_previous()
    task = _task(p_losses)
    b_values = tl.zeros((ROWS,), tl.float64)
    for i_start in range(0, task[1], ROWS):
        tile = _tile(task, i_start, ROWS, CLASSES)
        b_w, b_change = _logits(p_outputs, tile), _changes(p_changes, tile)
        b_value, _, _ = _divergence(b_w, b_change, tile, task)
        b_values += b_value
    mean = tl.sum(b_values, axis=0) / task[1].to(tl.float64)
    tl.store(p_out + tl.program_id(0), mean.to(tl.float32))


def objective_into(
    outputs: Tensor, labels: Tensor, adversarial: Tensor | None, targets: Tensor | None,
    smart_values: Tensor | None, class_weights: Sequence[Tensor], label_means: Sequence[Tensor],
    label_scales: Sequence[Tensor], losses: Sequence[int], numbers: Sequence[float],
    smart_weight: float, bregman_weight: float, smart_factor: float, terms: Tensor,
    grad_outputs: Tensor, grad_adversarial: Tensor | None,
) -> None:  # fmt: skip
    """The terms of each task and the gradients of their summed totals."""
    op, device = "objective", outputs.device
    found = _read(op, losses)
    num_tasks, size = len(found.fields), found.num_outputs
    check_vector(op, "outputs", outputs, size, device)
    check_vector(op, "labels", labels, found.num_examples, device)
    vectors = {"adversarial": adversarial, "targets": targets}
    for name, x in vectors.items():
        check_vector(op, name, x, size, device)
    check_vector(op, "smart_values", smart_values, num_tasks, device)
    lists = {
        "class_weights": class_weights, "label_means": label_means, "label_scales": label_scales
    }  # fmt: skip
    check_lists(op, found, device, **lists)
    common = smart_weight, bregman_weight, smart_factor
    check_numbers(op, found, numbers, common)
    if (adversarial is None) != (grad_adversarial is None) or (
        adversarial is None and smart_values is not None
    ):
        raise ValueError(
            f"{op}: adversarial and grad_adversarial come together, smart_values with them"
        )
    check_written_rows(op, "terms", terms, torch.float32, (num_tasks, 4), device)
    check_vector(op, "grad_outputs", grad_outputs, size, device, is_written=True)
    check_vector(op, "grad_adversarial", grad_adversarial, size, device, is_written=True)
    written = {"terms": terms, "grad_outputs": grad_outputs, "grad_adversarial": grad_adversarial}
    read = {"outputs": outputs, "labels": labels, **vectors, "smart_values": smart_values, **lists}
    check_write_set(op, written, read)
    weights = [x.contiguous() for x in class_weights]
    places = (*addresses(weights), *addresses(label_means), *addresses(label_scales))
    inputs = [x if x is None else x.contiguous() for x in (outputs, labels, *vectors.values())]
    reported = None if smart_values is None else smart_values.contiguous()
    tables = (
        loss_table(found, device), kept_table((*numbers, *common), torch.float64, device),
        kept_table(places, torch.int64, device),
    )  # fmt: skip
    results = *strided(terms), grad_outputs, grad_adversarial
    launch(_objective_kernel, (num_tasks,), *inputs, reported, *tables, *results, **_blocks(found))
    count_change(written)


def smoothness_cotangents_into(
    outputs: Tensor, tangents: Tensor, losses: Sequence[int], out: Tensor
) -> None:
    """The gradient of each task's smoothness to first order, float32 [num_outputs]."""
    op, changes = "smoothness_cotangents", {"tangents": tangents}
    found = _read(op, losses)
    _smoothness(op, _cotangents_kernel, found, outputs, changes, out, found.num_outputs)


def smoothness_values_into(
    outputs: Tensor, changes: Tensor, losses: Sequence[int], out: Tensor
) -> None:
    """Mean l_s of each task, float32 [num_tasks]."""
    op, found = "smoothness_values", _read("smoothness_values", losses)
    _smoothness(op, _values_kernel, found, outputs, {"changes": changes}, out, len(found.fields))


def _smoothness(
    op: str, kernel, losses: Losses, outputs: Tensor, changes: dict, out: Tensor, size: int
) -> None:
    read, device = {"outputs": outputs, **changes}, outputs.device
    for name, x in read.items():
        check_vector(op, name, x, losses.num_outputs, device)
    check_vector(op, "out", out, size, device, is_written=True)
    check_write_set(op, {"out": out}, read)
    inputs, table = [x.contiguous() for x in read.values()], loss_table(losses, device)
    launch(kernel, (len(losses.fields),), *inputs, table, out, **_blocks(losses))
    count_change({"out": out})


def _read(op: str, losses: Sequence[int]) -> Losses:
    found = read_losses(op, losses)
    if found.num_classes > MAX_CLASSES:
        raise ValueError(f"{op}: {found.num_classes} classes are above {MAX_CLASSES}")
    return found


def aot_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """See the package's docstring."""
    losses, numbers = [0, 2, 5, 1, 2, 1, 2, 2, 1], [1.0, 0.1] * 3
    x, labels, terms = (torch.empty(n, device="meta") for n in ((14,), (6,), (3, 4)))
    none, doubles = (torch.empty(0, dtype=d, device="meta") for d in (torch.float32, torch.float64))
    lists = [none] * 3, [doubles] * 3, [doubles] * 3
    for name, others, grad in (
        ("loss", (None, None, None), None),
        ("all", (x, x, terms[:, 0]), x),
        ("smart", (x, None, None), x),
        ("bregman", (None, x, None), None),
    ):
        arguments = x, labels, *others, *lists, losses, numbers, 1.0, 1.0, 1.0, terms, x, grad
        yield f"objective {name}", partial(objective_into, *arguments)
    yield "cotangents", partial(smoothness_cotangents_into, x, x, losses, x)
    yield "values", partial(smoothness_values_into, x, x, losses, terms[:, 0].contiguous())
