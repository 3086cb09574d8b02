"""Which trial may run when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from stub_trials import DENSE, TRIALS, Watch, make_job
from stub_worker import FIGURES

from headgate.studies import Store, Trial
from headgate.studies.job import Agenda

FINISHED = {"figures": FIGURES}
ALONE = [replace(trial, recipe=replace(trial.recipe, init_from=None, distill=None)) for trial in TRIALS]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, "digits")


def taken(agenda: Agenda) -> list[Trial]:
    """All that may run now."""
    return list(iter(agenda.take, None))


def test_what_needs_the_dense_network_waits_for_it_and_the_rest_does_not(store: Store) -> None:
    job = make_job([TRIALS[0], ALONE[1]])
    agenda = Agenda(job, store, Watch())
    assert taken(agenda) == [DENSE, ALONE[1]]
    agenda.end(ALONE[1], FINISHED)
    assert taken(agenda) == []
    agenda.end(DENSE, FINISHED)
    assert taken(agenda) == [TRIALS[0]]
    assert not agenda.done
    agenda.end(TRIALS[0], FINISHED)
    assert agenda.done
    assert [result.variant for result in agenda.results] == ["b", "dense", "a"]


def test_a_dense_network_that_is_there_or_that_nobody_needs_is_not_trained(store: Store) -> None:
    assert taken(Agenda(make_job(ALONE), store, Watch())) == ALONE
    checkpoint = make_job().checkpoint(store)
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert taken(Agenda(make_job(), store, Watch())) == TRIALS


def test_trials_that_share_a_run_have_it_one_after_another(store: Store) -> None:
    twin = replace(ALONE[0], variant="a again", measure="usage")
    assert twin.run == ALONE[0].run
    agenda = Agenda(make_job([ALONE[0], twin, ALONE[1]]), store, Watch())
    assert taken(agenda) == [ALONE[0], ALONE[1]]
    agenda.end(ALONE[1], FINISHED)
    assert taken(agenda) == []
    agenda.end(ALONE[0], {"failure": "it failed"})
    assert taken(agenda) == [twin]


def test_where_the_dense_network_failed_the_rest_end_without_a_start(store: Store) -> None:
    watch = Watch()
    agenda = Agenda(make_job(), store, watch)
    assert taken(agenda) == [DENSE]
    agenda.end(DENSE, {"failure": "it diverged"})
    assert taken(agenda) == []
    assert agenda.done
    assert watch.events == [("failed", name) for name in ("dense", "a", "b", "c", "d")]
    assert {result.failure for result in store.results("grouping", "smoke")} == {
        "the dense network that it starts from failed"
    }
