"""The appendix's sweeps: ε, η, and the ways to choose the base path's channels."""

from __future__ import annotations

from typing import Any

from headgate.studies.figures import trade_off
from headgate.studies.protocol import Protocol
from headgate.studies.study import Study, dense_trial, gated, over_seeds
from headgate.studies.trial import Trial

__all__ = ["EPSILON", "ETA", "GROUPING"]


def _epsilon(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        return [
            gated(protocol, f"ε = {slope:g}", {"T": target}, seed, slope=slope)
            for slope in (2.0, 3.0, 4.0)
            for target in protocol.targets
        ]

    return [dense_trial(protocol), *over_seeds(seeds, trials)]


def _eta(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        return [
            gated(protocol, f"η = 1/{groups}", {"T": target}, seed, groups=groups)
            for groups in (4, 8, 16)
            for target in protocol.targets
        ]

    return [dense_trial(protocol), *over_seeds(seeds, trials)]


def _grouping(protocol: Protocol, seeds: int) -> list[Trial]:
    kinds: dict[str, dict[str, Any]] = {
        "first fraction": {"grouped": False, "shuffle": False},
        "grouping": {"shuffle": False},
        "grouping + shuffle": {},
    }

    def trials(seed: int) -> list[Trial]:
        return [
            gated(protocol, kind, {"T": target}, seed, **options)
            for kind, options in kinds.items()
            for target in protocol.targets
        ]

    return [dense_trial(protocol), *over_seeds(seeds, trials)]


EPSILON = Study(
    name="epsilon",
    question="how steep should the surrogate gradient be?",
    source="appendix A.1, Figure 7a: ε = 2 trades best",
    trials=_epsilon,
    figures={"error-against-macs": trade_off},
)
ETA = Study(
    name="eta",
    question="how many channels should the base path see?",
    source="appendix A.1, Figure 7b: a smaller η trades better at lower savings",
    trials=_eta,
    figures={"error-against-macs": trade_off},
)
GROUPING = Study(
    name="grouping",
    question="what do channel grouping and shuffle bring?",
    source="appendix A.4, Figure 8: grouping +0.84 %, shuffle +0.23 % at 5×; author response, Reviewer 7, Q2",
    trials=_grouping,
    figures={"error-against-macs": trade_off},
)
