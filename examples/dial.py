"""One elastic checkpoint, many budgets: turn the dial and watch accuracy and MACs.

python examples/dial.py [epochs]
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace

import headgate as hg
from headgate import recipes
from headgate.train import BudgetConfig, evaluate, train
from headgate.train.prepare import evaluation_batches


def main(epochs: int = 15) -> None:
    recipe = recipes.get("digits-cnn")
    recipe = replace(recipe, epochs=epochs, budget=BudgetConfig(mac_reduction=3.0, elastic=1.0), eval_every=epochs)
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, folder)
        model = hg.load(f"{folder}/model.safetensors")
    hg.shift_thresholds_(model, -1.0)
    for shift in (-1.0, -0.5, 0.0, 0.5, 1.0):
        result = evaluate(model, evaluation_batches(model, recipe.data))
        print(f"dial {shift:+.1f}: accuracy {result.accuracy:.3f}, {result.counts.mac_reduction:.2f}× fewer MACs")
        hg.shift_thresholds_(model, 0.5)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
