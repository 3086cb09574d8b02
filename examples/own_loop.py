"""Train a gated network in a loop of your own: the only addition is the threshold loss.

python examples/own_loop.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import headgate as hg
from headgate.train.data import load_digits


class Net(nn.Module):
    """Any network that torch.fx can trace will do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.conv3, self.bn3 = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = x + F.relu(self.bn3(self.conv3(x)))
        return self.head(x.mean((2, 3)))


def main(epochs: int = 5) -> None:
    torch.manual_seed(0)
    train, test = load_digits("train"), load_digits("test")
    model = Net()
    print(
        hg.gate_(
            model, hg.GateConfig(groups=4, granularity="group", threshold=0.5), example_input=torch.zeros(1, 1, 8, 8)
        )
    )
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for index in torch.randperm(len(train)).split(64):
            loss = F.cross_entropy(model(train.images[index] / 255), train.labels[index])
            loss = loss + hg.threshold_loss(model, target=0.5, weight=1e-4)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(test.images / 255).argmax(1) == test.labels).float().mean()
    counts = hg.count(model, test.images / 255)
    print(f"accuracy {accuracy:.3f} with {counts.mac_reduction:.2f}× fewer MACs in the gated layers")


if __name__ == "__main__":
    main()
