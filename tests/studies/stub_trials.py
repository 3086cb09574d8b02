"""Trials for stub workers, who watches them, and what the workers wrote down."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from headgate.studies import Result, Store, Trial, get_protocol
from headgate.studies.job import Job
from headgate.studies.study import gated

SMOKE = get_protocol("smoke")
DENSE = Trial(variant="dense", point={}, recipe=SMOKE.dense)
TRIALS = [gated(SMOKE, name, {"T": 1.0}, seed) for seed, name in enumerate("abcd")]
WORKER = (sys.executable, str(Path(__file__).with_name("stub_worker.py")))


class Watch:
    """Remembers what it saw."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def started(self, trial: Trial) -> None:
        self.events.append(("started", trial.variant))

    def moved(self, trial: Trial, epoch: float) -> None:
        if epoch and ("moved", trial.variant) not in self.events:
            self.events.append(("moved", trial.variant))

    def ended(self, trial: Trial, result: Result) -> None:
        self.events.append(("ended" if result.finished else "failed", trial.variant))


def make_job(trials: list[Trial] = TRIALS) -> Job:
    """A job of these trials."""
    return Job(study="grouping", protocol="smoke", trials=trials, dense=DENSE, source="digits")


def tell(store: Store, fate: str) -> None:
    """What is to become of the trials; see `stub_worker`."""
    (store.folder / "runs").mkdir(exist_ok=True)
    (store.folder / "runs" / "fate").write_text(fate)


def order(store: Store) -> list[dict[str, Any]]:
    """What the workers said, a line for each task: who, pid, threads, cores, gpus."""
    return [json.loads(line) for line in (store.folder / "runs" / "order").read_text().splitlines()]


def failures(store: Store) -> dict[str, str | None]:
    """Of what is recorded, by variant."""
    return {result.variant: result.failure for result in store.results("grouping", "smoke")}
