"""Small networks with channels that carry nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def trained_(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Norms as after training, float64, evaluation: nothing is zero or one by chance of initialisation."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, generator=generator)
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.double().eval()


@torch.no_grad()
def silence_(model: nn.Module, conv: str, norm: str | None, channels: list[int]) -> None:
    """Zero filters, and what the norm behind would make of them."""
    for name in (conv, norm):
        if name is not None:
            for parameter in model.get_submodule(name).parameters():
                parameter[channels] = 0.0


def images(generator: torch.Generator, channels: int = 3, size: int = 8) -> Tensor:
    """Two of them."""
    return torch.randn(2, channels, size, size, dtype=torch.float64, generator=generator)


class Separable(nn.Module):
    """Stem, depthwise convolution, pointwise convolution, grouped convolution, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.pointwise = nn.Conv2d(8, 12, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(12)
        self.grouped = nn.Conv2d(12, 8, 3, groups=2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(self.bn2(self.depthwise(x)))
        x = torch.relu(self.bn3(self.pointwise(x)))
        x = torch.relu(self.grouped(x))
        return self.fc(x.mean((2, 3)))
