"""What Ray Tune asks for: which trial is next, how one runs on a node, who hears of it. Imports the package."""

from __future__ import annotations

import os
import platform
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ray import tune
from ray.tune import experiment, search

from headgate.studies.cluster import Cluster
from headgate.studies.job import Agenda, Job, Watcher
from headgate.studies.process import GRACE, POLL, Worker, last_words
from headgate.studies.store import Store
from headgate.studies.trial import Trial

__all__ = ["Runner", "tune_trials"]

REPORT: Final = 1.0  # seconds between two reports of a trial
ERROR_WIDTH: Final = 120  # characters of what Ray says of an actor that died


class Runner(tune.Trainable):
    """An actor that runs trials on a node of the cluster, in a worker process of its own.

    A process, because only the main thread of one can be told to save its state, and because one that dies is seen.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """What Tune calls when the actor starts, with its first trial."""
        if not config["gpus"]:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # from those who asked for none Ray hides none
        self._worker = Worker(threads=config["cpus"])
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin a trial: what Tune calls with each further one. Returns whether this actor can run it."""
        self._outcome: dict[str, Any] | None = None
        scratch = Path(new_config["scratch"])
        if scratch.is_dir():
            self._worker.start(new_config["task"])
        else:
            self._outcome = {
                "failure": f"the folder of results must lie on a file system that all nodes of the cluster share: "
                f"{platform.node()} does not see {scratch.parent} as it is where the study was started"
            }
        return True

    def step(self) -> dict[str, Any]:
        """Look after the trial for a while. Returns how far it is, and what it came to once it has ended."""
        deadline = time.monotonic() + REPORT
        while self._outcome is None and time.monotonic() < deadline:
            time.sleep(POLL)
            self._outcome = self._worker.outcome()
        return {"done": self._outcome is not None, "epoch": self._worker.epoch(), "outcome": self._outcome}

    def cleanup(self) -> None:
        """The trial has ended, or is to stop: Tune then waits for ten seconds before it kills the actor."""
        self._worker.dismiss()
        self._worker.wait(time.monotonic() + GRACE)


class _Order(search.Searcher):
    """The agenda, as a search that finds the next trial.

    Attributes:
        taken: trials that have not ended, by Tune's names for them.
    """

    def __init__(self, agenda: Agenda, config: Callable[[Trial], dict[str, Any]]) -> None:
        super().__init__()
        self.taken: dict[str, Trial] = {}
        self._agenda, self._config = agenda, config

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial; None where it must wait for others."""
        trial = self._agenda.take()
        if trial is None:
            return self.FINISHED if self._agenda.done else None
        self.taken[trial_id] = trial
        return self._config(trial)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learned from a result."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the folder of results says what has been done."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing; see `save`."""


class _Follower(tune.Callback):
    """Looks at Tune's trials after each of its steps, and tells the agenda and its watcher."""

    def __init__(self, agenda: Agenda, watcher: Watcher, order: _Order, store: Store) -> None:
        self._agenda, self._watcher, self._order, self._store = agenda, watcher, order, store
        self._started: set[str] = set()

    def on_step_end(self, iteration: int, trials: Sequence[experiment.Trial], **info: Any) -> None:
        """What Tune calls here, outside of any handler of its own: an error ends the run."""
        for tuned in trials:
            trial = self._order.taken.get(tuned.trial_id)
            if trial is None or tuned.status == tuned.PENDING:
                continue
            if tuned.trial_id not in self._started:
                self._started.add(tuned.trial_id)
                self._watcher.started(trial)
            if tuned.status == tuned.RUNNING:
                self._watcher.moved(trial, (tuned.last_result or {}).get("epoch", 0.0))
            else:
                del self._order.taken[tuned.trial_id]
                self._agenda.end(trial, self._outcome(tuned, trial))

    def _outcome(self, tuned: experiment.Trial, trial: Trial) -> dict[str, Any]:
        if tuned.status == tuned.TERMINATED:
            return dict(tuned.last_result["outcome"])
        error = Path(tuned.error_file).read_text("utf-8", errors="replace").strip().splitlines()[-1]
        how = f"its actor failed: {textwrap.shorten(error, ERROR_WIDTH, placeholder='…')}"
        return {"failure": last_words(how, self._store.run(trial))}


def tune_trials(
    job: Job,
    store: Store,
    agenda: Agenda,
    watcher: Watcher,
    *,
    cluster: Cluster,
    jobs: int | None,
    scratch: Path,
) -> None:
    """Run an agenda on the cluster, which this process has joined, until it is done or Ctrl-C was pressed.

    Args:
        jobs: trials at a time at most; None: as many as there is room for.
        scratch: a folder in the store's, of this run alone: for Tune's files, and the sign that a node sees the store.
    Raises: CheckpointError: a result cannot be recorded.
    """

    def config(trial: Trial) -> dict[str, Any]:
        shares = {"cpus": cluster.cpus, "gpus": cluster.gpus}
        return {"task": job.task(trial, store), "scratch": str(scratch), **shares}

    order = _Order(agenda, config)
    tune.run(
        Runner,
        search_alg=order,
        num_samples=-1,  # as many as the search finds
        callbacks=[_Follower(agenda, watcher, order, store)],
        resources_per_trial={"cpu": cluster.cpus, "gpu": cluster.gpus},
        max_concurrent_trials=jobs,
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        storage_path=str(scratch),
        name="tune",
        trial_dirname_creator=lambda tuned: tuned.trial_id,
        raise_on_failed_trial=False,
        reuse_actors=True,  # to import torch takes seconds
        verbose=0,
    )
