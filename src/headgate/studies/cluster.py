"""Run trials on a Ray cluster (extra `ray`)."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Final

from headgate.errors import BackendError, ConfigError
from headgate.studies.job import Agenda, Job, Watcher
from headgate.studies.store import Store
from headgate.studies.trial import Result

__all__ = ["Cluster", "run_trials_on_ray"]

LOCAL: Final = "local"
AUTO: Final = "auto"
ANSWER: Final = 5.0  # seconds that an address has to answer
OBJECT_STORE: Final = 100 << 20  # bytes of shared memory for a Ray of our own; nothing large goes through it
QUIET: Final = MappingProxyType(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",  # of Tune, which has a heading that cannot be turned off
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    }
)
"""Environment of this process while it is part of a cluster. Ray has no other place to say these things."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which cluster, and what each trial gets of it.

    Attributes:
        address: "local" starts a Ray on this machine, for as long as it is needed. "auto" joins the cluster that this
            machine is part of, "host:port" the one whose head is there; this machine must be part of that one too.
        cpus: for each trial, and threads that it uses.
        gpus: for each trial; a fraction lets trials share one.
    Raises: ConfigError: a value outside its range.
    """

    address: str
    cpus: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        host, _, port = self.address.rpartition(":")
        if self.address not in (LOCAL, AUTO) and not (host and "/" not in host and port.isdecimal()):
            raise ConfigError(f"address must be {LOCAL!r}, {AUTO!r} or host:port of a Ray, got {self.address!r}")
        if self.cpus < 1:
            raise ConfigError(f"cpus must be ≥ 1, got {self.cpus}")
        if not 0 <= self.gpus <= 1:
            raise ConfigError(f"gpus must be between 0 and 1, for a trial is one process, got {self.gpus}")


def run_trials_on_ray(
    job: Job, store: Store, *, cluster: Cluster, jobs: int | None = None, watcher: Watcher
) -> list[Result]:
    """Run what is missing of a job on a cluster; each result is recorded as soon as it is there.

    As `queue.run_trials` does, with the same worker processes: Ray decides where each of them runs. The store's folder
    must lie on a file system that all nodes share; a trial on a node that does not see it fails and says so.

    Args:
        jobs: trials at a time at most; None: as many as the cluster has room for.
    Returns: the results of the trials that were run, failed ones too.
    Raises:
        BackendError: the package is missing.
        ConfigError: jobs is below 1; there is no such cluster, or no trial fits on any of its nodes.
        CheckpointError: a result cannot be recorded.
        KeyboardInterrupt: after the trials that ran have saved their states.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be ≥ 1, got {jobs}")
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise BackendError(
            "studies on a cluster need the package ray, got no such package; pip install 'headgate[ray]'"
        ) from error
    from headgate.studies.on_ray import tune_trials

    agenda = Agenda(job, store, watcher)
    if agenda.done:
        return []
    scratch = TemporaryDirectory(prefix="ray-", dir=store.folder.absolute(), ignore_cleanup_errors=True)
    with scratch as folder, _environment(QUIET), _own_handlers(), _joined(cluster.address):
        _require_room(cluster)
        tune_trials(job, store, agenda, watcher, cluster=cluster, jobs=jobs, scratch=Path(folder))
    if not agenda.done:
        raise KeyboardInterrupt("interrupted; the same command goes on from here")
    return agenda.results


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """Be part of a cluster.

    Raises: ConfigError: there is none, or this process is part of one.
    """
    import ray

    if ray.is_initialized():
        raise ConfigError("this process must not be part of a Ray cluster already; call ray.shutdown() first")
    try:
        _join(address)
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address == LOCAL:
        cores = len(os.sched_getaffinity(0))
        options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    try:
        if address not in (LOCAL, AUTO):
            _knock(address)
        ray.init(address=address, **options)
    except Exception as error:  # Ray has no class for this
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"address must be of a Ray to join or start, got {address!r}: {reason}") from error


def _knock(address: str) -> None:
    """See whether anything answers there; Ray itself would try for minutes.

    Raises: OSError, OverflowError: no.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER).close()


def _require_room(cluster: Cluster) -> None:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cluster.cpus and node.get("GPU", 0) >= cluster.gpus for node in nodes):
        there = " and ".join(f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes)
        raise ConfigError(
            f"a trial must fit on a node of the cluster: cpus={cluster.cpus} and gpus={cluster.gpus:g} were asked for, "
            f"its nodes have {there}"
        )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _own_handlers() -> Iterator[None]:
    """Signal handlers are afterwards as they were: Ray and Tune leave theirs behind."""
    if threading.current_thread() is not threading.main_thread():  # nobody sets any
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
