"""The optimiser, and the bounds that thresholds keep."""

from __future__ import annotations

import torch
from torch import nn

from headgate.nn import gated_layers
from headgate.train.recipe import OptimiserConfig

THRESHOLD_LIMIT = 3.0  # standard deviations that one threshold may stray from where it starts or is pulled to


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.SGD:
    """SGD on what learns; thresholds without weight decay."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    thresholds = [p for name, p in named if name.endswith("gate.threshold")]
    others = [p for name, p in named if not name.endswith("gate.threshold")]
    groups = [{"params": others, "weight_decay": config.weight_decay}]
    if thresholds:  # pulled by their own loss; decay would pull them toward 0 instead of T
        groups.append({"params": thresholds, "weight_decay": 0.0})
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


@torch.no_grad()
def clamp_thresholds_(model: nn.Module, pulled_to: float) -> None:
    """Keep thresholds from running away, as they may at a high learning rate: no gradient brings them back."""
    low, high = min(pulled_to, 0.0) - THRESHOLD_LIMIT, max(pulled_to, 0.0) + THRESHOLD_LIMIT
    for layer in gated_layers(model).values():
        layer.gate.threshold.clamp_(low, high)
