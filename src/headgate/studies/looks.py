"""What trained networks do: correlated sums, traffic under a channel-wise bound, channels used, cost of images."""

from __future__ import annotations

from dataclasses import replace

from headgate.studies.figures import correlations, extremes, spread, traffic
from headgate.studies.protocol import Protocol
from headgate.studies.study import Study, gated, over_seeds
from headgate.studies.trial import Point, Trial
from headgate.train import BudgetConfig

__all__ = ["CORRELATION", "TRAFFIC", "USAGE"]

BOUNDS = (0.0, 0.02, 0.05, 0.1, 0.2)
GROUPS = (2, 4, 8)
TARGET = 1.0  # T of the networks that are trained to be looked at
KINDS = {"CG-fine": "activation", "group": "group"}


def _looked_at(protocol: Protocol, variant: str, granularity: str, point: Point, seed: int, measure: str) -> Trial:
    """A trained network: one that comes with headgate, where the protocol has it."""
    trial = gated(
        protocol, variant, point, seed, budget=BudgetConfig(target=TARGET), measure=measure, granularity=granularity
    )
    return replace(trial, shipped=protocol.shipped.get(granularity))


def _correlation(protocol: Protocol, seeds: int) -> list[Trial]:
    dense = [
        Trial(
            variant="dense network", point={"groups": groups}, recipe=protocol.trial(None, None, 0),
            measure="correlation", shipped=protocol.shipped.get("dense"),
        )
        for groups in GROUPS
    ]  # fmt: skip

    def trials(seed: int) -> list[Trial]:
        return [
            gated(
                protocol, "gated network", {"groups": groups, "T": TARGET}, seed, measure="correlation", groups=groups
            )
            for groups in GROUPS
        ]

    return [*dense, *over_seeds(seeds, trials)]


def _traffic(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        return [
            _looked_at(protocol, name, granularity, {"tau": tau}, seed, "traffic")
            for name, granularity in KINDS.items()
            for tau in BOUNDS
        ]

    return over_seeds(_seeds(protocol, seeds), trials)


def _usage(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        return [_looked_at(protocol, name, granularity, {}, seed, "usage") for name, granularity in KINDS.items()]

    return over_seeds(_seeds(protocol, seeds), trials)


def _seeds(protocol: Protocol, seeds: int) -> int:
    """Of networks that come with headgate there is one."""
    return 1 if protocol.shipped else seeds


CORRELATION = Study(
    name="correlation",
    question="how much does a partial sum say about the final one?",
    source="author response, Reviewer 7, Q1: 0.86 with half of the channels",
    trials=_correlation,
    figures={"correlation": correlations},
)
TRAFFIC = Study(
    name="traffic",
    question="what do skipped channels save of the off-chip traffic, and what do they cost?",
    source="author response, Reviewer 5, Q1: 46 % fewer accesses at 0.2 % accuracy with τ = 10 %",
    trials=_traffic,
    figures={"traffic": traffic},
)
USAGE = Study(
    name="usage",
    question="which layers use how many channels, and how much dearer is one image than another?",
    source="author response, Figure A; appendix A.6, Figure 9: more than 2× between images",
    trials=_usage,
    figures={"usage": spread, "extremes": extremes},
)
