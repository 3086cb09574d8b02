"""One process tree: a child for each number of threads, one after another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from types import FrameType
from typing import Any, Final

from headgate import errors, machine
from headgate.benchmarking.record import Findings, Record
from headgate.benchmarking.request import Request
from headgate.errors import BenchmarkError, HeadgateError

HELD: Final[Mapping[str, Mapping[str, str]]] = {
    "avx2": {
        "HEADGATE_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
    }
}
"""What holds to an instruction set: the engine, torch, oneDNN (of torch and OpenVINO), MKL, what inductor compiles."""
GRACE: Final = 10.0  # seconds for a child to end after it was asked to

Report = Callable[[str, int, int], None]


def benchmark(request: Request, *, report: Report = lambda *_: None) -> Record:
    """Time what is asked for.

    Args:
        report: called with what is being done, and how much of how much is done.
    Raises:
        BenchmarkError: a runner computes another function than the network, or a child process died.
        HeadgateError: a model, its data or the native engine is missing or does not fit.
    """
    cores = sorted(os.sched_getaffinity(0))
    choices = {"one": cores[:1], "all": cores}
    described = machine.describe()
    wanted = {len(choices[threads]): choices[threads] for threads in request.threads}
    findings = []
    for threads, allowed in sorted(wanted.items()):
        prefix = f"{threads} thread{'s' if threads > 1 else ''}: "
        findings.append(_findings(request, allowed, lambda label, *done, head=prefix: report(head + label, *done)))
    return Record(
        command=request.command(),
        request=request.to_dict(),
        date=date.today().isoformat(),
        machine=described,
        findings=tuple(findings),
    )


class _Crash(Exception):
    """What a library did to the child: its label, and how the child ended."""


def _findings(request: Request, cores: list[int], report: Report) -> Findings:
    """Of one number of threads. A library that takes the process down is absent from the next one."""
    absent: dict[str, str] = {}
    while True:
        try:
            return _child(request, cores, absent, report)
        except _Crash as crash:
            label, how = crash.args
            absent[label] = f"its process died with {how}"


def _child(request: Request, cores: list[int], absent: Mapping[str, str], report: Report) -> Findings:
    """Run one child to its end; whatever happens, none of its processes is left, nor any of its files."""
    with _terminable(), tempfile.TemporaryDirectory(prefix="headgate-bench-") as name:
        folder = Path(name)
        work = folder / "work"
        work.mkdir()
        log = folder / "log"
        reader, writer = os.pipe()
        task = {
            "request": request.to_dict(),
            "threads": len(cores),
            "cores": cores,
            "absent": absent,
            "folder": str(work),
            "events": writer,
        }
        (folder / "task").write_text(json.dumps(task))
        process: subprocess.Popen[bytes] | None = None
        tried: str | None = None
        with (folder / "task").open("rb") as given, log.open("wb") as written, os.fdopen(reader) as events:
            try:
                with os.fdopen(writer, "wb"):  # ours is closed once the child has its own
                    process = subprocess.Popen(
                        [sys.executable, "-m", "headgate.benchmarking.worker"],
                        stdin=given,
                        stdout=written,
                        stderr=subprocess.STDOUT,
                        pass_fds=(writer,),
                        env=_environment(len(cores), request.held),
                        start_new_session=True,  # so that Ctrl-C comes here only, and its own children end with it
                    )
                for line in events:
                    event = json.loads(line) if line.endswith("\n") else {}  # cut off where the child died
                    tried = event.get("attempt", tried)
                    found = _event(event, report)
                    if found is not None:
                        return found
                code = process.wait()
            finally:
                if process is not None:
                    _end(process)
        last = log.read_text(errors="replace").strip().splitlines()[-5:]
        how = f"exit code {code}: {' / '.join(last) or 'it said nothing'}"
        if tried is not None:
            raise _Crash(tried, how)
        raise BenchmarkError(f"the process that timed died with {how}")


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a block as Ctrl-C does, so that what it started and wrote does not outlive it."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _event(event: dict[str, Any], report: Report) -> Findings | None:
    if "progress" in event:
        report(*event["progress"])
        return None
    if "error" in event:
        name, message = event["error"]
        kind: type[HeadgateError] = getattr(errors, name, BenchmarkError)
        raise kind(message)
    return Findings.from_dict(event["findings"]) if "findings" in event else None


def _environment(threads: int, held: str | None) -> dict[str, str]:
    """The child's environment: what must be set before libraries are imported."""
    count = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return {**os.environ, **count, "TORCHINDUCTOR_COMPILE_THREADS": "1", **(HELD[held] if held else {})}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a child and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
