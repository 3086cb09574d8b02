"""Which gate: the appendix's four, and one decision for a group; whether the controller hits a named budget."""

from __future__ import annotations

from headgate.studies.figures import budgets, trade_off
from headgate.studies.protocol import Protocol
from headgate.studies.study import Study, dense_trial, gated, over_seeds
from headgate.studies.trial import Trial
from headgate.train import BudgetConfig

__all__ = ["BUDGET", "GATES"]

KINDS = {
    "ℓ1-norm": "l1norm",
    "FC": "fc",
    "CG-coarse": "channel",
    "group": "group",
    "CG-fine": "activation",
}
STEERING = {"one common T": "threshold", "thresholds by layer": "penalty"}


def _gates(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        return [
            gated(
                protocol, kind, {"reduction": reduction}, seed,
                budget=BudgetConfig(mac_reduction=reduction),
                granularity=granularity, shuffle=granularity in ("activation", "group", "channel"),
            )
            for kind, granularity in KINDS.items()
            for reduction in protocol.reductions
        ]  # fmt: skip

    return [dense_trial(protocol), *over_seeds(seeds, trials)]


def _budget(protocol: Protocol, seeds: int) -> list[Trial]:
    def trials(seed: int) -> list[Trial]:
        return [
            gated(
                protocol, name, {"reduction": reduction}, seed,
                budget=BudgetConfig(mac_reduction=reduction, steering=steering), groups=8,  # type: ignore[arg-type]
            )
            for name, steering in STEERING.items()
            for reduction in protocol.budgets
        ]  # fmt: skip

    return [dense_trial(protocol), *over_seeds(seeds, trials)]


GATES = Study(
    name="gates",
    question="what should one decision be for, and be made from?",
    source="appendix A.5, Table 5: ℓ1-norm 8.19 %, FC 6.50 %, CG-coarse 6.40 %, CG-fine 5.44 % error at 4.0 to 5.5×",
    trials=_gates,
    figures={"error-against-macs": trade_off},
)
BUDGET = Study(
    name="budget",
    question="does training end at the MAC reduction that was named, and what does one common T cost?",
    source="our own",
    trials=_budget,
    figures={"budget": budgets},
)
