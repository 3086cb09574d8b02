"""The question that decides everything: what is best at equal MACs, and at equal time in the native engine?"""

from __future__ import annotations

from dataclasses import replace

from headgate.studies.figures import frontier
from headgate.studies.protocol import Protocol
from headgate.studies.study import Study, dense_trial, gated, over_seeds, pruned, static, thinner
from headgate.studies.trial import Trial
from headgate.train import BudgetConfig

__all__ = ["FRONTIER"]

ELASTIC = 0.5  # standard deviations that thresholds are shifted by, for the dial
GATES = {"CG-fine": "activation", "group": "group"}


def _frontier(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        gates = [
            gated(
                protocol, name, {"reduction": reduction}, seed, measure="time",
                budget=BudgetConfig(mac_reduction=reduction), granularity=granularity,
            )
            for name, granularity in GATES.items()
            for reduction in protocol.reductions
        ]  # fmt: skip
        middle = protocol.reductions[len(protocol.reductions) // 2]
        dials = [
            gated(
                protocol, f"{name}, one checkpoint", {"reduction": middle}, seed, measure="dial",
                budget=BudgetConfig(mac_reduction=middle, elastic=ELASTIC), granularity=granularity,
            )
            for name, granularity in GATES.items()
        ]  # fmt: skip
        controls = [static(protocol, groups, seed, measure="time") for groups in (2, 4)]
        for reduction in protocol.reductions:
            controls.append(thinner(protocol, reduction, seed, measure="time"))
            controls.append(pruned(protocol, "Torch-Pruning", reduction, seed, method="torch-pruning", measure="time"))
        return [*gates, *dials, *controls]

    return [replace(dense_trial(protocol), measure="time"), *over_seeds(seeds, trials)]


FRONTIER = Study(
    name="frontier",
    question="at equal MACs and at equal time in the engine, which network is best, and can one checkpoint do all?",
    source="our own",
    trials=_frontier,
    figures={"error-against-macs-and-time": frontier},
)
