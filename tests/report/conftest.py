"""What the tests of the report share; nobody writes to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fabricated import make_run
from PIL import Image

from headgate.counting import Counts


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a gated run and its dense counterpart."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "gated")
    make_run(folder / "dense", None, accuracy=0.95)
    return folder


@pytest.fixture(scope="session")
def counts(runs: Path) -> Counts:
    """The gated run's."""
    return Counts.load(runs / "gated" / "counts.json")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder of 12×12 images in colour, ten classes of three."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "photographs" / split / f"class{label}"
            folder.mkdir(parents=True)
            for i in range(3):
                Image.fromarray(generator.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photographs"
