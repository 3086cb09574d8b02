"""CIFAR-10: the paper's schedule, and short ones that a CPU finishes."""

from __future__ import annotations

from dataclasses import replace

from headgate.models import Architecture
from headgate.nn import GateConfig
from headgate.train import BudgetConfig, DataConfig, OptimiserConfig, Recipe, ScheduleConfig

SOURCE = "cifar10"  # the name on the Hub; a local folder replaces it


def paper(architecture: str) -> Recipe:
    """300 epochs of SGD at batch 256, lr 0.1 divided by 10 at 200 and 250; G = 8, T = 2 (appendix A.1 to A.3).

    Ours are the shuffle and one epoch of warm-up, without which thresholds can run away.
    """
    return Recipe(
        name=f"{architecture}-cifar10-paper",
        architecture=Architecture(name=architecture, num_classes=10),
        data=DataConfig(source=SOURCE),
        epochs=300,
        batch_size=256,
        gate=GateConfig(groups=8, granularity="activation", shuffle=True),
        budget=BudgetConfig(target=2.0, steering="pull"),
        optimiser=OptimiserConfig(lr=0.1, weight_decay=1e-4),
        schedule=ScheduleConfig(kind="steps", milestones=(200, 250), warmup_epochs=1),
        eval_every=5,
    )


def short(architecture: str) -> Recipe:
    """30 epochs in bfloat16 with a cosine: an hour or two on a CPU core (docs/training.md has the cost of a step)."""
    return Recipe(
        name=f"{architecture}-cifar10",
        architecture=Architecture(name=architecture, num_classes=10),
        data=DataConfig(source=SOURCE),
        epochs=30,
        batch_size=128,
        gate=GateConfig(groups=8, granularity="activation", shuffle=True),
        budget=BudgetConfig(mac_reduction=4.0),
        optimiser=OptimiserConfig(lr=0.1, weight_decay=5e-4),
        schedule=ScheduleConfig(kind="cosine", warmup_epochs=1),
        precision="bf16",
        eval_every=5,
    )


def binary(architecture: str) -> Recipe:
    """`short` for networks of binary convolutions: the same, with a fifth of its weight decay."""
    # What decay does to a binary weight is to bring it nearer to 0, where every step turns its sign; under a norm its
    # size has no other meaning. Rate, momentum, decay and cosine are those of IR-Net's ResNet-20 (Qin et al., CVPR
    # 2020), over 400 epochs there. Adam, the other usual choice, was not needed for it.
    return replace(short(architecture), optimiser=OptimiserConfig(lr=0.1, weight_decay=1e-4))
