"""What comes before a run: its ranks, and whether its folder can be used."""

from __future__ import annotations

from typing import Any

from sbrrt_fast.config import RunConfig
from sbrrt_fast.training.extension import check_fresh, check_has_more
from sbrrt_fast.training.ranks.process_group import connect
from sbrrt_fast.training.ranks.ranks import Ranks, first_alone
from sbrrt_fast.training.ranks.restart import restarted
from sbrrt_fast.training.run_folder import check_output


def prepare(config: RunConfig) -> tuple[Ranks, RunConfig, dict[str, Any] | None]:
    """Joins the other ranks, if there are any, and looks whether the run can start.

    Returns:
        the ranks; the run's settings; and the contents of its ``metrics.json`` where it had ended
        before torchrun started its ranks again, so that nothing is left to do.

    Raises:
        SbrrtError: the folder cannot be used, or there is nothing to resume.
    """
    ranks = connect(config.device, config.rank_timeout)
    config, metrics = restarted(config, ranks)
    if metrics is None:
        with first_alone(ranks, "looking at the folder") as is_first:
            if is_first:
                check_output(config.output, resume=config.resume, overwrite=config.overwrite)
                check_fresh(config)
                if config.resume:
                    check_has_more(config.output, config)
    return ranks, config, metrics
