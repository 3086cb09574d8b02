import pytest
from accelerate import PartialState

from headgate.errors import ConfigError
from headgate.train.processes import join_processes

LAUNCHER = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29501"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_an_incomplete_launch_is_told(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAUNCHER.items():
        if name != missing:
            monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"2 processes were launched \(WORLD_SIZE\) without .* {missing}, by which"):
        join_processes()


@pytest.mark.parametrize("given", ["two", "0", "-1", "1.5", ""])
def test_a_world_size_that_is_no_number_is_told(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", given)
    with pytest.raises(ConfigError, match=f"WORLD_SIZE='{given}'; expected the number of processes"):
        join_processes()


def test_processes_that_do_not_find_each_other_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    PartialState(cpu=True)  # of an earlier use of accelerate in this process, which stood alone: it is kept
    for name, value in LAUNCHER.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"2 processes were launched \(WORLD_SIZE\), but 1 found each other"):
        join_processes()


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert join_processes().num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "1")  # as some clusters set it for every job
    assert join_processes().num_processes == 1
