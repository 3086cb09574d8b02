"""What a library is to the benchmark."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headgate.benchmarking.request import Dtype

Images = NDArray[np.float32]
Runner = Callable[[Images], NDArray[np.float32]]
"""From float32 images (n, c, h, w), contiguous, to the network's output, both numpy arrays on the CPU."""


class Absent(Exception):
    """A library cannot serve here; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be built.

    Attributes:
        module: plain layers, in evaluation mode, float32; not to be changed.
        images: one batch, of the shape that every call will have.
        calibration: what ranges of 8-bit integers are taken from: whole batches.
        threads: of one call.
        dtype: to compute in.
        folder: for temporary files, of this library alone.
        held: the instruction set that the process's environment holds libraries to, or None.
    """

    module: nn.Module
    images: Images
    calibration: tuple[Images, ...]
    threads: int
    dtype: Dtype
    folder: Path
    held: str | None


@dataclass(frozen=True, kw_only=True)
class Library:
    """A library.

    Attributes:
        name: as `Request.against` calls it.
        title: for people.
        packages: modules that it needs, with the name of each one's distribution on PyPI.
        build: from work to a runner. May raise anything: the library is then absent for that reason.
        unholdable: why it cannot be held to an instruction set; empty where it can.
        dense: dtypes in which it is timed on the dense network.
        pruned: dtypes in which it is timed on networks that are pruned statically.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    build: Callable[[Work], Runner]
    unholdable: str = ""
    dense: tuple[Dtype, ...] = ("float32",)
    pruned: tuple[Dtype, ...] = ()

    def obstacle(self, held: str | None) -> str | None:
        """Why it cannot serve here, as far as one can tell without trying; else None."""
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed; pip install {' '.join(missing)}"
        if held is not None and self.unholdable:
            return f"cannot be held to {held}: {self.unholdable}"
        return None

    def versions(self) -> dict[str, str]:
        """Versions of its packages."""
        return {name: importlib.metadata.version(name) for name in self.packages}
