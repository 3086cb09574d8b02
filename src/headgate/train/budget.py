"""Steering the gates to a MAC reduction that the user names.

Two ways (docs/training.md compares them): one threshold offset that all gates share, moved by integral control, and a
penalty on the expected MACs whose multiplier follows the target. Both measure the executed share of every training
batch; `calibrate_` removes what difference remains between training and evaluation.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from headgate.errors import ConfigError
from headgate.nn import gated_layers
from headgate.train.recipe import BudgetConfig

OFFSET_LIMITS = (-4.0, 6.0)  # standard deviations: beyond them a normal score is always, or never, above
OPEN_DENSITY = 0.98  # where closing starts: below 1, for a logit must exist
OPEN_OFFSET = -2.05  # standard deviations: where a normal score is above with that density


def set_offset_(model: nn.Module, offset: float) -> None:
    """Set (not add) the threshold offset of every gate."""
    for layer in gated_layers(model).values():
        layer.gate.offset.fill_(offset)


@torch.no_grad()
def fold_offset_(model: nn.Module) -> None:
    """Move the offset into the thresholds: decisions stay, and the dial starts at 0 again."""
    for layer in gated_layers(model).values():
        layer.gate.threshold.add_(layer.gate.offset)
        layer.gate.offset.zero_()


class Steering(ABC):
    """What keeps a run on its budget. Its state is a dict of floats, saved with the checkpoint."""

    offset: float = 0.0
    pulled_to: float = 0.0
    """Where the threshold loss pulls the thresholds: 0 where the offset is T, so that it pulls at their spread."""

    @abstractmethod
    def penalty(self, executed_share: Tensor) -> Tensor | None:
        """Extra loss for this step, from the differentiable share of the dense MACs that the batch executed."""

    @abstractmethod
    def update(self, executed_share: float, progress: float) -> None:
        """Learn from the share a step executed; `progress` of closing runs from 0 to 1."""

    @abstractmethod
    def state(self) -> dict[str, float]:
        """What a resumed run needs."""

    def restore(self, state: dict[str, float]) -> None:
        """The inverse of `state`."""
        for name, value in state.items():
            setattr(self, name, value)


class FixedTarget(Steering):
    """The user names T itself; while closing, it comes up from fully open."""

    def __init__(self, target: float, *, closing: bool = False) -> None:
        self.target = target
        self.offset = OPEN_OFFSET if closing else target

    def penalty(self, executed_share: Tensor) -> Tensor | None:
        return None

    def update(self, executed_share: float, progress: float) -> None:
        self.offset = OPEN_OFFSET + (self.target - OPEN_OFFSET) * progress

    def state(self) -> dict[str, float]:
        return {"offset": self.offset}


class PulledTarget(Steering):
    """The threshold loss alone takes the thresholds to T (appendix A.1): nothing is steered."""

    def __init__(self, target: float) -> None:
        self.pulled_to = target

    def penalty(self, executed_share: Tensor) -> Tensor | None:
        return None

    def update(self, executed_share: float, progress: float) -> None:
        pass

    def state(self) -> dict[str, float]:
        return {}


class ThresholdSteering(Steering):
    """Integral control of one offset on the logit of the density, in which a gate responds almost linearly."""

    GAIN = 0.03  # per step: a time constant of about 30 steps, against batch noise of a few percent
    PLANT = 1.7  # d logit(Φ(−T)) / dT near 0: how strongly a normal score answers

    def __init__(self, target_share: float, base_share: float, *, closing: bool = False) -> None:
        self.base_share = base_share
        self.target_density = (target_share - base_share) / (1 - base_share)
        self.offset = OPEN_OFFSET if closing else 0.0

    def penalty(self, executed_share: Tensor) -> Tensor | None:
        return None

    def update(self, executed_share: float, progress: float) -> None:
        wanted = OPEN_DENSITY + (self.target_density - OPEN_DENSITY) * progress
        measured = (executed_share - self.base_share) / (1 - self.base_share)
        error = _logit(measured) - _logit(wanted)
        self.offset = min(max(self.offset + self.GAIN * error / self.PLANT, OFFSET_LIMITS[0]), OFFSET_LIMITS[1])

    def state(self) -> dict[str, float]:
        return {"offset": self.offset}


class PenaltySteering(Steering):
    """loss += multiplier · executed share; the multiplier rises while the share is above the target (dual ascent).

    While closing, an offset that fades out opens the gates.
    """

    RATE = 0.02

    def __init__(self, target_share: float, *, closing: bool = False) -> None:
        self.target_share = target_share
        self.offset = OPEN_OFFSET if closing else 0.0
        self.opening = self.offset
        self.multiplier = 0.0
        self.wanted = target_share

    def penalty(self, executed_share: Tensor) -> Tensor | None:
        return executed_share * (self.multiplier / self.wanted)

    def update(self, executed_share: float, progress: float) -> None:
        self.offset = self.opening * (1 - progress)
        self.wanted = 1.0 + (self.target_share - 1.0) * progress
        self.multiplier = max(self.multiplier + self.RATE * (executed_share / self.wanted - 1), 0.0)

    def state(self) -> dict[str, float]:
        return {"offset": self.offset, "multiplier": self.multiplier, "wanted": self.wanted}


def _logit(p: float) -> float:
    p = min(max(p, 1e-3), 1 - 1e-3)
    return math.log(p / (1 - p))


def make_steering(budget: BudgetConfig, base_share: float) -> Steering | None:
    """The controller of a run; None where the gates are forced.

    Args:
        base_share: share of the dense MACs that base paths and gate overhead take whatever the gates decide.
    Raises: ConfigError: the base paths alone cost more than the budget allows.
    """
    if budget.forced is not None:
        return None
    closing = budget.close_epochs > 0
    if budget.target is not None:
        if budget.steering == "pull":
            return PulledTarget(budget.target)
        return FixedTarget(budget.target, closing=closing)
    assert budget.mac_reduction is not None
    if 1 / budget.mac_reduction <= base_share * 1.001:
        raise ConfigError(
            f"mac_reduction must be below {1 / base_share:.2f}, where the base paths alone execute, got "
            f"{budget.mac_reduction}; use more groups"
        )
    share = 1 / budget.mac_reduction
    if budget.steering == "penalty":
        return PenaltySteering(share, closing=closing)
    return ThresholdSteering(share, base_share, closing=closing)


def calibrate_(
    model: nn.Module, mac_reduction: float, measure: Callable[[], float], *, tolerance: float = 0.003, tries: int = 12
) -> float:
    """Bracket, then bisect the threshold offset, in place, until `measure()` gives the wanted MAC reduction.

    Args:
        measure: counts the model's MAC reduction in evaluation mode, on images that are not test images.
        tolerance: relative.
        tries: measurements after which the nearest offset so far is kept.
    Returns: the reduction reached; the caller judges whether it is near enough.
    """
    offset = float(next(iter(gated_layers(model).values())).gate.offset)
    low, high = -math.inf, math.inf  # offsets known to save too little, and too much
    step = 0.25
    nearest = (math.inf, offset, 0.0)
    for _ in range(tries):
        set_offset_(model, offset)
        reached = measure()
        nearest = min(nearest, (abs(reached / mac_reduction - 1), offset, reached))
        if nearest[0] <= tolerance:
            break
        low, high = (offset, high) if reached < mac_reduction else (low, offset)
        if math.isfinite(low + high):
            offset = (low + high) / 2
        else:
            offset += step if reached < mac_reduction else -step
            step *= 2
    set_offset_(model, nearest[1])
    return nearest[2]
