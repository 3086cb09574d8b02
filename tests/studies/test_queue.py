"""The queue, with workers that train nothing: order, failures, interruption, resumption."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from stub_trials import DENSE, TRIALS, WORKER, Watch, failures, make_job, order, tell

from headgate.errors import ConfigError
from headgate.studies import Store, Trial
from headgate.studies import process as process_module
from headgate.studies import queue as queue_module
from headgate.studies.queue import run_trials


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With stubs for workers."""
    monkeypatch.setattr(process_module, "WORKER", WORKER)
    monkeypatch.setattr(queue_module, "POLL", 0.01)
    return Store(tmp_path, "digits")


def test_the_dense_network_comes_first_and_nothing_runs_twice(store: Store) -> None:
    watch = Watch()
    results = run_trials(make_job(), store, jobs=min(2, len(os.sched_getaffinity(0))), watcher=watch)
    assert order(store)[0]["who"] == "dense"
    assert sorted(line["who"] for line in order(store)[1:]) == ["0", "1", "2", "3"]
    assert watch.events[0] == ("started", "dense")
    assert sorted(name for kind, name in watch.events if kind == "ended") == ["a", "b", "c", "d", "dense"]
    assert [result.trial for result in store.results("grouping", "smoke")] == [trial.name for trial in TRIALS]
    assert all(result.finished for result in results)
    assert run_trials(make_job(), store, jobs=1, watcher=watch) == []
    assert len(order(store)) == 5


def test_a_worker_takes_many_trials_and_jobs_share_the_cores(store: Store) -> None:
    run_trials(make_job(), store, jobs=1, watcher=Watch())
    cores = sorted(os.sched_getaffinity(0))
    assert len({line["pid"] for line in order(store)}) == 1
    assert all(line["cores"] == cores and line["threads"] == len(cores) for line in order(store))
    with pytest.raises(ConfigError, match=r"jobs must be between 1 and the \d+ cores of this machine, got 0"):
        run_trials(make_job(), store, jobs=0, watcher=Watch())


def test_failures_are_recorded_and_the_rest_go_on(store: Store) -> None:
    tell(store, "kill1 fail2")
    run_trials(make_job(), store, jobs=1, watcher=Watch())
    assert failures(store) == {
        "a": None,
        "b": "its process ended with signal SIGKILL\nfirst words\nlast words",
        "c": "DivergedError: the loss is nan",
        "d": None,
    }
    tell(store, "")
    assert [result.variant for result in run_trials(make_job(), store, jobs=1, watcher=Watch())] == ["b", "c"]
    assert all(result.finished for result in store.results("grouping", "smoke"))


def test_without_its_dense_network_nothing_can_start(store: Store) -> None:
    tell(store, "faildense")
    results = run_trials(make_job([DENSE, *TRIALS[:2]]), store, jobs=1, watcher=Watch())
    assert [result.failure for result in results] == [
        "DivergedError: the loss is nan",
        *["the dense network that it starts from failed"] * 2,
    ]


def test_an_interrupted_queue_leaves_no_process_and_goes_on(store: Store) -> None:
    tell(store, "hang1")

    class Impatient(Watch):
        def moved(self, trial: Trial, epoch: float) -> None:
            if trial.variant == "b" and epoch:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(make_job(), store, jobs=1, watcher=Impatient())
    with pytest.raises(ProcessLookupError):
        os.kill(order(store)[-1]["pid"], 0)
    assert (store.run(TRIALS[1]) / "state").read_text() == "saved"
    assert [result.variant for result in store.results("grouping", "smoke")] == ["a"]
    tell(store, "")
    assert [result.variant for result in run_trials(make_job(), store, jobs=1, watcher=Watch())] == ["b", "c", "d"]
