"""`headgate export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from headgate.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a trained model to a plan file for the native engine.

    Attributes:
        model: a run's folder, a checkpoint file, or a name that `headgate models` lists under "pretrained".
        plan: the file to write.
        image: channels, height and width of the images that the plan is for. Default: those that the run trained on.
        precision: of convolutions; int8: integers of 8 bits, with ranges from training images.
        calibration: so many of them, not augmented.
        explain: then time each gated convolution on test images both ways, sparse and as masked dense arithmetic; show
            the times, and remember the faster way for engines of this plan on this CPU with this instruction set and
            number of threads. An engine takes all cores where it is not told otherwise.
        data: where the images for either are. Default: what the run was trained on.
        batch: images in one call, for the times.
        threads: of one call, for the times.
    """

    model: Positional[str]
    plan: Positional[Path]
    image: tuple[int, int, int] | None = None
    precision: Literal["float32", "int8", "bfloat16"] = "float32"
    calibration: int = 512
    explain: bool = False
    data: str | None = None
    batch: int = 1
    threads: int = 1

    def run(self, console: Console) -> None:
        import torch

        from headgate.exporting import export
        from headgate.train.finished import find_model, test_batches, trained_shape, training_images

        for name, value in (("calibration", self.calibration), ("batch", self.batch), ("threads", self.threads)):
            if value < 1:
                raise ConfigError(f"{name} must be ≥ 1, got {value}")
        model, config = find_model(self.model)
        shape = self.image or trained_shape(Path(self.model))
        if min(shape) < 1:
            raise ConfigError(f"image must be channels, height and width, each ≥ 1, got {shape}")
        where: dict[str, Any] = {"name": self.model, "data": self.data}
        calibration = timed = None
        if self.precision == "int8":
            calibration = training_images(model, config, count=self.calibration, **where)
        if self.explain:
            batches = test_batches(model, config, limit=self.batch, **where)
            timed = torch.cat([images for images, *_ in batches])[: self.batch].contiguous().numpy()
        report = export(
            model,
            self.plan,
            example_input=torch.zeros(1, *shape),
            precision=self.precision,
            calibration=calibration,
        )
        console.print(str(report), markup=False)
        if timed is not None:
            self._explain(console, timed)

    def _explain(self, console: Console, images: NDArray[np.float32]) -> None:
        from headgate.engine import Engine

        choices = Engine(self.plan, threads=self.threads).tune(images)
        if not choices:
            console.print("there is no gated convolution")
            return
        table = Table(title=f"batches of {len(images)}, {self.threads} thread(s), ms a batch, base path included")
        for column in ("gated convolution", "density", "sparse", "masked dense", "path"):
            table.add_column(column, justify="left" if column in ("gated convolution", "path") else "right")
        for choice in choices:
            row = (f"{choice.density:.3f}", f"{choice.sparse_ms:.3f}", f"{choice.masked_ms:.3f}", choice.path)
            table.add_row(choice.name, *row)
        console.print(table)
