"""SMART in Lightning, by a callback.

Trainer(callbacks=[SmartCallback(SmartConfig(weight=1.0))]).fit(module, rows)
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sbrrt_fast.config import SmartConfig
from sbrrt_fast.smart.divergence import Divergence
from sbrrt_fast.smart.presets import weighted
from sbrrt_fast.smart.regularizer import SmartOutput, SmartRegularizer


def _callback_class() -> type:
    """Lightning's ``Callback``, of the package that is in use where both are there."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    names.sort(key=lambda name: name not in sys.modules)
    for name in names:
        try:
            return importlib.import_module(name).Callback
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
    raise ModuleNotFoundError(
        "sbrrt_fast.smart.lightning: Lightning is not installed; run `pip install lightning`"
    )


@dataclass
class SeenCall:
    """One call of a model: its arguments by name, and what it returned."""

    batch: dict[str, Any]
    result: Any


class SmartCallback(_callback_class()):
    """Adds ``smart.weight`` R_s to the loss of ``training_step``; validation is as it was.

    While ``fit`` runs, the module's ``training_step`` is wrapped, which follows what Lightning does
    with its loss: precision, accumulation and processes. It logs ``smart``, R_s of the batch, and
    in the steps that Lightning logs ``smart_gain``, the adversarial gain.

    Args:
        smart: the mechanism's settings; its weight must be above 0.
        divergence: see ``SmartRegularizer.for_transformers``.
        model: name of the module's attribute that has the model of transformers, which
            ``training_step`` calls once.
        options: of ``SmartRegularizer.for_transformers``, as ``tokenizer``.

    Raises:
        ValueError: the weight is 0.
    """

    def __init__(
        self,
        smart: SmartConfig | None = None,
        divergence: Divergence | None = None,
        *,
        model: str = "model",
        **options: Any,
    ):
        super().__init__()
        self.config = weighted(smart, "SmartCallback")
        self._divergence, self._name, self._options = divergence, model, options

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Wraps ``training_step``.

        Raises:
            ValueError: the module optimises by itself, or has no such model.
        """
        model = getattr(pl_module, self._name, None)
        if not isinstance(model, nn.Module):
            raise ValueError(
                f"SmartCallback: {type(pl_module).__name__}.{self._name} is no model; name the "
                "attribute that has it: SmartCallback(model='encoder')"
            )
        if not pl_module.automatic_optimization:
            raise ValueError(
                "SmartCallback: the module optimises by itself; add R_s in its training_step with "
                "SmartRegularizer.for_transformers"
            )
        make, settings = SmartRegularizer.for_transformers, (self.config, self._divergence)
        self._regularizer = make(model, *settings, **self._options)
        pl_module.training_step = self._with_smart(trainer, pl_module, pl_module.training_step)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Gives the module its ``training_step`` back."""
        vars(pl_module).pop("training_step", None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """As ``teardown``, which Lightning leaves out where ``fit`` is broken off."""
        self.teardown(trainer, pl_module, "fit")

    def _with_smart(self, trainer: Any, module: Any, step: Callable) -> Callable:
        @functools.wraps(step)
        def with_smart(*args: Any, **kwargs: Any) -> Any:
            with self._regularizer.clean_pass() as seen, _calls(self._regularizer.model) as calls:
                result = step(*args, **kwargs)
            if result is None:  # the step is skipped
                return None
            smart = self._regularizer.around(seen, *_only(calls))
            self._log(trainer, module, smart)
            return _added(result, self.config.weight * smart.loss)

        return with_smart

    def _log(self, trainer: Any, module: Any, smart: SmartOutput) -> None:
        module.log("smart", smart.loss.detach())
        every = trainer.log_every_n_steps
        if every and (trainer.global_step + 1) % every == 0:
            module.log("smart_gain", smart.gain())


def _added(result: Any, smart: Tensor) -> Any:
    """What a ``training_step`` returned, with this added to its loss."""
    if isinstance(result, Tensor):
        return result + smart
    return {**result, "loss": result["loss"] + smart}


@contextmanager
def _calls(model: nn.Module) -> Iterator[list[SeenCall]]:
    """The model's calls inside."""
    calls: list[SeenCall] = []

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        batch = inspect.signature(module.forward).bind(*args).arguments | kwargs
        calls.append(SeenCall(batch, output))

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


def _only(calls: list[SeenCall]) -> tuple[Any, dict[str, Any]]:
    """The result and the arguments of the one call."""
    if len(calls) != 1:
        raise ValueError(
            f"SmartCallback: training_step calls the model {len(calls)} times; R_s is around one "
            "call: add it in training_step with SmartRegularizer.for_transformers"
        )
    return calls[0].result, calls[0].batch
