"""Tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from headgate.train import Evaluation


def show(console: Console, evaluations: dict[str, Evaluation]) -> None:
    """Accuracy and cost of several models."""
    table = Table(box=None)
    table.add_column("model")
    for heading in ("top-1 %", "density", "MAC reduction, gated layers", "whole network"):
        table.add_column(heading, justify="right")
    for name, evaluation in evaluations.items():
        counts = evaluation.counts
        gated = bool(counts.gated_layers)
        table.add_row(
            name,
            f"{100 * evaluation.accuracy:.2f}",
            f"{counts.density:.3f}" if gated else "–",
            f"{counts.mac_reduction:.2f}×" if gated else "–",
            f"{counts.network_mac_reduction:.2f}×",
        )
    console.print(table)
