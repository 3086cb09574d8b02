"""Every study under the smoke protocol: its trials train and are measured, its figure is drawn, the page shows it."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from headgate.studies import STUDIES, Result, Store, get_study, rows
from headgate.studies.page import write_page
from headgate.studies.queue import Job, finish
from headgate.studies.run import draw_study, make_job
from headgate.studies.trial import Trial
from headgate.studies.worker import work

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One for all studies, which share runs."""
    return Store(tmp_path_factory.mktemp("studies"), "digits")


def run_here(job: Job, store: Store) -> list[Result]:
    """What the queue does, without its processes."""
    return [_finished(job, store, trial) for trial in (job.dense, *job.trials)][1:]


def _finished(job: Job, store: Store, trial: Trial) -> Result:
    task = job.task(trial, store, cores=[0])
    Path(task["folder"]).mkdir(parents=True, exist_ok=True)
    return finish(job, store, trial, work(task))


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_and_is_drawn(name: str, store: Store) -> None:
    if name in ("comparators", "frontier"):
        pytest.importorskip("torch_pruning", reason="torch-pruning is not installed: pip install 'headgate[baselines]'")
    study = get_study(name)
    job = make_job(study, "smoke", data=None, seeds=1, images=64)
    results = run_here(job, store)
    assert all(result.finished for result in results)
    assert all(0 <= result.figures["accuracy"] <= 1 for result in results)
    assert all(
        (result.measured is None) == (trial.measure is None) for result, trial in zip(results, job.trials, strict=True)
    )
    assert sum(len(row.results) for row in rows(store.results(name, "smoke"))) == len(job.trials)
    assert [path.suffix for path in draw_study(study, store, "smoke")] == [".png", ".svg"]
    assert store.missing(name, "smoke", job.trials) == []

    page = store.folder / f"{name}.html"
    write_page(store, page)
    text = html.unescape(page.read_text("utf-8"))
    assert study.source.split(":")[0] in text
    assert all(result.variant in text for result in results)


def test_measurements_say_what_they_should(store: Store) -> None:
    def measured(name: str) -> list[Result]:
        results = [result for result in store.results(name, "smoke") if result.measured]
        assert results, f"{name} must run before this test"
        return results

    for result in measured("correlation"):
        assert result.measured is not None
        assert 0 < result.measured["mean"] < 1
    by_groups = [r.measured["mean"] for r in measured("correlation") if r.measured and r.variant == "dense network"]
    assert by_groups == sorted(by_groups, reverse=True)  # fewer channels in the base path say less
    saved = [r.measured["saved"] for r in measured("traffic") if r.measured]
    assert saved == sorted(saved)  # a higher bound skips more
    for result in measured("frontier"):
        assert result.measured is not None
        if "offsets" in result.measured:
            reached = [setting["mac_reduction"] for setting in result.measured["offsets"]]
            assert reached == sorted(reached)
        else:
            assert result.measured["speedup_1"] == pytest.approx(
                result.measured["dense_ms_1"] / result.measured["ms_1"]
            )
    for result in measured("usage"):
        assert result.measured is not None
        assert len(result.measured["reductions"]) == 64
    assert json.loads(measured("usage")[0].to_json())["measured"]["layers"]
