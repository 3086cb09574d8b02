"""scikit-learn's digits: embedded data, seconds of training."""

from __future__ import annotations

from dataclasses import replace

from headgate.models import Architecture
from headgate.nn import GateConfig
from headgate.train import BudgetConfig, DataConfig, OptimiserConfig, Recipe, ScheduleConfig


def cnn() -> Recipe:
    """The small CNN of the demo, gated to a quarter of its MACs."""
    return Recipe(
        name="digits-cnn",
        architecture=Architecture(name="digits-cnn", num_classes=10),
        data=DataConfig(source="digits", augment="crop"),
        epochs=30,
        batch_size=64,
        gate=GateConfig(groups=8, granularity="activation", shuffle=True),
        budget=BudgetConfig(mac_reduction=4.0),
        optimiser=OptimiserConfig(lr=0.05, weight_decay=5e-4),
        schedule=ScheduleConfig(kind="cosine", warmup_epochs=1),
        eval_every=5,
    )


def binary() -> Recipe:
    """A small binary network, gated to half of its MACs; weight decay as in `cifar10.binary`."""
    return replace(
        cnn(),
        name="digits-binary-resnet",
        architecture=Architecture(name="digits-binary-resnet", num_classes=10),
        gate=GateConfig(groups=4, granularity="activation", shuffle=True),
        budget=BudgetConfig(mac_reduction=2.0),
        optimiser=OptimiserConfig(lr=0.5, weight_decay=1e-4),
    )
