"""A process that runs trials: `python -m headgate.studies.worker QUEUE`, a task in JSON on each line of its input.

A trial that dies of a signal, of memory or of a bug must not take the queue with it, and each worker has cores of its
own.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from headgate.errors import HeadgateError
from headgate.files import write_atomic

LOG: Final = "log.txt"
OUTCOME: Final = "outcome.json"


_PR_SET_PDEATHSIG: Final = 1  # of prctl(2)


def main() -> int:
    """Work until there are no more tasks. Returns the exit code: 0, or 130 when interrupted.

    A queue that is killed takes its workers along, which save their states: the next one finds the runs free. QUEUE is
    its process, which may be gone already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        return 130
    for line in sys.stdin:
        task = json.loads(line)
        os.sched_setaffinity(0, task["cores"])
        folder = Path(task["folder"])
        with (folder / LOG).open("a") as log:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(log.fileno(), stream.fileno())
        try:
            outcome = work(task)
        except HeadgateError as error:
            outcome = {"failure": f"{type(error).__name__}: {error}"}
        except KeyboardInterrupt:
            return 130
        write_atomic(folder / OUTCOME, json.dumps(outcome, ensure_ascii=False) + "\n")
    return 0


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Train the task's recipe in its folder, unless that is done, and measure.

    Args:
        task: recipe; folder of the run; measure (a name or None), its point, and how many images it is taken on;
            reference, the architecture of the dense network that MACs are compared with; cores that it may use.
    Returns: figures, measured and circumstances of a `Result`.
    """
    from datetime import date

    import torch

    from headgate import machine
    from headgate.checkpoint import load
    from headgate.counting import Counts, count
    from headgate.models import Architecture
    from headgate.studies.measure import Subject, get_measure
    from headgate.train import Recipe, train
    from headgate.train.loop import COUNTS, MODEL, SUMMARY
    from headgate.train.prepare import evaluation_batches

    torch.set_num_threads(len(task["cores"]))  # more threads than cores wait for each other most of the time
    recipe, folder = Recipe.from_dict(task["recipe"]), Path(task["folder"])
    if not (folder / SUMMARY).exists():
        train(recipe, folder, console=False)
    summary = json.loads((folder / SUMMARY).read_text("utf-8"))
    counts = Counts.load(folder / COUNTS)
    dense = Architecture.from_dict(task["reference"]).build().eval()
    dense_macs = count(dense, torch.zeros(1, *summary["input_shape"])).network_dense_macs
    names = ("accuracy", "top5", "loss", "mac_reduction", "density", "epochs", "seconds")
    figures = {name: summary[name] for name in names} | {
        "network_mac_reduction": dense_macs / counts.network_executed_macs,
        "network_macs": counts.network_executed_macs,
        "dense_macs": counts.dense_macs,
        "additions": sum(layer.additions for layer in counts.layers),
        "multiplications": sum(layer.multiplications for layer in counts.layers),
    }
    measured = None
    if task["measure"] is not None:
        model = load(folder / MODEL)
        subject = Subject(
            model=model,
            batches=lambda: evaluation_batches(model, recipe.data, limit=task["images"]),
            point=task["point"],
            reference=dense,
        )
        measured = get_measure(task["measure"])(subject)
    circumstances = {
        "date": date.fromtimestamp((folder / SUMMARY).stat().st_mtime).isoformat(),
        "cpu": machine.cpu_model(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    return {"figures": figures, "measured": measured, "circumstances": circumstances}


if __name__ == "__main__":
    sys.exit(main())
