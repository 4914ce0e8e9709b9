"""Which implementation each op of a run takes, asked before anything runs, and the lines on it.

The ops themselves say why they cannot take the model's shape; no limit is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from sbrrt_fast._extension import emulates_bf16
from sbrrt_fast.config import RunConfig, SmartConfig
from sbrrt_fast.data.store import TokenizedTask
from sbrrt_fast.errors import BackendError
from sbrrt_fast.model.dropout import noise_width
from sbrrt_fast.model.multitask import MultiTaskModel
from sbrrt_fast.model.op_calls import PASS_OPS, OpCall, encoder_calls
from sbrrt_fast.ops.attention import MAX_LENGTH
from sbrrt_fast.smart.presets import ascent_options, resolve
from sbrrt_fast.training.step.written_out_model import DTYPES

_OF_DEVICE = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # whose reasons are worth a line
_UPDATE = "adamw_ema_"


def longest_sequence(tasks: Iterable[TokenizedTask]) -> int:
    """Tokens of the longest sequence of these splits."""
    return max((int(task.lengths.max()) for task in tasks if task.num_sequences), default=0)


def step_calls(model: MultiTaskModel, config: RunConfig, max_length: int) -> list[OpCall]:
    """The calls of ops in a training step; ``max_length`` is the longest sequence's tokens."""
    dtype, smart = DTYPES[config.precision], resolve(config.smart)
    calls = encoder_calls(model.encoder, dtype, max_length, config.layout == "packed")
    if smart.weight > 0:
        calls += _smart_calls(model, smart)
    if smart.weight > 0 or config.bregman.weight > 0:
        calls += _divergence_calls(model, smart.weight > 0)
    params = [p for p in model.parameters() if p.requires_grad]
    return [*calls, OpCall.named("gradient_norm", params), OpCall.named(_UPDATE, params, params)]


def _smart_calls(model: MultiTaskModel, smart: SmartConfig) -> list[OpCall]:
    width = model.config.embedding_size
    word = next(model.parameters())
    delta, indices = word.new_empty(0, width), word.new_empty(0, dtype=torch.int64)
    rng, mask = indices.new_zeros(2), indices.new_empty(0, dtype=torch.bool)
    return [
        OpCall.named("smart_noise", indices, noise_width(width), rng, 0),
        OpCall.named("smart_ascend", delta, delta, mask, indices, 0, **ascent_options(smart)),
    ]


def _divergence_calls(model: MultiTaskModel, perturbs: bool) -> list[OpCall]:
    """The calls for the task with the most classes; none where all tasks have values."""
    tasks = [task for task in model.tasks.values() if task.train and not task.is_regression]
    if not tasks:
        return []
    most = max(task.num_classes if task.head == "classes" else 2 for task in tasks)
    logits = next(model.parameters()).new_empty(0, most)
    names = ["symmetric_kl", "symmetric_kl_fisher"] if perturbs else ["symmetric_kl"]
    return [OpCall.named(name, logits, logits) for name in names]


def written_out_why_not(calls: Sequence[OpCall], backend: str, device: torch.device) -> str | None:
    """Why the written-out step cannot run a step of these calls, or None.

    Its passes take the writing ops of one backend, and its update a fused one.
    """
    taken = {call.explain(backend).backend for call in calls if call.op.name in PASS_OPS}
    fused = device.type if device.type in taken else "triton"
    lacking = [call for call in calls if not _is_fused(call, backend, fused)]
    if not lacking:
        return None
    where = device.type if backend == "auto" else backend
    reason = f"{', '.join(call.op.name for call in lacking)} cannot run on {where} here"
    shorter = [call.shorter for call in lacking]
    if all(call and _is_fused(call, backend, fused) for call in shorter):
        reason += f"; --model.max-length {MAX_LENGTH} would cut longer texts and be faster"
    return reason


def _is_fused(call: OpCall, backend: str, fused: str) -> bool:
    taken = call.explain(backend).backend
    if call.op.name in PASS_OPS:
        return taken == fused
    return call.op.name != _UPDATE or taken != "reference"


def check_calls(calls: Sequence[OpCall], backend: str) -> None:
    """A named backend takes every call.

    Raises:
        BackendError: with each op that it cannot run, and why.
    """
    choices = [(call, call.explain(backend)) for call in calls]
    refused = [(call, choice) for call, choice in choices if choice.backend is None]
    if not refused:
        return
    reasons = "; ".join(f"{choice.op}: {choice.reasons[backend]}" for _, choice in refused)
    advice = "use --backend auto or reference"
    if all(call.shorter and call.shorter.explain(backend).backend for call, _ in refused):
        advice += f", or --model.max-length {MAX_LENGTH}"
    raise BackendError(f"backend '{backend}' cannot run this model ({reasons}); {advice}")


def choice_lines(
    calls: Sequence[OpCall], backend: str, device: torch.device, known: str | None = None
) -> list[str]:
    """The implementation each op takes, and why no better one; no line where all have the best.

    Args:
        known: a reason that has been logged already.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for call in calls:
        reasons = call.explain(backend).reasons.items()
        worth = [f"{b}: {r}" for b, r in reasons if b in _OF_DEVICE[device.type] and r != known]
        groups.setdefault((_taken(call, backend), "; ".join(worth)), []).append(call.op.name)
    if not any(reasons for _, reasons in groups):
        return []
    return [
        f"{', '.join(ops)}: {taken}" + (f" ({reasons})" if reasons else "")
        for (taken, reasons), ops in groups.items()
    ]


def _taken(call: OpCall, backend: str) -> str:
    taken = call.explain(backend).backend
    shorter = call.shorter and call.shorter.explain(backend).backend
    if shorter in (None, taken):
        return taken
    return f"{shorter}, but {taken} for a batch with a text of more than {MAX_LENGTH} tokens"


def log_evaluation_choice(
    model: MultiTaskModel,
    tasks: Iterable[TokenizedTask],
    log: Callable[[str], object],
    *,
    backend: str = "auto",
    precision: str = "fp32",
    packed: bool = True,
) -> None:
    """Logs which ops take less than their first choice where these splits are predicted.

    Raises:
        BackendError: a named backend cannot run one of them, with the reasons.
    """
    device = next(model.parameters()).device
    dtype = torch.float32 if emulates_bf16(device) else DTYPES[precision]
    calls = encoder_calls(model.encoder, dtype, longest_sequence(tasks), packed)
    check_calls(calls, backend)
    for line in choice_lines(calls, backend, device):
        log(line)
