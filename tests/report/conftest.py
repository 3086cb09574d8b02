"""What the tests of the report share; nobody writes to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fabricated import make_run
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
