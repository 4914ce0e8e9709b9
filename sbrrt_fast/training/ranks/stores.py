"""The store in which the ranks of a run find each other."""

from __future__ import annotations

import secrets
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from sbrrt_fast.errors import RankError
from sbrrt_fast.training.ranks.launch import Launch

_TIMEOUT = timedelta(seconds=20)  # for an answer
_PATIENCE = timedelta(minutes=5)  # for the other ranks to come


def open_store(launch: Launch, is_client: bool = False) -> Store:
    """A connection to the store of torchrun's agent; without one, the first rank keeps it.

    Args:
        is_client: for short questions, to a store that is there already.

    Raises:
        RankError: it cannot be reached.
    """
    keeps_it = launch.rank == 0 and not launch.agent_has_store and not is_client
    try:
        return TCPStore(
            launch.host,
            launch.port,
            is_master=keeps_it,
            wait_for_workers=False,
            timeout=_TIMEOUT if is_client else _PATIENCE,
        )
    except RuntimeError as error:
        text = str(error).partition("\n")[0]
        raise RankError(
            f"the store of the ranks at {launch.host}:{launch.port} cannot be reached ({text}); "
            "check --rdzv-endpoint or MASTER_ADDR and MASTER_PORT, and the network between nodes"
        ) from None


def with_prefix(store: Store, launch: Launch) -> Store:
    """Keys of this start alone: the agent's store outlives the ranks that it starts again."""
    return PrefixStore(f"sbrrt_fast/{launch.restarts}", store)


def launch_name(launch: Launch) -> str:
    """A name that all starts of one torchrun share, and no other torchrun has."""
    key, new = "sbrrt_fast/launch", f"{launch.run_id}-{secrets.token_hex(8)}"
    return open_store(launch).compare_set(key, "", new).decode()
