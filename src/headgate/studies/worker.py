"""A process that runs trials: `python -m headgate.studies.worker QUEUE`, a task in JSON on each line of its input.

A trial that dies of a signal, of memory or of a bug must not take the queue with it, and each worker may have cores of
its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headgate.errors import HeadgateError
from headgate.files import write_atomic

if TYPE_CHECKING:
    from torch import nn

    from headgate.counting import Counts
    from headgate.train.data import Batch

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
        if task["cores"] is not None:
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
        task: recipe; folder of the run; shipped, the name of a model that is looked at instead, or None; measure (a
            name or None), its point, and how many images it is taken on; reference, the architecture of the dense
            network that MACs are compared with; threads that it may use.
    Returns: figures, measured and circumstances of a `Result`.
    """
    from datetime import date

    import torch

    from headgate import machine
    from headgate.checkpoint import load, pretrained
    from headgate.counting import count
    from headgate.models import Architecture
    from headgate.studies.measure import Subject, get_measure
    from headgate.train import Recipe, train
    from headgate.train.loop import MODEL, SUMMARY
    from headgate.train.prepare import evaluation_batches

    torch.set_num_threads(task["threads"])  # more threads than cores wait for each other most of the time
    recipe, folder = Recipe.from_dict(task["recipe"]), Path(task["folder"])
    if task["shipped"] is not None:
        model, day = pretrained(task["shipped"]), date.today()
        figures, counts = _evaluated(model, evaluation_batches(model, recipe.data))
    else:
        if not (folder / SUMMARY).exists():
            train(recipe, folder, console=False)
        model, day = load(folder / MODEL), date.fromtimestamp((folder / SUMMARY).stat().st_mtime)
        figures, counts = _recorded(folder)
    dense = Architecture.from_dict(task["reference"]).build().eval()
    image = next(evaluation_batches(model, recipe.data, limit=1))[0]
    figures |= {
        "network_mac_reduction": _all_macs(count(dense, image)) / _all_macs(counts),
        "network_macs": counts.network_executed_macs,
        "dense_macs": counts.dense_macs,
        "additions": sum(layer.additions for layer in counts.layers),
        "multiplications": sum(layer.multiplications for layer in counts.layers),
    }
    measured = None
    if task["measure"] is not None:
        subject = Subject(
            model=model,
            batches=lambda: evaluation_batches(model, recipe.data, limit=task["images"]),
            point=task["point"],
            reference=dense,
        )
        measured = get_measure(task["measure"])(subject)
    circumstances = {
        "date": day.isoformat(),
        "cpu": machine.cpu_model(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    return {"figures": figures, "measured": measured, "circumstances": circumstances}


def _evaluated(model: nn.Module, batches: Iterator[Batch]) -> tuple[dict[str, float], Counts]:
    """Figures and counts of a model on a test split."""
    from headgate.train import evaluate

    evaluation = evaluate(model, batches)
    counts = evaluation.counts
    figures = {"accuracy": evaluation.accuracy, "top5": evaluation.top5, "loss": evaluation.loss}
    return figures | {"mac_reduction": counts.mac_reduction, "density": counts.density}, counts


def _all_macs(counts: Counts) -> float:
    """Executed in the whole network per image, binary ones as any others."""
    return sum(counts.total(network=True, binary=binary).executed_macs for binary in (False, True))


def _recorded(folder: Path) -> tuple[dict[str, float], Counts]:
    """The same of a finished run, as it recorded them, and what it took."""
    from headgate.counting import Counts
    from headgate.train.loop import COUNTS, SUMMARY

    summary = json.loads((folder / SUMMARY).read_text("utf-8"))
    names = ("accuracy", "top5", "loss", "mac_reduction", "density", "epochs", "seconds")
    return {name: summary[name] for name in names}, Counts.load(folder / COUNTS)


if __name__ == "__main__":
    sys.exit(main())
