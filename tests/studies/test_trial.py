"""Trials: what makes two of them the same run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headgate.checkpoint import list_pretrained
from headgate.errors import ConfigError, DataError
from headgate.studies import STUDIES, Result, get_protocol, get_study
from headgate.studies.protocol import DENSE
from headgate.studies.study import dense_trial, gated
from headgate.studies.trial import resolved

SMOKE = get_protocol("smoke")


@pytest.mark.parametrize("protocol", ["smoke", "short", "paper"])
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_trials_of_its_own_names(name: str, protocol: str) -> None:
    trials = get_study(name).trials(get_protocol(protocol), 2)
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names)
    assert {trial.recipe.seed for trial in trials} == (
        {0, 1} if any(trial.shipped is None for trial in trials) else {0}
    )


def test_trials_that_train_alike_share_a_run() -> None:
    one = gated(SMOKE, "a", {"T": 1.0}, 0)
    same = gated(SMOKE, "b", {"T": 1.0, "tau": 0.1}, 0, measure="traffic")
    elsewhere = replace(one, recipe=replace(one.recipe, name="x", data=replace(one.recipe.data, source="/other")))
    assert one.run == same.run == elsewhere.run
    others = [
        gated(SMOKE, "a", {"T": 1.5}, 0),
        gated(SMOKE, "a", {"T": 1.0}, 1),
        gated(SMOKE, "a", {"T": 1.0}, 0, groups=4),
        dense_trial(SMOKE),
    ]
    assert len({one.run, *(other.run for other in others)}) == 5


def test_the_dense_checkpoint_is_named_when_a_trial_runs() -> None:
    trial = gated(SMOKE, "a", {"T": 1.0}, 0)
    assert trial.needs_dense
    assert trial.recipe.init_from == DENSE
    recipe = resolved(trial.recipe, dense=Path("/w/dense.safetensors"), source="digits")
    assert recipe.init_from == "/w/dense.safetensors"
    assert recipe.distill is not None
    assert recipe.distill.teacher == "/w/dense.safetensors"
    assert recipe.data.source == "digits"
    assert not gated(get_protocol("paper"), "a", {"T": 1.0}, 0).needs_dense


def test_a_shipped_network_is_looked_at_and_not_trained() -> None:
    trials = [trial for trial in get_study("usage").trials(get_protocol("short"), 2) if trial.shipped]
    assert [trial.run for trial in trials] == ["resnet20-cifar10-activation", "resnet20-cifar10-group"]
    assert [trial.identity for trial in trials] == [{"shipped": trial.run} for trial in trials]
    assert not any(trial.needs_dense for trial in trials)
    assert {trial.shipped for trial in trials} < set(list_pretrained())


def test_a_result_survives_json() -> None:
    trial = gated(SMOKE, "ε = 2", {"T": 1.0}, 0)
    result = Result(
        study="epsilon", protocol="smoke", trial=trial.name, variant=trial.variant, point=trial.point, seed=0,
        identity=trial.identity, run=trial.run, failure=None, figures={"accuracy": 0.5}, measured=None,
        circumstances={"date": "2026-11-21"},
    )  # fmt: skip
    assert "\n" not in result.to_json()
    assert Result.from_json(result.to_json()) == result
    with pytest.raises(DataError, match="expected a result of a study"):
        Result.from_json('{"study": "epsilon"}')


def test_unknown_names_are_listed() -> None:
    with pytest.raises(ConfigError, match=r"study must be one of epsilon, .*got 'epsilom'"):
        get_study("epsilom")
    with pytest.raises(ConfigError, match=r"protocol must be one of smoke, short, paper, got 'long'"):
        get_protocol("long")
