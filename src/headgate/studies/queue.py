"""Run trials on this machine, several at a time, each in a process with cores of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from headgate.errors import ConfigError
from headgate.studies.store import Store
from headgate.studies.trial import Result, Trial, resolved
from headgate.studies.worker import LOG, OUTCOME
from headgate.train.log import read_metrics
from headgate.train.loop import MODEL

__all__ = ["Job", "Watcher", "finish", "run_trials"]

WORKER: Final = (sys.executable, "-m", "headgate.studies.worker")
POLL: Final = 0.1  # seconds
GRACE: Final = 60.0  # seconds for a trial to save its state after it was told to stop
LOG_LINES: Final = 12  # of a failed trial's log, kept with its result


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked for, and where it goes.

    Attributes:
        study, protocol: names.
        trials: of the study, in its order.
        dense: the trial of the protocol's dense network, whose weights others may start from.
        source: where the data lie.
        images: of the test split, for measurements; None: all.
    """

    study: str
    protocol: str
    trials: Sequence[Trial]
    dense: Trial
    source: str
    images: int | None = None

    def checkpoint(self, store: Store) -> Path:
        """The dense network's weights."""
        return store.run(self.dense) / MODEL

    def task(self, trial: Trial, store: Store, cores: Sequence[int]) -> dict[str, Any]:
        """A worker's task."""
        architecture, dense = trial.recipe.architecture, self.dense.recipe.architecture
        recipe = resolved(trial.recipe, dense=self.checkpoint(store).resolve(), source=self.source)
        return {
            "recipe": recipe.to_dict(),
            "folder": str(store.run(trial)),
            "shipped": trial.shipped,
            "measure": trial.measure,
            "point": dict(trial.point),
            "images": self.images,
            "reference": (dense if architecture.name == dense.name else architecture).to_dict(),
            "cores": list(cores),
        }


class Watcher(Protocol):
    """Sees trials come and go."""

    def started(self, trial: Trial) -> None: ...

    def moved(self, trial: Trial, epoch: float) -> None:
        """A running trial has trained so many epochs."""
        ...

    def ended(self, trial: Trial, result: Result) -> None: ...


class _Worker:
    """A process of `headgate.studies.worker`, started when it gets its first task, and again after it died.

    Attributes:
        trial: what it is working on.
    """

    def __init__(self, cores: list[int]) -> None:
        self.cores = cores
        self.trial: Trial | None = None
        self._folder = Path()
        self._process: subprocess.Popen[str] | None = None

    def start(self, trial: Trial, task: Mapping[str, Any]) -> None:
        """Give it a task."""
        self.trial, self._folder = trial, Path(task["folder"])
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / OUTCOME).unlink(missing_ok=True)
        if self._process is None or self._process.poll() is not None:
            self._close()
            self._process = subprocess.Popen(
                (*WORKER, str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # a Ctrl-C is for the queue, which tells its workers
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()

    def outcome(self) -> dict[str, Any] | None:
        """What the trial came to; None while it runs."""
        assert self._process is not None
        code = self._process.poll()  # before the file: one that died right after writing it did finish
        if (self._folder / OUTCOME).exists():
            values: dict[str, Any] = json.loads((self._folder / OUTCOME).read_text("utf-8"))
        elif code is not None:
            values = {"failure": self._last_words(code)}
        else:
            return None
        self.trial = None
        return values

    def _last_words(self, code: int) -> str:
        log = self._folder / LOG
        lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return "\n".join([f"its process ended with {how}", *lines[-LOG_LINES:]])

    def _close(self) -> None:
        """No more tasks."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died before it read the last one
                self._process.stdin.close()

    def dismiss(self) -> None:
        """Tell it to end: when it is idle, at once; when it works, after it has saved its state."""
        self._close()
        if self.trial is not None and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float) -> None:
        """Until it has ended; at the deadline it is killed."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run_trials(job: Job, store: Store, *, jobs: int, watcher: Watcher) -> list[Result]:
    """Run what is missing of a job; each result is recorded as soon as it is there.

    A trial that fails is recorded as failed, with the end of its log, and the rest go on. Interrupted, the trials that
    run save their states; the same call goes on from there.

    Args:
        jobs: trials at a time; each gets an equal share of the cores.
    Returns: the results of the trials that were run, failed ones too.
    Raises: ConfigError: jobs is below 1 or above the number of cores. KeyboardInterrupt.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise ConfigError(f"jobs must be between 1 and the {len(cores)} cores of this machine, got {jobs}")
    each = len(cores) // jobs
    workers = [_Worker(cores[index * each : (index + 1) * each]) for index in range(jobs)]
    waiting = store.missing(job.study, job.protocol, job.trials)
    if any(trial.needs_dense for trial in waiting) and job.dense not in waiting and not job.checkpoint(store).exists():
        waiting.insert(0, job.dense)
    results: list[Result] = []

    def end(trial: Trial, outcome: Mapping[str, Any]) -> None:
        result = finish(job, store, trial, outcome)
        results.append(result)
        watcher.ended(trial, result)

    try:
        while waiting or any(worker.trial for worker in workers):
            for worker in workers:
                trial = worker.trial
                if trial is not None and (outcome := worker.outcome()) is not None:
                    end(trial, outcome)
            idle = [worker for worker in workers if worker.trial is None]
            for worker, trial in zip(idle, _ready(job, store, waiting, workers), strict=False):
                waiting.remove(trial)
                if trial.needs_dense and not job.checkpoint(store).exists():
                    end(trial, {"failure": "the dense network that it starts from failed"})
                    continue
                worker.start(trial, job.task(trial, store, worker.cores))
                watcher.started(trial)
            for worker in workers:
                if worker.trial is not None:
                    watcher.moved(worker.trial, _epoch(store.run(worker.trial)))
            time.sleep(POLL)
    finally:
        for worker in workers:
            worker.dismiss()
        deadline = time.monotonic() + GRACE
        for worker in workers:
            worker.wait(deadline)
    return results


def _ready(job: Job, store: Store, waiting: Sequence[Trial], workers: Sequence[_Worker]) -> list[Trial]:
    """Those whose dense network is there, or will never be, and whose run is nobody else's at the moment."""
    busy = {worker.trial.run for worker in workers if worker.trial is not None}
    dense_to_come = (job.dense.run in busy or job.dense in waiting) and not job.checkpoint(store).exists()
    ready = []
    for trial in waiting:
        if trial.run not in busy and not (trial.needs_dense and dense_to_come):
            busy.add(trial.run)
            ready.append(trial)
    return ready


def _epoch(folder: Path) -> float:
    lines = read_metrics(folder)
    return float(lines[-1]["epoch"]) if lines else 0.0


def finish(job: Job, store: Store, trial: Trial, outcome: Mapping[str, Any]) -> Result:
    """The result of a trial that ended, recorded if the study lists it (it need not list its dense network).

    Args:   outcome: what a worker wrote, or `failure` alone.
    Raises: CheckpointError: it cannot be recorded.
    """
    nothing: dict[str, Any] = {"failure": None, "figures": {}, "measured": None, "circumstances": {}}
    result = Result(
        study=job.study,
        protocol=job.protocol,
        trial=trial.name,
        variant=trial.variant,
        point=dict(trial.point),
        seed=trial.recipe.seed,
        identity=trial.identity,
        run=trial.run,
        **{**nothing, **outcome},
    )
    if trial in job.trials:
        store.record(result, job.trials)
    return result
