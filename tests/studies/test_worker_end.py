"""Workers end with the queue that started them, however that ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from headgate.studies.worker import OUTCOME

QUEUE = """
import os, subprocess, sys, time
command = [sys.executable, "-m", "headgate.studies.worker", str(os.getpid())]
print(subprocess.Popen(command, stdin=sys.stdin, start_new_session=True).pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [False, True])
def test_a_worker_does_not_outlive_a_killed_queue(loaded: bool, tmp_path: Path) -> None:
    read, write = os.pipe()  # its other end stays open here: it must not be the end of its input that ends the worker
    with subprocess.Popen([sys.executable, "-c", QUEUE], stdin=read, stdout=subprocess.PIPE, text=True) as queue:
        assert queue.stdout is not None
        worker = int(queue.stdout.readline())
        if loaded:
            task = {"recipe": {}, "folder": str(tmp_path), "threads": 1, "cores": None}
            os.write(write, (json.dumps(task) + "\n").encode())
            _wait(lambda: (tmp_path / OUTCOME).exists())
            assert not _ended(worker)
        queue.kill()
    _wait(lambda: _ended(worker))
    os.close(read)
    os.close(write)


def _ended(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
