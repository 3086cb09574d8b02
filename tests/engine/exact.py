"""Networks whose narrow convolutions read the same numbers in every arithmetic, and how they are compared."""

from __future__ import annotations

from pathlib import Path

import torch
from plan_interpreter import PlanInterpreter
from torch import Tensor, nn

import headgate as hg

ROUNDING = 1e-5
"""Relative to the largest output: float32 sums and affines."""
SAFE = 1e-5
"""Margins, in standard deviations, that float32 may decide otherwise."""


class Exact(nn.Module):
    """A gated convolution whose input every arithmetic computes alike: a stem of powers of two.

    `relu`: behind the stem; without it, the convolution's input has both signs.
    """

    def __init__(self, conv: nn.Conv2d, *, relu: bool = True, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        channels = conv.in_channels
        self.stem = nn.Conv2d(3, channels, 1, bias=False)
        self.stem.weight.data = torch.randint(-2, 3, (channels, 3, 1, 1)) * 0.25
        self.first = nn.ReLU() if relu else nn.Identity()
        self.conv, self.norm, self.act = conv, nn.BatchNorm2d(conv.out_channels), act()
        self.head = nn.Conv2d(conv.out_channels, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(self.first(self.stem(x))))))


def exact_images(count: int, height: int = 9, width: int = 11) -> Tensor:
    """Multiples of 1/64."""
    return torch.randint(-200, 200, (count, 3, height, width)) / 64


def agree(path: Path, x: Tensor) -> None:
    """Every decision and every output of the engine is that of the exact sums of the same rounded numbers."""
    interpreter = PlanInterpreter(path)
    run = interpreter.run(x)
    engine = hg.Engine(path, threads=2)
    output = torch.from_numpy(engine(x.numpy())).double()
    stats = {layer.name: layer for layer in engine.stats()}
    for name, gate in run.gates.items():
        assert gate.margin.abs().min() > SAFE, "choose another seed: a decision is in doubt"
        assert 0.02 < gate.own.double().mean() < 0.98
        assert stats[name].open_decisions == int(gate.own.sum())
    assert (output - run.output).abs().max() <= ROUNDING * run.output.abs().max()
