"""What a run writes down and shows: metrics.jsonl, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from headgate.files import write_atomic

METRICS = "metrics.jsonl"


class RunLog:
    """Writes one JSON object per line to metrics.jsonl and the same figures to TensorBoard; shows progress.

    Args:
        folder: the run's folder; None on processes that must not write.
        total_steps: of the whole run.
        first_step: where a resumed run goes on; later lines of the file are dropped, for they will be written again.
        console: show a progress bar.
    """

    def __init__(self, folder: Path | None, *, total_steps: int, first_step: int = 0, console: bool = True) -> None:
        self._file = None
        self._tensorboard = None
        if folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            path = folder / METRICS
            kept = [
                line
                for line in read_metrics(folder)
                if line["step"] <= first_step and not (line["kind"] == "eval" and line["step"] == total_steps)
            ]
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = path.open("a")
            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=folder is None or not console,
        )
        self._task = self._progress.add_task("train", total=total_steps, completed=first_step, figures="")

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        self._progress.update(self._task, completed=step)

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Write figures of one kind ("train" or "eval") that belong to a global step."""
        if self._file is not None:
            self._file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
            self._file.flush()
        if self._tensorboard is not None:
            for name, value in figures.items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        shown = ("loss", "accuracy", "density", "mac_reduction")
        text = "  ".join(f"{name} {figures[name]:.3f}" for name in shown if figures.get(name) is not None)
        self._progress.update(self._task, figures=f"{kind} {text}")


class Meter:
    """Averages between two lines of the log."""

    def __init__(self) -> None:
        self.loss = self.accuracy = self.share = self.seconds = 0.0
        self.images = self.steps = 0
        self.gated = False

    def add(self, loss: float, accuracy: float, share: float | None, images: int, seconds: float) -> None:
        self.loss += loss
        self.accuracy += accuracy
        self.gated = share is not None
        self.share += share or 0.0
        self.images += images
        self.seconds += seconds
        self.steps += 1

    def figures(self, base_share: float | None) -> dict[str, float]:
        figures = {
            "loss": self.loss / self.steps,
            "accuracy": self.accuracy / self.steps,
            "images_per_second": self.images / self.seconds,
        }
        if self.gated and base_share is not None:
            share = self.share / self.steps
            figures |= {"mac_reduction": 1 / share, "density": (share - base_share) / (1 - base_share)}
        return figures


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, up to the first that a crash cut off or something else damaged."""
    path = folder / METRICS
    lines: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text("utf-8", errors="replace").splitlines():
            try:
                values = json.loads(line)
            except ValueError:
                break
            if not isinstance(values, dict) or not {"kind", "step"} <= values.keys():
                break
            lines.append(values)
    return lines
