"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import headgate.files
from headgate.errors import CheckpointError
from headgate.files import atomic_write, write_atomic


@pytest.fixture(params=["unnamed", "hidden"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways, the second as on a file system that knows no files without a name."""
    if request.param == "hidden":
        monkeypatch.setattr(headgate.files, "_unnamed", lambda _target: None)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_atomic(path, "erstens: ä")
    assert path.read_text("utf-8") == "erstens: ä"
    write_atomic(str(path), b"\0\1")
    assert path.read_bytes() == b"\0\1"
    write_atomic(path, b"")
    assert path.read_bytes() == b""
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_has_no_name_until_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("first", "second"):
        with atomic_write(path) as part:
            part.write_text(content)
            assert list(tmp_path.iterdir()) == [path] * path.exists()
        assert path.read_text() == content


KILLED = """
import os, signal, sys
from headgate.files import atomic_write
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
with atomic_write(sys.argv[1]) as part:
    part.write_bytes(b"half")
    os.kill(os.getpid(), int(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_killed_process_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    path = tmp_path / "file"
    for left in ([], [path]):  # without and with an old file
        environment = os.environ | {"PYTHONPATH": str(Path(headgate.files.__file__).parents[1])}
        command = [sys.executable, "-c", KILLED, str(path), str(int(number))]
        assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode != 0
        assert list(tmp_path.iterdir()) == left
        path.write_text("old")


@pytest.mark.parametrize("way", ["hidden"], indirect=True)
def test_temporary_file_is_in_the_same_folder_and_hidden(way: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic_write(path) as part:
        assert part.parent == path.parent
        assert part.name.startswith(".file.")
        assert part.name.endswith(".part")
        part.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"


@pytest.mark.usefixtures("way")
def test_follows_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_atomic(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


@pytest.mark.usefixtures("way")
def test_rights_are_those_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_atomic(tmp_path / "ours", b"1")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine"), CheckpointError("mine")])
def test_what_the_block_raises_passes_and_nothing_is_left(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)) as caught, atomic_write(path) as part:  # noqa: PT012
        part.write_text("half")
        raise error
    assert caught.value is error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("way")
def test_failures_of_the_block_say_path_and_cause(tmp_path: Path) -> None:
    path = tmp_path / "file"
    message = f"cannot write {path}: Input/output error; what was there before is unchanged"
    with pytest.raises(CheckpointError, match=message), atomic_write(path):
        raise OSError(errno.EIO, "Input/output error")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("way")
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    real = os.write

    def fills_up(descriptor: int, data: memoryview) -> int:
        if os.fstat(descriptor).st_size >= 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[:1000])

    monkeypatch.setattr(os, "write", fills_up)
    with pytest.raises(CheckpointError, match=r"file: No space left on device; what was there before is unchanged"):
        write_atomic(path, b"x" * 5000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("way")
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    write_atomic(tmp_path / "file", bytes(range(100)))
    assert (tmp_path / "file").read_bytes() == bytes(range(100))


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX limit")
def test_a_limit_of_the_operating_system(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    script = (
        "import resource, signal, sys\n"
        "from headgate.files import write_atomic\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomic(sys.argv[1], b'x' * 5000)\n"
        "except OSError as error:\n    print(type(error).__name__, error)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(headgate.files.__file__).parents[1])}
    command = [sys.executable, "-c", script, str(path)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.startswith(f"CheckpointError cannot write {path}: File too large")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("way")
def test_no_folder_and_a_folder_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory"):
        write_atomic(tmp_path / "none" / "file", b"")
    (tmp_path / "taken").mkdir()
    with pytest.raises(CheckpointError, match="Is a directory"):
        write_atomic(tmp_path / "taken", b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]


@pytest.mark.usefixtures("way")
def test_a_file_that_a_library_made_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with atomic_write(tmp_path / "ours") as part:
        part.touch(mode=0o600)  # makes it where there is none
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)
