"""The child process: `python -m headgate.benchmarking.worker`, with its task as JSON on standard input.

What decides cores and instruction sets must be set before a library is imported, so this module imports none.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from headgate.errors import HeadgateError


def main() -> int:
    """Work, and write events as lines of JSON to the task's file descriptor. Returns the exit code."""
    task = json.load(sys.stdin)
    os.sched_setaffinity(0, task["cores"])
    with os.fdopen(task["events"], "w", buffering=1, encoding="utf-8") as events:

        def send(kind: str, value: Any) -> None:
            events.write(json.dumps({kind: value}) + "\n")

        from headgate.benchmarking.request import Request
        from headgate.benchmarking.work import Bench

        request = Request.from_dict(task["request"])
        bench = Bench(
            request,
            task["threads"],
            Path(task["folder"]),
            report=lambda label, done, of: send("progress", [label, done, of]),
            attempt=lambda label: send("attempt", label),
            absent=task["absent"],
        )
        try:
            send("findings", bench.findings().to_dict())
        except HeadgateError as error:
            send("error", [type(error).__name__, str(error)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
