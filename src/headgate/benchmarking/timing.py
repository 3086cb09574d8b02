"""Time several things in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping

__all__ = ["interleaved", "repeated"]


def interleaved(
    calls: Mapping[str, Callable[[int], object]],
    repeats: int,
    *,
    after: Mapping[str, Callable[[], object]] | None = None,
    report: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each call, `repeats` times: all of them once, then all again, from a place that moves on.

    Whatever else the machine does meets all of them alike. Each timed call follows an untimed one of the same thing,
    so that its caches are its own, as in use, and that other libraries' threads have stopped waiting for work.

    Args:
        calls: by name; each takes the number of the repeat, and does the same work for the same number.
        after: by name; called after each timed call, outside the clock.
        report: called with the number of repeats that are done.
    """
    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for repeat in range(repeats):
            first = repeat % len(names)
            for name in names[first:] + names[:first]:
                call = calls[name]
                call(repeat)
                start = clock()
                call(repeat)
                seconds[name].append(clock() - start)
                if after is not None and name in after:
                    after[name]()
            report(repeat + 1)
    finally:
        if enabled:
            gc.enable()
    return seconds


def repeated(call: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of one call, `repeats` times, after one that is not timed."""
    return interleaved({"": lambda _: call()}, repeats)[""]
