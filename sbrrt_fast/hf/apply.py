"""``apply_sbrrt_kernels`` and ``remove_sbrrt_kernels``: the fused ops in a model, and out of it.

A taken module keeps its parameters, its name and its children; its class becomes one with the same
name, a subclass of its own (``hf.bert`` and its neighbours), which survives copying, pickling and
data parallelism.
"""

from __future__ import annotations

from torch import nn

from sbrrt_fast.errors import ConfigError
from sbrrt_fast.hf.calls import PARAMETERS, encoder_of, pack_call, parameters_of
from sbrrt_fast.hf.choices import choices_of
from sbrrt_fast.hf.layers import PACKING, Fused
from sbrrt_fast.hf.report import KernelReport, KernelRow
from sbrrt_fast.hf.taking import Candidate, candidates_of, family_of
from sbrrt_fast.hf.versions import require_transformers
from sbrrt_fast.ops._backend.dispatch import BACKENDS
from sbrrt_fast.ops.registry import require

_ATTRIBUTES = ("_sbrrt_site", "_sbrrt_backend", PACKING)


def apply_sbrrt_kernels(model: nn.Module, *, backend: str = "auto") -> KernelReport:
    """Puts the fused ops into the BERT, RoBERTa, DistilBERT and ELECTRA encoders of a model.

    The model is changed in place: attention on packed rows, LayerNorm of residuals with dropout,
    bias and GELU, and embeddings run fused, forward and backward. Parameters, their names and what
    ``save_pretrained`` writes stay. Hidden states at padding are zeros. Dropout's masks are drawn
    from torch's default generator, other ones than torch draws from the same seed. Applied again,
    it reports again. ``remove_sbrrt_kernels`` undoes it.

    Args:
        model: a model of transformers, or any module that has one inside.
        backend: ``auto``, or ``cuda``, ``triton``, ``cpu`` or ``reference`` for all ops.

    Returns:
        what was taken, what was left alone and why; print it.

    Raises:
        TypeError: ``model`` is no module.
        ConfigError: it has no encoder that the kernels know, there is no such backend, or
            transformers is too old.
        BackendError: the named backend cannot run here.
    """
    _check_backend(backend)
    candidates = _candidates(model)
    for site, candidate in enumerate(candidates):
        if not candidate.reason:
            _take(candidate, site, backend)
    for _, bare in _bare_models(model):
        if isinstance(encoder_of(bare), Fused):
            _hook(bare)
    rows = [*(c.row for c in candidates), *_others(model, candidates)]
    return KernelReport(rows, choices_of(model, backend))


def remove_sbrrt_kernels(model: nn.Module) -> None:
    """Gives the modules that ``apply_sbrrt_kernels`` took their own classes back.

    A model that has none of them stays as it is.

    Raises:
        TypeError: ``model`` is no module.
        ConfigError: a taken module has got another class since, from sharding for example.
    """
    taken = [(name, m) for name, m in _modules(model) if isinstance(m, Fused)]
    for name, module in taken:
        if Fused not in _own_bases(type(module)):
            raise ConfigError(
                f"{name} has become a {type(module).__name__} of {type(module).__module__} since "
                "its kernels were applied; remove them before whatever did that"
            )
    for _, module in taken:
        module.__class__ = type(module).__bases__[1]
        for attribute in _ATTRIBUTES:
            module.__dict__.pop(attribute, None)
    for module in model.modules():
        _unhook(module)


def _own_bases(kind: type) -> tuple[type, ...]:
    """The bases of the first base of one of this package's classes."""
    is_ours = kind.__module__.startswith("sbrrt_fast.hf.") and len(kind.__bases__) == 2
    return kind.__bases__[0].__mro__ if is_ours else ()


def _check_backend(backend: str) -> None:
    names = ("auto", *BACKENDS)
    if backend not in names:
        raise ConfigError(f"backend must be one of {', '.join(names)}, got {backend!r}")
    require(backend)


def _modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"a model of transformers is needed, got {type(model).__name__}")
    return list(model.named_modules())


def _bare_models(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """A family's ``BertModel`` and the like, by name."""
    models = []
    for name, module in _modules(model):
        family = family_of(module)
        if family is not None and isinstance(module, family.MODEL):
            models.append((name, module))
    return models


def _candidates(model: nn.Module) -> list[Candidate]:
    models = _bare_models(model)
    if not models:
        raise ConfigError(
            f"{type(model).__name__} has no encoder that the kernels know: BertModel, "
            "RobertaModel, DistilBertModel or ElectraModel of transformers"
        )
    require_transformers()
    return [candidate for name, bare in models for candidate in candidates_of(name, bare)]


def _take(candidate: Candidate, site: int, backend: str) -> None:
    module = candidate.module
    if not isinstance(module, Fused):
        module.__class__ = candidate.fused
    module._sbrrt_site, module._sbrrt_backend = site, backend


def _hook(bare: nn.Module) -> None:
    _unhook(bare)
    bare.__dict__[PARAMETERS] = parameters_of(type(bare))
    bare.register_forward_pre_hook(pack_call, with_kwargs=True)


def _unhook(module: nn.Module) -> None:
    module.__dict__.pop(PARAMETERS, None)
    for number, hook in list(module._forward_pre_hooks.items()):
        if hook is pack_call:
            del module._forward_pre_hooks[number]
            module._forward_pre_hooks_with_kwargs.pop(number, None)


def _others(model: nn.Module, candidates: list[Candidate]) -> list[KernelRow]:
    """The largest parts with parameters and without candidates: poolers and heads."""
    names = [candidate.name for candidate in candidates]
    rows: list[KernelRow] = []
    for name, module in model.named_modules():
        holds = any(_is_within(inner, name) for inner in names)
        is_inside = any(_is_within(name, outer) for outer in [*names, *(r.name for r in rows)])
        has_parameters = any(True for _ in module.parameters())
        if not holds and not is_inside and has_parameters:
            rows.append(KernelRow(name, type(module).__name__, (), "no kernel is for it"))
    return rows


def _is_within(name: str, outer: str) -> bool:
    return outer == "" or name == outer or name.startswith(f"{outer}.")
