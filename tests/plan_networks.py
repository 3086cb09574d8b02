"""Networks with every operator and every gate that a plan has, ready to be exported; and how they are compared."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from plan_interpreter import PlanInterpreter
from torch import Tensor, nn

import headgate as hg
from headgate.nn import Observation, gated_layers, observe
from headgate.nn.sum_norm import SumNorm

ROUNDED = 2e-5
"""Relative to the largest output: what storing folded weights in float32 may change in a deep network in float64."""

FLOAT32 = 2e-3
"""The same where the model and the interpreter compute in float32, each in its own order."""

BAND = 1e-5
"""Margins smaller than this, in standard deviations, may be decided otherwise by folded weights in float32."""


@torch.no_grad()
def settle(model: nn.Module, x: Tensor) -> nn.Module:
    """Give every norm the statistics of `x`, and weights and biases that are not trivial; evaluation mode."""
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, SumNorm))]
    for norm in norms:
        if norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.3)
    for layer in gated_layers(model).values():
        layer.gate.threshold.normal_(std=0.3)
    before = [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        norm.momentum = 0.7
    for _ in range(3):
        model(x)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return model.eval()


@contextmanager
def decisions_of(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The decisions of each gated layer of what runs inside, by name; a second call of one is "name#2"."""
    found: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def note(name: str, _layer: Any, observation: Observation) -> None:
        calls[name] = calls.get(name, 0) + 1
        assert observation.decision is not None
        found[name if calls[name] == 1 else f"{name}#{calls[name]}"] = observation.decision.bool()

    with observe(model, note, decisions=True) if gated_layers(model) else nullcontext():
        yield found


def exported(model: nn.Module, x: Tensor, folder: Path) -> tuple[hg.ExportReport, PlanInterpreter]:
    path = folder / "model.hgplan"
    report = hg.export(model, path, example_input=x[:1])
    return report, PlanInterpreter(path)


def close(actual: Tensor, expected: Tensor, share: float) -> None:
    """Assert |actual − expected| ≤ share · the largest |expected|; a NaN fails."""
    assert torch.isfinite(expected).all()
    error = (actual.double().flatten(1) - expected.double().flatten(1)).abs().max()
    assert error <= share * expected.abs().max(), f"off by {float(error / expected.abs().max()):.2e}"


@torch.no_grad()
def compare(
    model: nn.Module, x: Tensor, folder: Path, *, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
) -> tuple[hg.ExportReport, PlanInterpreter]:
    """Export a settled float32 model and compare it with the interpreted plan, in float32 and in float64.

    Decisions must be equal outside a band around the thresholds, which must be nearly empty, and outputs must be close
    under the model's decisions. The model is left in the last dtype.
    """
    report, plan = exported(model, x, folder)
    for dtype in dtypes:
        share, band = (FLOAT32, FLOAT32) if dtype == torch.float32 else (ROUNDED, BAND)
        with decisions_of(model.to(dtype)) as decisions:
            expected = model(x.to(dtype))
        run = plan.run(x, dtype=dtype, decisions=decisions)
        close(run.output, expected, share)
        assert run.gates.keys() == decisions.keys()
        for name, gate in run.gates.items():
            near = gate.margin.abs() < band
            assert near.float().mean() < max(100 * band, 1e-3), name
            assert not ((gate.own != decisions[name]) & ~near).any(), name
    return report, plan


class EveryOperator(nn.Module):
    """One of each: activations, pools, heads, sums, products, concatenations, in many spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding="valid")
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, (3, 5), padding="same", dilation=(2, 1), groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8, affine=False)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4)
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.max_pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.norm3 = nn.BatchNorm2d(24)
        self.act = nn.Hardtanh(0.0, 6.0)
        self.drop = nn.Dropout2d(0.3)
        self.fc1, self.norm4 = nn.Linear(24 * 4, 16), nn.BatchNorm1d(16)
        self.fc2 = nn.Linear(16, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.stem(x)))
        y = F.silu(self.norm2(self.depthwise(x)), inplace=True)
        x = F.relu6(y + x) * 0.5 - 0.25
        x = torch.tanh(self.grouped(x))
        scale = x.mean([2, 3])
        scale = self.excite(F.relu(self.squeeze(scale))).sigmoid()
        x = scale.view(scale.size(0), -1, 1, 1) * x
        a = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
        b = self.max_pool(x)
        x = self.drop(self.act(self.norm3(torch.cat([a, 1 - b], dim=1))))
        gate = F.hardsigmoid(F.adaptive_avg_pool2d(x, (None, 1)).mean(2, keepdim=True))
        x = x * gate
        x = F.adaptive_avg_pool2d(x + F.avg_pool2d(x, 3, 1, 1), 2)
        x = F.dropout(torch.flatten(x, 1), training=self.training)
        return self.fc2(torch.relu_(self.norm4(self.fc1(x.clamp(min=0)))))


class Gated(nn.Module):
    """Two convolutions that `gate_` gates, with a residual and a bias, and a head."""

    def __init__(
        self, *, norm: bool = True, act: type[nn.Module] = nn.ReLU, bias: bool = True, channels: int = 16
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.conv1 = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1, bias=bias)
        self.norm1 = nn.BatchNorm2d(2 * channels) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(2 * channels, 2 * channels, (3, 1), padding=(1, 0), bias=bias)
        self.norm2 = nn.BatchNorm2d(2 * channels) if norm else nn.Identity()
        self.act = act()
        self.sum_first = norm  # only a norm is followed through a sum to its activation
        self.fc = nn.Linear(2 * channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(F.relu(self.stem(x)))))
        y = self.norm2(self.conv2(x))
        x = self.act(y + x) if self.sum_first else self.act(y) + x
        return self.fc(x.mean((-1, -2)))
