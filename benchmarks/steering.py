"""The two ways of steering to a budget, side by side on scikit-learn's digits.

python benchmarks/steering.py [--seeds 3] [--epochs 15]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import replace

import torch

from headgate import recipes
from headgate.train import BudgetConfig, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--mac-reductions", type=float, nargs="+", default=[4.0, 6.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = replace(recipes.get("digits-cnn"), epochs=options.epochs, eval_every=options.epochs)
    print("| asked for | steering | top-1 % | MAC reductions reached |\n| --- | --- | --- | --- |")
    for wanted in options.mac_reductions:
        for steering in ("threshold", "penalty"):
            budget = BudgetConfig(mac_reduction=wanted, steering=steering)  # type: ignore[arg-type]
            accuracies, reached = [], []
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    result = train(replace(base, seed=seed, budget=budget), folder, console=False).evaluation
                accuracies.append(100 * result.accuracy)
                reached.append(f"{result.counts.mac_reduction:.2f}")
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else float("nan")
            mean = statistics.fmean(accuracies)
            print(f"| {wanted:g}× | {steering} | {mean:.2f} ± {spread:.2f} | {', '.join(reached)} |", flush=True)


if __name__ == "__main__":
    main()
