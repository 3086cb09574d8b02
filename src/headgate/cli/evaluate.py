"""`headgate eval` and `headgate report`: what a trained model does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from tyro.conf import Positional

from headgate.cli.show import show


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Accuracy and executed MACs of a trained model, layer by layer.

    Attributes:
        model: a run's folder, a checkpoint file, or a name that `headgate models` lists under "pretrained".
        data: folder or Hub name of the dataset. Default: what the run was trained on.
        shift: move every threshold by so many standard deviations first: the run-time dial.
        images: evaluate on the first so many test images only.
    """

    model: Positional[str]
    data: str | None = None
    shift: float = 0.0
    images: int | None = None

    def run(self, console: Console) -> None:
        from headgate.nn import shift_thresholds_
        from headgate.train import evaluate
        from headgate.train.finished import find_model, test_batches

        model, config = find_model(self.model)
        batches = test_batches(model, config, name=self.model, data=self.data, limit=self.images)
        if self.shift:
            shift_thresholds_(model, self.shift)
        evaluation = evaluate(model, batches)
        console.print(str(evaluation.counts), markup=False)
        show(console, {self.model: evaluation})


@dataclass(frozen=True, kw_only=True)
class Report:
    """Draw a finished run: one HTML page and its pictures.

    Attributes:
        run: the run's folder.
        dense: folder of the dense counterpart's run, to compare accuracies.
        data: the dataset, for the pictures of images. Default: what the run was trained on.
        out: where to write. Default: <run>/report.
    """

    run_folder: Annotated[Positional[Path], tyro.conf.arg(name="run")]
    dense: Path | None = None
    data: str | None = None
    out: Path | None = None

    def run(self, console: Console) -> None:
        from headgate.report import write_report

        page = write_report(self.run_folder, dense=self.dense, data=self.data, out=self.out)
        console.print(f"report: {page}")
