"""What torchrun tells each process it starts: who it is, and where the others are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sbrrt_fast.errors import BackendError, ConfigError
from sbrrt_fast.messages import shown

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT")
_TELLING = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # any of these means that there are ranks


@dataclass(frozen=True)
class Launch:
    """A process as torchrun started it.

    Attributes:
        rank, size: its number among all processes, and how many there are.
        local_rank, local_size: the same on this machine.
        host, port: of the store in which processes find each other.
        agent_has_store: whether torchrun itself keeps that store; else the first rank does.
        restarts: how often torchrun has started all processes again.
        run_id: the name of the launch, ``none`` where nobody gave one.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str
    port: int
    agent_has_store: bool = False
    restarts: int = 0
    run_id: str = "none"

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Launch | None:
        """From the environment; None for a process that is alone.

        Raises:
            ConfigError: some of torchrun's variables are set and others are not, or one cannot be.
        """
        if not any(name in variables for name in _TELLING):
            return None
        numbers = [_number(variables, name) for name in _NUMBERS]
        rank, size, local_rank, local_size, port = numbers
        if not (rank < size and local_rank < local_size <= size):
            raise ConfigError(
                f"RANK {rank} of WORLD_SIZE {size}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE "
                f"{local_size}: no such rank; {_ADVICE}"
            )
        return cls(
            *(rank, size, local_rank, local_size),
            host=_value(variables, "MASTER_ADDR"),
            port=port,
            agent_has_store=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            restarts=_number(variables, "TORCHELASTIC_RESTART_COUNT", "0"),
            run_id=variables.get("TORCHELASTIC_RUN_ID", "none"),
        )


_ADVICE = "start with torchrun, or unset them to train with one process"


def _value(variables: Mapping[str, str], name: str, default: str | None = None) -> str:
    value = variables.get(name, default)
    if not value:
        known = ", ".join(n for n in _TELLING if n in variables)
        raise ConfigError(f"{name} is not set in the environment, but {known} is; {_ADVICE}")
    return value


def _number(variables: Mapping[str, str], name: str, default: str | None = None) -> int:
    value = _value(variables, name, default)
    if not (value.isascii() and value.isdigit()):
        raise ConfigError(f"{name}: expected a whole number, got {shown(repr(value))}; {_ADVICE}")
    return int(value)


def take_gpu(launch: Launch) -> None:
    """Makes the GPU of this rank the one that ``cuda`` means in this process.

    Raises:
        BackendError: the machine has fewer GPUs than ranks.
    """
    if (count := torch.cuda.device_count()) < launch.local_size:
        raise BackendError(
            f"{launch.local_size} processes on this machine need as many GPUs, torch sees {count}; "
            f"start torchrun with --nproc-per-node {max(count, 1)}, or train with --device cpu"
        )
    torch.cuda.set_device(launch.local_rank)


def share_cores(launch: Launch, variables: Mapping[str, str] = os.environ) -> int:
    """Gives torch this rank's part of the machine's cores, and returns how many threads that is.

    torchrun sets OMP_NUM_THREADS to 1 where its user has not, so a 1 there says nothing; more is
    the user's own choice and stays.
    """
    given = variables.get("OMP_NUM_THREADS", "1")
    if given != "1":
        return torch.get_num_threads()
    count = max(1, num_cores() // launch.local_size)
    torch.set_num_threads(count)
    return count


def num_cores() -> int:
    """Cores that this process may use; two hardware threads of one core count once."""
    usable = os.sched_getaffinity(0)
    return len({_siblings(cpu) for cpu in usable})


def _siblings(cpu: int) -> str:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:  # some containers hide it
        return str(cpu)
