"""The queue, with workers that train nothing: order, failures, interruption, resumption."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from headgate.errors import ConfigError
from headgate.studies import Result, Store, Trial, get_protocol
from headgate.studies import queue as queue_module
from headgate.studies.queue import Job, run_trials
from headgate.studies.study import gated

SMOKE = get_protocol("smoke")
DENSE = Trial(variant="dense", point={}, recipe=SMOKE.dense)
TRIALS = [gated(SMOKE, name, {"T": 1.0}, seed) for seed, name in enumerate("abcd")]
FIGURES = {"accuracy": 0.9, "mac_reduction": 2.0, "network_mac_reduction": 2.0, "density": 0.5, "additions": 0}
FIGURES |= {"multiplications": 0}

WORKER = f"""
import json, os, signal, sys, time
from pathlib import Path
for line in sys.stdin:
    task = json.loads(line)
    folder, seed = Path(task["folder"]), task["recipe"]["seed"]
    with (folder.parent / "order").open("a") as order:
        print(task["recipe"]["gate"] is None, seed, os.getpid(), *task["cores"], file=order)
    (folder / "log.txt").write_text("first words\\nlast words\\n")
    with (folder / "metrics.jsonl").open("w") as metrics:
        metrics.write(json.dumps({{"kind": "train", "step": 1, "epoch": 0.5}}) + "\\n")
    fate = os.environ.get("FATE", "").split(",")
    if f"kill{{seed}}" in fate and task["recipe"]["gate"]:
        os.kill(os.getpid(), signal.SIGKILL)
    if f"hang{{seed}}" in fate and task["recipe"]["gate"]:
        time.sleep(60)
    if f"fail{{seed}}" in fate and task["recipe"]["gate"] or "faildense" in fate and not task["recipe"]["gate"]:
        outcome = {{"failure": "DivergedError: the loss is nan"}}
    else:
        (folder / "model.safetensors").touch()
        outcome = {{"figures": {FIGURES!r}, "measured": None, "circumstances": {{"date": "today"}}}}
    (folder / "part").write_text(json.dumps(outcome))
    (folder / "part").rename(folder / "outcome.json")
"""


class Watch:
    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def started(self, trial: Trial) -> None:
        self.events.append(("started", trial.variant))

    def moved(self, trial: Trial, epoch: float) -> None:
        if epoch and ("moved", trial.variant) not in self.events:
            self.events.append(("moved", trial.variant))

    def ended(self, trial: Trial, result: Result) -> None:
        self.events.append(("ended" if result.finished else "failed", trial.variant))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With stubs for workers."""
    monkeypatch.setattr(queue_module, "WORKER", (sys.executable, "-c", WORKER))
    monkeypatch.setattr(queue_module, "POLL", 0.01)
    monkeypatch.delenv("FATE", raising=False)
    return Store(tmp_path, "digits")


def job(trials: list[Trial] = TRIALS) -> Job:
    return Job(study="grouping", protocol="smoke", trials=trials, dense=DENSE, source="digits")


def order(store: Store) -> list[list[str]]:
    return [line.split() for line in (store.folder / "runs" / "order").read_text().splitlines()]


def test_the_dense_network_comes_first_and_nothing_runs_twice(store: Store) -> None:
    watch = Watch()
    results = run_trials(job(), store, jobs=min(2, len(os.sched_getaffinity(0))), watcher=watch)
    assert order(store)[0][0] == "True"
    assert sorted(line[1] for line in order(store)[1:]) == ["0", "1", "2", "3"]
    assert watch.events[0] == ("started", "dense")
    assert sorted(name for kind, name in watch.events if kind == "ended") == ["a", "b", "c", "d", "dense"]
    assert [result.trial for result in store.results("grouping", "smoke")] == [trial.name for trial in TRIALS]
    assert all(result.finished for result in results)
    assert run_trials(job(), store, jobs=1, watcher=watch) == []
    assert len(order(store)) == 5


def test_a_worker_takes_many_trials_and_jobs_share_the_cores(store: Store) -> None:
    run_trials(job(), store, jobs=1, watcher=Watch())
    assert len({line[2] for line in order(store)}) == 1
    assert {tuple(line[3:]) for line in order(store)} == {tuple(map(str, sorted(os.sched_getaffinity(0))))}
    with pytest.raises(ConfigError, match=r"jobs must be between 1 and the \d+ cores of this machine, got 0"):
        run_trials(job(), store, jobs=0, watcher=Watch())


def test_failures_are_recorded_and_the_rest_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATE", "kill1,fail2")
    run_trials(job(), store, jobs=1, watcher=Watch())
    failures = {result.variant: result.failure for result in store.results("grouping", "smoke")}
    assert failures["a"] is None
    assert failures["b"] == "its process ended with signal SIGKILL\nfirst words\nlast words"
    assert failures["c"] == "DivergedError: the loss is nan"
    assert failures["d"] is None
    monkeypatch.delenv("FATE")
    assert [result.variant for result in run_trials(job(), store, jobs=1, watcher=Watch())] == ["b", "c"]
    assert all(result.finished for result in store.results("grouping", "smoke"))


def test_without_its_dense_network_nothing_can_start(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATE", "faildense")
    results = run_trials(job([DENSE, *TRIALS[:2]]), store, jobs=1, watcher=Watch())
    assert [result.failure for result in results] == [
        "DivergedError: the loss is nan",
        *["the dense network that it starts from failed"] * 2,
    ]


def test_an_interrupted_queue_leaves_no_process_and_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATE", "hang1")

    class Impatient(Watch):
        def moved(self, trial: Trial, epoch: float) -> None:
            if trial.variant == "b" and epoch:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(job(), store, jobs=1, watcher=Impatient())
    with pytest.raises(ProcessLookupError):
        os.kill(int(order(store)[-1][2]), 0)
    assert [result.variant for result in store.results("grouping", "smoke")] == ["a"]
    monkeypatch.delenv("FATE")
    assert [result.variant for result in run_trials(job(), store, jobs=1, watcher=Watch())] == ["b", "c", "d"]
