"""A results folder: whose it is, what is finished, what is written."""

from __future__ import annotations

import csv
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from headgate.errors import CheckpointError, ConfigError
from headgate.studies import Result, Store, Trial, get_protocol, rows
from headgate.studies.study import gated

SMOKE = get_protocol("smoke")
TRIALS = [gated(SMOKE, "a", {"T": target}, seed) for seed in (0, 1) for target in (0.0, 1.0)]


def result(trial: Trial, accuracy: float = 0.5, failure: str | None = None) -> Result:
    figures = dict.fromkeys(
        ("mac_reduction", "network_mac_reduction", "density", "additions", "multiplications"), 2.0
    ) | {"accuracy": accuracy}
    return Result(
        study="grouping", protocol="smoke", trial=trial.name, variant=trial.variant, point=dict(trial.point),
        seed=trial.recipe.seed, identity=trial.identity, run=trial.run, failure=failure,
        figures={} if failure else figures, measured=None, circumstances={},
    )  # fmt: skip


def test_results_stand_in_the_studys_order_and_replace_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "folder", "digits")
    for trial in reversed(TRIALS):
        store.record(result(trial, 0.1), TRIALS)
    store.record(result(TRIALS[0], 0.3), TRIALS)
    assert [each.trial for each in store.results("grouping", "smoke")] == [trial.name for trial in TRIALS]
    assert store.results("grouping", "smoke")[0].figures["accuracy"] == 0.3
    assert store.studies() == [("grouping", "smoke")]

    (first, second) = rows(store.results("grouping", "smoke"))
    assert (first.point, first.mean("accuracy")) == ({"T": 0.0}, pytest.approx(0.2))
    assert first.spread("accuracy") == pytest.approx(0.1414, abs=1e-3)
    assert len(second.results) == 2
    table = list(csv.DictReader((store.study("grouping", "smoke") / "results.csv").read_text().splitlines()))
    assert [(row["variant"], row["T"], row["seeds"], row["accuracy"]) for row in table] == [
        ("a", "0.0", "2", "0.2"),
        ("a", "1.0", "2", "0.1"),
    ]


def test_what_failed_or_changed_is_missing(tmp_path: Path) -> None:
    store = Store(tmp_path, "digits")
    store.record(result(TRIALS[0]), TRIALS)
    store.record(result(TRIALS[1], failure="ended by signal SIGKILL"), TRIALS)
    changed = replace(TRIALS[0], recipe=replace(TRIALS[0].recipe, batch_size=32))
    assert store.missing("grouping", "smoke", TRIALS[:2]) == [TRIALS[1]]
    assert store.missing("grouping", "smoke", [changed]) == [changed]
    assert [row.point for row in rows(store.results("grouping", "smoke"))] == [{"T": 0.0}]


def test_one_folder_has_one_dataset_and_one_queue(tmp_path: Path) -> None:
    store = Store(tmp_path, "digits")
    with pytest.raises(ConfigError, match=r"data_name must be 'digits', of which .* has results, got 'CIFAR-10'"):
        Store(tmp_path, "CIFAR-10")
    other = Store(tmp_path, "digits")
    with store.locked(), pytest.raises(ConfigError, match="another queue works in"), other.locked():
        pass
    with store.locked():
        pass


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"format": "headgate.studies", "version": 2, "data": "digits"}, "studies of version 1, got .* version 2"),
        ({"format": "other", "version": 1, "data": "digits"}, "got 'other'"),
        ({"format": "headgate.studies"}, "is damaged"),
        ([], "is damaged"),
    ],
)
def test_a_folder_of_another_version(tmp_path: Path, index: object, words: str) -> None:
    (tmp_path / "studies.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=words):
        Store(tmp_path, "digits")


def test_a_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no studies"):
        Store.open(tmp_path)


def test_a_damaged_line_is_named_and_not_overwritten(tmp_path: Path) -> None:
    store = Store(tmp_path, "digits")
    store.record(result(TRIALS[0]), TRIALS)
    path = store.study("grouping", "smoke") / "results.jsonl"
    path.write_text(path.read_text() + '{"study": ')
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"results\.jsonl cannot be read"):
        store.record(result(TRIALS[1]), TRIALS)
    assert path.read_bytes() == before


def test_on_a_full_disk_what_is_finished_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path, "digits")
    store.record(result(TRIALS[0]), TRIALS)
    folder = store.study("grouping", "smoke")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        store.record(result(TRIALS[1]), TRIALS)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
