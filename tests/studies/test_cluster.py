"""What is said of a cluster before there is one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from stub_trials import Watch, make_job

from headgate.cli import main
from headgate.errors import BackendError, ConfigError
from headgate.studies import Cluster, Store
from headgate.studies.cluster import run_trials_on_ray


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"address": "ray://head:10001"},
            "address must be 'local', 'auto' or host:port of a Ray, got 'ray://head:10001'",
        ),
        ({"address": "head"}, "host:port of a Ray, got 'head'"),
        ({"address": ":6379"}, "host:port of a Ray, got ':6379'"),
        ({"address": "auto", "cpus": 0}, "cpus must be ≥ 1, got 0"),
        ({"address": "auto", "gpus": 2.0}, "gpus must be between 0 and 1, .* got 2.0"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Cluster(**options)


def test_jobs_are_at_least_one_and_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cluster = Store(tmp_path, "digits"), Cluster(address="local")
    with pytest.raises(ConfigError, match="jobs must be ≥ 1, got 0"):
        run_trials_on_ray(make_job(), store, cluster=cluster, jobs=0, watcher=Watch())
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendError, match=r"pip install 'headgate\[ray\]'"):
        run_trials_on_ray(make_job(), store, cluster=cluster, watcher=Watch())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gates", "--gpus", "0.5"], "cpus and gpus need --ray, got cpus=1 and gpus=0.5 without it"),
        (["gates", "--cpus", "2"], "cpus and gpus need --ray, got cpus=2 and gpus=0 without it"),
        (["list", "--ray", "local"], "ray is for running a study, got 'list'"),
        (["gates", "--ray", "somewhere"], "address must be"),
    ],
)
def test_commands_that_are_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 1
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
