"""Small networks, and scikit-learn's digits, that the baselines are tried on."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

Batches = list[tuple[Tensor, Tensor]]


def digits(images: int = 256, batch: int = 64) -> Batches:
    """The first digits, with values in [−1, 1]."""
    data = load_digits()
    x = torch.tensor(data.images[:images], dtype=torch.float32)[:, None] / 8 - 1
    return list(zip(x.split(batch), torch.tensor(data.target[:images]).split(batch), strict=True))


def randomise_(model: nn.Module) -> nn.Module:
    """Norms as after training: statistics and parameters that are not those of initialisation."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.normal_(0.5, 0.7)  # some are negative
                module.bias.normal_(0, 0.3)
    return model


def fit(
    model: nn.Module,
    batches: Batches,
    epochs: int,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    before_step: Callable[[int], object] = lambda _: None,
    lr: float = 0.05,
) -> float:
    """Train in place; returns the share of the same images that are then right."""
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr, momentum=0.9)
    model.train()
    for step in range(epochs * len(batches)):
        x, labels = batches[step % len(batches)]
        before_step(step)
        optimiser.zero_grad()
        loss(model(x), labels).backward()
        optimiser.step()
    return accuracy(model, batches)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """Share of images that are right."""
    model.eval()
    right = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in batches)
    return right / sum(len(labels) for _, labels in batches)
