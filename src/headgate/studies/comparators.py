"""The gates beside the methods that the author response compares them with, and those that the authors left out."""

from __future__ import annotations

from typing import Any

from headgate.studies.figures import methods
from headgate.studies.protocol import Protocol
from headgate.studies.study import Study, dense_trial, gated, over_seeds, pruned, static, thinner
from headgate.studies.trial import Trial
from headgate.train import BudgetConfig

__all__ = ["COMPARATORS"]

METHODS: dict[str, dict[str, Any]] = {
    "PerforatedCNN": {"method": "perforation"},
    "PerforatedCNN, rates by layer": {"method": "perforation", "greedy": True},
    "SSL": {"method": "ssl"},
    "decorrelation": {"method": "decorrelation"},
    "FBS": {"method": "fbs"},
    "Torch-Pruning": {"method": "torch-pruning"},
    "magnitude": {"method": "magnitude", "measure": "theoretical"},
}


def _comparators(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        gates = [
            gated(
                protocol, name, {"reduction": reduction}, seed,
                budget=BudgetConfig(mac_reduction=reduction), granularity=granularity,
            )
            for name, granularity in (("CG-fine", "activation"), ("group", "group"))
            for reduction in protocol.reductions
        ]  # fmt: skip
        controls = [static(protocol, groups, seed) for groups in (2, 4)]
        thin = [thinner(protocol, reduction, seed) for reduction in protocol.reductions]
        others = [
            pruned(protocol, name, reduction, seed, **options)
            for name, options in METHODS.items()
            for reduction in protocol.reductions
        ]
        return [*gates, *controls, *thin, *others]

    return [dense_trial(protocol), *over_seeds(seeds, trials)]


COMPARATORS = Study(
    name="comparators",
    question="is a gated network better than one pruned by another method, at the same MACs?",
    source="author response, Table A: PerforatedCNN, SSL (Wen et al.), decorrelation (Zhu et al.); the rest is our own",
    trials=_comparators,
    figures={"error-against-macs": methods},
)
