"""What trained networks do: correlated sums, traffic under a channel-wise bound, channels used, cost of images."""

from __future__ import annotations

from headgate.studies.figures import correlations, extremes, spread, traffic
from headgate.studies.protocol import Protocol
from headgate.studies.study import Study, dense_trial, gated, over_seeds
from headgate.studies.trial import Trial

__all__ = ["CORRELATION", "TRAFFIC", "USAGE"]

BOUNDS = (0.0, 0.02, 0.05, 0.1, 0.2)
TARGET = 1.0  # T of the networks that are looked at


def _correlation(protocol: Protocol, seeds: int) -> list[Trial]:
    dense = [
        Trial(
            variant="dense network",
            point={"groups": groups},
            recipe=protocol.trial(None, None, 0),
            measure="correlation",
        )
        for groups in (2, 4, 8)
    ]

    def trials(seed: int) -> list[Trial]:
        return [
            gated(
                protocol, "gated network", {"groups": groups, "T": TARGET}, seed, measure="correlation", groups=groups
            )
            for groups in (2, 4, 8)
        ]

    return [*dense, *over_seeds(seeds, trials)]


def _traffic(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        return [
            gated(protocol, "bound on the trained network", {"T": TARGET, "tau": tau}, seed, measure="traffic")
            for tau in BOUNDS
        ]

    return [dense_trial(protocol), *over_seeds(seeds, trials)]


def _usage(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        return [
            gated(protocol, name, {"T": TARGET}, seed, measure="usage", granularity=granularity)
            for name, granularity in (("CG-fine", "activation"), ("group", "group"))
        ]

    return over_seeds(seeds, trials)


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
