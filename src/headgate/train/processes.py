"""The processes of one training run: how they find each other, and what they must agree on."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from accelerate import Accelerator

from headgate.errors import CheckpointError, ConfigError

LAUNCH = "launch with torchrun, or with accelerate launch --num_processes N (on CPUs also --cpu)"


def join_processes() -> Accelerator:
    """Find the other processes that the launcher started; one process where there was no launcher.

    Raises: ConfigError: the launcher's environment variables are incomplete or not numbers, or a process that was
        launched as one of several stands alone.
    """
    launched = _launched()
    # Mixed precision is ours: accelerate's is one per process. Without `cpu` it would not join processes on one.
    accelerator = Accelerator(mixed_precision="no", cpu=not torch.accelerator.is_available())
    if launched not in (None, accelerator.num_processes):
        found = accelerator.num_processes
        raise ConfigError(f"{launched} processes were launched (WORLD_SIZE), but {found} found each other; {LAUNCH}")
    return accelerator


def _launched() -> int | None:
    """The number of processes that torchrun or accelerate says it launched; None without one (or with MPI's own)."""
    given = os.environ.get("WORLD_SIZE")
    if given is None:
        return None
    if not (given.isdecimal() and int(given) > 0):
        raise ConfigError(f"environment variable WORLD_SIZE={given!r}; expected the number of processes; {LAUNCH}")
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in os.environ]
    if int(given) > 1 and missing:
        raise ConfigError(
            f"{given} processes were launched (WORLD_SIZE) without the environment variables {', '.join(missing)}, "
            f"by which they find each other; {LAUNCH}"
        )
    return int(given)


def exists_for_all(path: Path, accelerator: Accelerator) -> bool:
    """Whether there is a state to resume from, which all processes must agree on.

    Raises: CheckpointError: only some processes see the file; the others would start anew.
    """
    exists, world = path.exists(), accelerator.num_processes
    if world == 1:
        return exists
    seen = round(float(accelerator.reduce(torch.tensor(float(exists), device=accelerator.device), "sum")))
    if 0 < seen < world:
        raise CheckpointError(
            f"{path} exists for {seen} of {world} processes; put the run's folder on a file system that all nodes "
            "share, under the same path"
        )
    return exists
