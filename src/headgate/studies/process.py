"""A process of `headgate.studies.worker`, as the process that starts it sees it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from headgate.studies.worker import LOG, OUTCOME
from headgate.train.log import read_metrics

__all__ = ["GRACE", "POLL", "Worker", "last_words"]

WORKER: Final = (sys.executable, "-m", "headgate.studies.worker")
POLL: Final = 0.1  # seconds
GRACE: Final = 60.0  # seconds for a trial to save its state after it was told to stop
LOG_LINES: Final = 12  # of a failed trial's log, kept with its result


class Worker:
    """A process that is started when it gets its first task, and again after it died.

    Args:
        threads: that it may use.
        cores: that it is bound to; None: any.
    """

    def __init__(self, *, threads: int, cores: Sequence[int] | None = None) -> None:
        self._means = {"threads": threads, "cores": cores}
        self._folder = Path()
        self._busy = False
        self._process: subprocess.Popen[str] | None = None

    def start(self, task: Mapping[str, Any]) -> None:
        """Give it a task; see `job.Job.task`."""
        self._busy, self._folder = True, Path(task["folder"])
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / OUTCOME).unlink(missing_ok=True)
        if self._process is None or self._process.poll() is not None:
            self._close()
            self._process = subprocess.Popen(
                (*WORKER, str(os.getpid())),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # a Ctrl-C is for the queue, which tells its workers
            )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**task, **self._means}) + "\n")
        self._process.stdin.flush()

    def epoch(self) -> float:
        """How many epochs its trial has trained."""
        lines = read_metrics(self._folder)
        return float(lines[-1]["epoch"]) if lines else 0.0

    def outcome(self) -> dict[str, Any] | None:
        """What its trial came to; None while it runs."""
        assert self._process is not None
        code = self._process.poll()  # before the file: one that died right after writing it did finish
        if (self._folder / OUTCOME).exists():
            values: dict[str, Any] = json.loads((self._folder / OUTCOME).read_text("utf-8"))
        elif code is not None:
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            values = {"failure": last_words(f"its process ended with {how}", self._folder)}
        else:
            return None
        self._busy = False
        return values

    def _close(self) -> None:
        """No more tasks."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it died before it read the last one
                self._process.stdin.close()

    def dismiss(self) -> None:
        """Tell it to end: when it is idle, at once; when it works, after it has saved its state."""
        self._close()
        if self._busy and self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, deadline: float) -> None:
        """Until it has ended; at the deadline, of `time.monotonic`, it is killed."""
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def last_words(how: str, folder: Path) -> str:
    """How a trial ended that left no outcome, and the end of its log."""
    log = folder / LOG
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    return "\n".join([how, *lines[-LOG_LINES:]])
