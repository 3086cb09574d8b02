"""Learning rate and surrogate slope as pure functions of progress."""

from __future__ import annotations

import math

from headgate.train.recipe import ScheduleConfig


def learning_rate(config: ScheduleConfig, base: float, epoch: float, epochs: int) -> float:
    """The learning rate at a (fractional) epoch.

    Args:
        base: the rate at its highest.
        epoch: in [0, epochs).
    """
    if epoch < config.warmup_epochs:
        return base * epoch / config.warmup_epochs
    if config.kind == "steps":
        return base * config.gamma ** sum(epoch >= milestone for milestone in config.milestones)
    progress = (epoch - config.warmup_epochs) / (epochs - config.warmup_epochs)
    return base * 0.5 * (1 + math.cos(math.pi * progress))


def interpolate(start: float, end: float | None, progress: float) -> float:
    """Linear from `start` to `end` over progress in [0, 1]; constant where `end` is None."""
    return start if end is None else start + (end - start) * min(max(progress, 0.0), 1.0)
