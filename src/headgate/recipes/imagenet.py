"""ImageNet and its likes: torchvision's networks, streamed images, the paper's schedule."""

from __future__ import annotations

from headgate.models import Architecture
from headgate.nn import GateConfig
from headgate.train import BudgetConfig, DataConfig, OptimiserConfig, Recipe, ScheduleConfig

SOURCE = "imagenet-1k"  # the name on the Hub; a local folder replaces it


def paper(architecture: str) -> Recipe:
    """140 epochs of Nesterov SGD at batch 256, lr 0.1 divided by 10 at 30, 60, 90 and 120 (appendix A.3).

    Ours are the shuffle and one epoch of warm-up, without which thresholds can run away.
    """
    return Recipe(
        name=f"{architecture}-imagenet",
        architecture=Architecture(name=f"torchvision/{architecture}"),
        data=DataConfig(
            source=SOURCE, loading="stream", augment="imagenet", size=224, workers=8, test_split="validation"
        ),
        epochs=140,
        batch_size=256,
        gate=GateConfig(groups=8, granularity="activation", shuffle=True),
        budget=BudgetConfig(target=1.5, steering="pull"),
        optimiser=OptimiserConfig(lr=0.1, weight_decay=1e-4, nesterov=True),
        schedule=ScheduleConfig(kind="steps", milestones=(30, 60, 90, 120), warmup_epochs=1),
        precision="bf16",
        eval_every=1,
    )
