"""A binary network's page keeps binary multiply-accumulates and the others apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fabricated import make_run

from headgate.report import write_report
from headgate.report.embed import Gallery
from headgate.report.numbers import amount, times
from headgate.report.run import Run, read_run

NETWORK = "digits-binary-resnet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gated run and its dense counterpart."""
    folder = tmp_path_factory.mktemp("binary-runs")
    make_run(folder / "gated", network=NETWORK, threshold=0.2)  # two-sided gates never open beyond 0.67
    make_run(folder / "dense", None, network=NETWORK, accuracy=0.95)
    return folder


@pytest.fixture(autouse=True)
def _no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gallery, "write", lambda _gallery, _folder: None)


def text(run: Run, out: Path) -> str:
    """The page's, drawings and tags left out."""
    page = write_report(run.folder, out=out).read_text("utf-8")
    page = re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))


def test_a_gated_page_has_rows_of_both_kinds(folder: Path, tmp_path: Path) -> None:
    run = read_run(folder / "gated")
    page, counts = text(run, tmp_path), run.counts
    gated, whole = counts.total(binary=True), counts.total(network=True)
    paths = counts.by_path()

    def row(*cells: str) -> str:
        return " ".join(re.sub(r"\s+", " ", cell) for cell in cells)

    assert row("binary MACs, gated layers", amount(gated.dense_macs), amount(gated.executed_macs)) in page
    assert row("conditional path", amount(paths["binary conditional"])) in page
    assert row("MACs, whole network", amount(whole.dense_macs), amount(whole.executed_macs), "1.00×") in page
    assert f"{times(counts.mac_reduction)} fewer MACs at 90.00 % accuracy" in page
    assert not re.search(r"(?<!binary )MACs, gated layers 0 0", page)
    assert "binary, activation, G = 4" in page
    assert "A binary MAC is an XNOR" in page
    assert f"the cheapest with {times(counts.reduction_by_image().max())}" in page


def test_a_dense_page_names_both_kinds(folder: Path, tmp_path: Path) -> None:
    run = read_run(folder / "dense")
    page, counts = text(run, tmp_path), run.counts
    totals = [counts.total(network=True, binary=binary).dense_macs for binary in (False, True)]
    claim = f"every image takes all {amount(totals[0])} MACs and {amount(totals[1])} binary MACs."
    assert re.sub(r"\s+", " ", claim) in page
