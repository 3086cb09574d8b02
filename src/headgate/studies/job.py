"""What is asked for, and how far it is: the same for trials on this machine and on a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from headgate.studies.store import Store
from headgate.studies.trial import Result, Trial, resolved
from headgate.train.loop import MODEL

__all__ = ["Agenda", "Job", "Watcher", "finish"]


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

    def task(self, trial: Trial, store: Store) -> dict[str, Any]:
        """What a worker is to do, wherever it is; `process.Worker` adds what it may use for it."""
        architecture, dense = trial.recipe.architecture, self.dense.recipe.architecture
        recipe = resolved(trial.recipe, dense=self.checkpoint(store).resolve(), source=self.source)
        return {
            "recipe": recipe.to_dict(),
            "folder": str(store.run(trial).absolute()),
            "shipped": trial.shipped,
            "measure": trial.measure,
            "point": dict(trial.point),
            "images": self.images,
            "reference": (dense if architecture.name == dense.name else architecture).to_dict(),
        }


class Watcher(Protocol):
    """Sees trials come and go."""

    def started(self, trial: Trial) -> None: ...

    def moved(self, trial: Trial, epoch: float) -> None:
        """A running trial has trained so many epochs."""
        ...

    def ended(self, trial: Trial, result: Result) -> None: ...


class Agenda:
    """What of a job is still to be run, in which order, and what came of the rest.

    Attributes:
        results: of the trials that ended, failed ones too.
    """

    def __init__(self, job: Job, store: Store, watcher: Watcher) -> None:
        self.results: list[Result] = []
        self._job, self._store, self._watcher = job, store, watcher
        self._running: list[Trial] = []
        self._waiting = waiting = store.missing(job.study, job.protocol, job.trials)
        self._has_dense = job.checkpoint(store).exists()
        if any(trial.needs_dense for trial in waiting) and job.dense not in waiting and not self._has_dense:
            waiting.insert(0, job.dense)

    @property
    def done(self) -> bool:
        """Whether every trial has ended."""
        return not self._waiting and not self._running

    def take(self) -> Trial | None:
        """A trial that may run now, and from now on does; None: there is none, until one that runs has ended.

        It waits for its dense network, and while another trial has its run. Where the dense network failed, it ends.

        Raises: CheckpointError: see `finish`.
        """
        busy = {trial.run for trial in self._running}
        dense_to_come = (self._job.dense.run in busy or self._job.dense in self._waiting) and not self._has_dense
        for trial in list(self._waiting):
            if trial.run in busy or (trial.needs_dense and dense_to_come):
                continue
            self._waiting.remove(trial)
            self._running.append(trial)
            if not trial.needs_dense or self._has_dense:
                return trial
            self.end(trial, {"failure": "the dense network that it starts from failed"})
        return None

    def end(self, trial: Trial, outcome: Mapping[str, Any]) -> None:
        """A trial that was taken has ended.

        Args:   outcome: see `finish`.
        Raises: CheckpointError: see `finish`.
        """
        self._running.remove(trial)
        result = finish(self._job, self._store, trial, outcome)
        self.results.append(result)
        if result.finished and trial.run == self._job.dense.run:
            self._has_dense = True  # a shared file system may show the file later
        self._watcher.ended(trial, result)


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
