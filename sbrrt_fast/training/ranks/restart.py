"""torchrun starts all ranks again after one of them died: the run goes on by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from sbrrt_fast.config import RunConfig
from sbrrt_fast.training.logging import FINAL
from sbrrt_fast.training.ranks.launch import Launch
from sbrrt_fast.training.ranks.ranks import Ranks
from sbrrt_fast.training.ranks.stores import launch_name
from sbrrt_fast.training.run_folder import has_state, is_finished, launch_of

_RESUME, _ANEW, _FINISHED = "resume", "anew", "finished"


def this_launch() -> str | None:
    """The name of the torchrun that started this process, the same when it starts it again."""
    launch = Launch.read()
    return launch_name(launch) if launch is not None and launch.agent_has_store else None


def restarted(config: RunConfig, ranks: Ranks) -> tuple[RunConfig, dict[str, Any] | None]:
    """How the run goes on where torchrun (``--max-restarts``) has started it again.

    That is from its last state, or from the start where none was saved. A folder that another
    torchrun trained in is left to ``resume`` and ``overwrite`` as ever.

    Returns:
        the settings to go on with, and the contents of ``metrics.json`` where the run had ended.
    """
    launch = Launch.read()
    if launch is None or launch.restarts == 0:
        return config, None
    with ranks.together("looking for the run"):
        way = _way(config) if ranks.is_first else None
    way = ranks.gather(way)[0]
    if way == _FINISHED:
        text = (config.output / FINAL).read_text(encoding="utf-8") if ranks.is_first else "null"
        return config, ranks.gather(json.loads(text))[0]
    if way is None:
        return config, None
    return replace(config, resume=way == _RESUME, overwrite=way == _ANEW), None


def _way(config: RunConfig) -> str | None:
    name = launch_of(config.output)
    if name is None or name != this_launch():
        return None
    if is_finished(config.output):
        return _FINISHED
    return _RESUME if has_state(config.output) else _ANEW
