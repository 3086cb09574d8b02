"""Stop between two steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[list[bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that a run stops between two steps; the second one is raised."""
    flag = [False]
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield flag
        return

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(_signal: int, _frame: FrameType | None) -> None:
        flag[0] = True
        restore()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        restore()
