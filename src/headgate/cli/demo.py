"""`headgate demo`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from headgate.cli.options import given
from headgate.cli.show import show


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train a small CNN on scikit-learn's digits, dense and gated; compare them; write the report.

    Attributes:
        out: folder of the two runs.
        epochs: of each.
    """

    out: Path = Path("runs/demo")
    epochs: int | None = None

    def run(self, console: Console) -> None:
        from headgate import recipes
        from headgate.report import write_report
        from headgate.train import train

        recipe = replace(recipes.get("digits-cnn"), **given(epochs=self.epochs))
        results = {}
        for run in (recipes.dense(recipe), recipe):
            console.print(f"training {run.name} for {run.epochs} epochs on scikit-learn's digits …")
            results[run.name] = train(run, self.out / run.name)
        show(console, {name: result.evaluation for name, result in results.items()})
        gated, dense = results[recipe.name], results[recipes.dense(recipe).name]
        console.print(f"report: {write_report(gated.folder, dense=dense.folder)}")
