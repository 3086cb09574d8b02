"""Studies on a Ray cluster of this machine, with workers that train nothing where training is not what is tested."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stub_trials import DENSE, TRIALS, WORKER, Watch, failures, make_job, order, tell

from headgate.errors import ConfigError
from headgate.studies import Store, Trial
from headgate.studies import process as process_module
from headgate.studies.cluster import Cluster, run_trials_on_ray
from headgate.studies.queue import run_trials

cloudpickle = pytest.importorskip("ray.cloudpickle", reason="ray is not installed: make test-ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")
on_ray = pytest.importorskip("headgate.studies.on_ray")

pytestmark = pytest.mark.slow
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # an actor cannot import a test


class StubRunner(on_ray.Runner):
    """Its workers train nothing."""

    def setup(self, config: dict[str, Any]) -> None:
        process_module.WORKER = WORKER  # in the actor's process
        super().setup(config)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with a GPU that is none."""
    options = {"num_cpus": 2, "num_gpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=options)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With stubs for workers."""
    monkeypatch.setattr(on_ray, "Runner", StubRunner)
    return Store(tmp_path, "digits")


def test_order_failures_and_resumption(store: Store, address: str, capfd: pytest.CaptureFixture[str]) -> None:
    tell(store, "kill1 fail2 orphan3")
    twin = replace(TRIALS[0], variant="a again", measure="usage")
    job = make_job([*TRIALS, twin])
    watch = Watch()
    run_trials_on_ray(job, store, cluster=Cluster(address=address), watcher=watch)
    assert order(store)[0]["who"] == "dense"
    assert sorted(line["who"] for line in order(store)[1:]) == ["0", "0", "1", "2", "3"]
    assert watch.events[:2] == [("started", "dense"), ("ended", "dense")]
    assert {kind for kind, name in watch.events if name == "d"} == {"started", "failed"}
    found = failures(store)
    assert re.fullmatch(r"its actor failed: .+\nfirst words\nlast words", found.pop("d") or "")
    assert found == {
        "a": None,
        "b": "its process ended with signal SIGKILL\nfirst words\nlast words",
        "c": "DivergedError: the loss is nan",
        "a again": None,
    }
    assert {path.name for path in store.folder.iterdir()} == {"studies.json", "runs", "grouping-smoke"}

    capfd.readouterr()
    tell(store, "")
    again = run_trials_on_ray(job, store, cluster=Cluster(address=address, gpus=0.5), watcher=watch)
    assert capfd.readouterr() == ("", "")
    assert sorted(result.variant for result in again) == ["b", "c", "d"]
    assert all(result.finished for result in store.results("grouping", "smoke"))
    assert {line["gpus"] for line in order(store)[:6]} == {""}
    assert {line["gpus"] for line in order(store)[6:]} == {"0"}
    assert all(line["threads"] == 1 and line["cores"] is None for line in order(store))
    assert run_trials_on_ray(job, store, cluster=Cluster(address=address), watcher=watch) == []


def test_interrupted_it_saves_states_and_leaves_no_process(store: Store, address: str) -> None:
    tell(store, "hang1")

    class Impatient(Watch):
        def moved(self, trial: Trial, epoch: float) -> None:
            if trial.variant == "b" and epoch:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        run_trials_on_ray(make_job(), store, cluster=Cluster(address=address), jobs=1, watcher=Impatient())
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ProcessLookupError):
        os.kill(order(store)[-1]["pid"], 0)
    assert (store.run(TRIALS[1]) / "state").read_text() == "saved"
    assert [result.variant for result in store.results("grouping", "smoke")] == ["a"]


def test_a_trial_ends_in_the_same_numbers_as_in_the_queue(tmp_path: Path) -> None:
    job = make_job([DENSE])
    one_core_each = len(os.sched_getaffinity(0))
    (here,) = run_trials(job, Store(tmp_path / "here", "digits"), jobs=one_core_each, watcher=Watch())
    there = Store(tmp_path / "there", "digits")
    (result,) = run_trials_on_ray(job, there, cluster=Cluster(address="local"), watcher=Watch())
    assert result.failure is None
    assert {**result.figures, "seconds": 0} == {**here.figures, "seconds": 0}
    assert there.results("grouping", "smoke") == [result]


def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    task = make_job().task(TRIALS[0], Store(tmp_path, "digits"))
    runner = on_ray.Runner({"cpus": 1, "gpus": 1, "scratch": str(tmp_path / "ray-elsewhere"), "task": task})
    ended = runner.step()
    runner.cleanup()
    assert ended["done"]
    assert "must lie on a file system that all nodes of the cluster share" in ended["outcome"]["failure"]
    assert str(tmp_path) in ended["outcome"]["failure"]


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ({"address": "127.0.0.1:1"}, "address must be of a Ray .* got '127.0.0.1:1': .*refused"),
        ({"address": "127.0.0.1:99999"}, "got '127.0.0.1:99999'"),
        ({"gpus": 1.0, "cpus": 64}, "must fit on a node .* cpus=64 and gpus=1 .* have 2 CPUs, 1 GPUs"),
    ],
)
def test_a_cluster_that_cannot_be(store: Store, address: str, cluster: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run_trials_on_ray(make_job(), store, cluster=Cluster(**{"address": address} | cluster), watcher=Watch())
