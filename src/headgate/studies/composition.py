"""Gates together with what else makes a network cheaper: weight pruning, other architectures, distillation."""

from __future__ import annotations

from dataclasses import replace

from headgate.baselines import PruningConfig
from headgate.models import Architecture
from headgate.nn import GateConfig
from headgate.studies.figures import bars
from headgate.studies.protocol import Protocol
from headgate.studies.study import Study, dense_trial, gated, over_seeds
from headgate.studies.trial import Trial
from headgate.train import BudgetConfig, OptimiserConfig

__all__ = ["COMPOSITION"]

ZEROS = (2.0, 4.0)  # weights ÷ weights that are not zero


def _composition(protocol: Protocol, seeds: int) -> list[Trial]:
    budget = BudgetConfig(mac_reduction=protocol.reductions[-1])

    def trials(seed: int) -> list[Trial]:
        gate = gated(protocol, "gated", {}, seed, budget=budget)
        zeros = [
            replace(
                gate,
                variant=f"gated, 1 weight of {fewer:g} left",
                recipe=replace(gate.recipe, pruning=PruningConfig(method="magnitude", mac_reduction=fewer)),
            )
            for fewer in ZEROS
        ]
        return [
            gate,
            replace(gate, variant="gated, no teacher", recipe=replace(gate.recipe, distill=None)),
            *zeros,
            *_from_scratch(protocol, "MobileNetV1", "mobilenetv1-cifar", seed),
            *_from_scratch(
                protocol, "binary network", protocol.binary.architecture.name, seed, protocol.binary.optimiser
            ),
        ]

    return [dense_trial(protocol), *over_seeds(seeds, trials)]


def _from_scratch(
    protocol: Protocol, name: str, architecture: str, seed: int, optimiser: OptimiserConfig | None = None
) -> list[Trial]:
    """A dense network and the gated one, both from fresh weights."""
    dense = replace(
        protocol.trial(None, None, seed), init_from=None, distill=None,
        optimiser=optimiser or protocol.dense.optimiser,
        architecture=Architecture(
            name=architecture, num_classes=10, in_channels=protocol.dense.architecture.in_channels
        ),
    )  # fmt: skip
    budget = BudgetConfig(mac_reduction=protocol.reductions[0], close_epochs=protocol.close_epochs)
    gate = replace(dense, gate=GateConfig(groups=protocol.groups, shuffle=True), budget=budget)
    return [Trial(variant=name, point={}, recipe=dense), Trial(variant=f"{name}, gated", point={}, recipe=gate)]


COMPOSITION = Study(
    name="composition",
    question="do gates go together with weight pruning, with other networks, with distillation?",
    source="author response, Reviewer 5, Q1 (weight pruning), main paper's Table 1 (binary networks, MobileNet)",
    trials=_composition,
    figures={"accuracy": bars},
)
