"""Run trials on this machine, several at a time, each in a process with cores of its own."""

from __future__ import annotations

import os
import time

from headgate.errors import ConfigError
from headgate.studies.job import Agenda, Job, Watcher
from headgate.studies.process import GRACE, POLL, Worker
from headgate.studies.store import Store
from headgate.studies.trial import Result, Trial

__all__ = ["run_trials"]


def run_trials(job: Job, store: Store, *, jobs: int, watcher: Watcher) -> list[Result]:
    """Run what is missing of a job; each result is recorded as soon as it is there.

    A trial that fails is recorded as failed, with the end of its log, and the rest go on. Interrupted, the trials that
    run save their states; the same call goes on from there.

    Args:
        jobs: trials at a time; each gets an equal share of the cores.
    Returns: the results of the trials that were run, failed ones too.
    Raises:
        ConfigError: jobs is below 1 or above the number of cores.
        CheckpointError: a result cannot be recorded.
        KeyboardInterrupt.
    """
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= jobs <= len(cores):
        raise ConfigError(f"jobs must be between 1 and the {len(cores)} cores of this machine, got {jobs}")
    each = len(cores) // jobs
    workers = [Worker(threads=each, cores=cores[index * each : (index + 1) * each]) for index in range(jobs)]
    agenda = Agenda(job, store, watcher)
    trials: dict[Worker, Trial] = {}  # what each works on
    try:
        while not agenda.done:
            for worker, trial in list(trials.items()):
                if (outcome := worker.outcome()) is not None:
                    del trials[worker]
                    agenda.end(trial, outcome)
            for worker in workers:
                if worker not in trials and (new := agenda.take()) is not None:
                    worker.start(job.task(new, store))
                    trials[worker] = new
                    watcher.started(new)
            for worker, trial in trials.items():
                watcher.moved(trial, worker.epoch())
            time.sleep(POLL)
    finally:
        for worker in workers:
            worker.dismiss()
        deadline = time.monotonic() + GRACE
        for worker in workers:
            worker.wait(deadline)
    return agenda.results
