"""What a group's decision should be made of: the mean of its normalised partial sums, or their maximum.

    python benchmarks/aggregate.py [--seeds 5] [--epochs 15]

On scikit-learn's digits, group gates, the same budgets. headgate has the mean; the maximum is put in its place here, in
plain torch, shifted and scaled like it to zero mean and unit variance for independent sums.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

import torch
from torch import Tensor

os.environ["HEADGATE_NATIVE"] = "0"  # both aggregates by the reference operators

from headgate import recipes
from headgate.nn import GateConfig
from headgate.ops.decision import unit_variance
from headgate.train import BudgetConfig, train


def max_score(
    partial: Tensor, groups: int, score_var: Tensor, *, training: bool, momentum: float, sync: bool = False
) -> Tensor:
    """`group_score` with the maximum instead of the mean."""
    n, c, h, w = partial.shape
    size = c // groups
    normal = torch.distributions.Normal(0.0, 1.0)
    expected = float(normal.icdf(torch.tensor((size - 0.375) / (size + 0.25))))  # Blom: of the largest of `size`
    largest = partial.reshape(n, groups, size, h, w).amax(2) - expected
    return unit_variance(largest, score_var, training=training, momentum=momentum, sync=sync)


@contextmanager
def aggregate(name: str) -> Iterator[None]:
    """Let group gates decide by "mean" or "max"."""
    if name == "mean":
        yield
        return
    with (
        patch("headgate.nn.gates.group_score", max_score),
        patch("headgate.ops.gated_norm.reference.group_score", max_score),
    ):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--mac-reductions", type=float, nargs="+", default=[2.5, 3.25])
    options = parser.parse_args()
    torch.set_num_threads(1)
    base = replace(
        recipes.get("digits-cnn"),
        epochs=options.epochs,
        eval_every=options.epochs,
        gate=GateConfig(groups=options.groups, granularity="group", shuffle=True),
    )
    print("| asked for | aggregate | top-1 % | MAC reductions reached |\n| --- | --- | --- | --- |")
    for wanted in options.mac_reductions:
        for name in ("mean", "max"):
            accuracies, reached = [], []
            for seed in range(options.seeds):
                recipe = replace(base, seed=seed, budget=BudgetConfig(mac_reduction=wanted))
                with tempfile.TemporaryDirectory() as folder, aggregate(name):
                    result = train(recipe, folder, console=False).evaluation
                accuracies.append(100 * result.accuracy)
                reached.append(f"{result.counts.mac_reduction:.2f}")
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else float("nan")
            mean = statistics.fmean(accuracies)
            print(f"| {wanted:g}× | {name} | {mean:.2f} ± {spread:.2f} | {', '.join(reached)} |", flush=True)


if __name__ == "__main__":
    main()
