"""Every study under the smoke protocol: its trials train and are measured, its figure is drawn, the page shows it."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from headgate.studies import STUDIES, Result, Store, get_study, rows
from headgate.studies.extremes import CLASSES, picture
from headgate.studies.job import Job, finish
from headgate.studies.page import write_page
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
    task = {**job.task(trial, store), "threads": 1}
    Path(task["folder"]).mkdir(parents=True, exist_ok=True)
    return finish(job, store, trial, work(task))


def _correlations(results: list[Result]) -> None:
    means = [result.measured["mean"] for result in results if result.measured and result.variant == "dense network"]
    assert 1 > means[0] > means[1] > means[2] > 0  # fewer channels in the base path say less


def _traffic(results: list[Result]) -> None:
    for variant in ("CG-fine", "group"):
        saved = [result.measured["saved"] for result in results if result.measured and result.variant == variant]
        assert len(saved) == 5
        assert saved == sorted(saved)  # a higher bound skips more
        assert saved[-1] > saved[0]


def _frontier(results: list[Result]) -> None:
    for result in results:
        assert result.measured is not None
        if "offsets" in result.measured:
            reached = [setting["mac_reduction"] for setting in result.measured["offsets"]]
            assert reached == sorted(reached)
        else:
            ratio = result.measured["dense_ms_1"] / result.measured["ms_1"]
            assert result.measured["speedup_1"] == pytest.approx(ratio)


def _usage(results: list[Result]) -> None:
    for result in results:
        assert result.measured is not None
        reductions = result.measured["reductions"]
        shown = [one["reduction"] for one in result.measured["extremes"]]
        assert (len(reductions), len(shown)) == (64, 2 * CLASSES)
        assert min(reductions) <= min(shown) < max(shown) <= max(reductions)
        assert picture(result.measured["extremes"][0]["picture"]).shape == (8, 8)


MEASURED = {"correlation": _correlations, "traffic": _traffic, "frontier": _frontier, "usage": _usage}


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
    drawn = draw_study(study, store, "smoke")
    assert [path.name for path in drawn] == [
        f"{figure}{suffix}" for figure in study.figures for suffix in (".png", ".svg")
    ]
    if name in MEASURED:
        MEASURED[name]([result for result in results if result.measured])
    assert store.missing(name, "smoke", job.trials) == []

    page = store.folder / f"{name}.html"
    write_page(store, page)
    text = html.unescape(page.read_text("utf-8"))
    assert study.source.split(":")[0] in text
    assert all(result.variant in text for result in results)
