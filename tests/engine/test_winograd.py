"""Networks whose convolutions the engine computes by Winograd's algorithm, against the interpreter and torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from agreement import FLOAT32, check, plan_of
from plan_interpreter import PlanInterpreter
from plan_networks import settle
from torch import Tensor, nn

import headgate as hg


class Winograd(nn.Module):
    """Dense 3×3 convolutions of stride 1 that differ in padding, channels, residual and activation.

    At 22×27 those of up to 128 channels are computed in tiles of 4 pixels a side, `wide` in tiles of 2.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 1)
        self.same = nn.Conv2d(24, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.valid = nn.Conv2d(24, 40, 3)
        self.full = nn.Conv2d(40, 17, 3, padding=2)
        self.uneven = nn.Conv2d(17, 160, 3, padding=(2, 0))
        self.wide = nn.Conv2d(160, 120, 3, padding=1)
        self.fc = nn.Linear(120, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.norm(self.same(x)) + x)
        x = nn.functional.hardswish(self.valid(x))
        x = nn.functional.relu6(self.full(x))
        x = torch.sigmoid(self.uneven(x))
        return self.fc(torch.relu(self.wide(x)).mean((2, 3)))


class Groups(nn.Module):
    """A stem of stride 2, groups of 8 outputs and groups of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.narrow = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(32, 64, 3, padding=1, groups=4)
        self.fc = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.narrow(x) + x)
        return self.fc(torch.relu(self.wide(x)).mean((2, 3)))


@pytest.fixture(params=[Winograd, Groups])
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(12)
    x = torch.randn(35, 3, 22, 27)
    return settle(request.param(), x[:4]), x


def test_agrees_with_the_interpreter_and_with_torch(
    network: tuple[nn.Module, Tensor], isa: str, tmp_path: Path
) -> None:
    model, x = network
    path = plan_of(model, x, tmp_path)
    output = torch.from_numpy(hg.Engine(path, threads=2)(x[:2].numpy()))
    check(PlanInterpreter(path).run(x[:2]), output, {})
    with torch.no_grad():
        expected = model(x[:2])
    assert (output - expected).abs().max() <= FLOAT32 * expected.abs().max()


@pytest.mark.parametrize("size", [(22, 27), (4, 6)], ids=str)
def test_results_do_not_depend_on_batch_or_threads(
    network: tuple[nn.Module, Tensor], size: tuple[int, int], isa: str, tmp_path: Path
) -> None:
    """Small maps have fewer tiles than threads want: those share the tiles and split the outputs."""
    model, x = network
    x = x[:, :, : size[0], : size[1]].contiguous()
    path = plan_of(model, x, tmp_path)
    expected = hg.Engine(path, threads=1)(x.numpy())
    assert np.isfinite(expected).all()
    for threads in (1, 2, 3):
        engine = hg.Engine(path, threads=threads)
        for first, last in [(0, 1), (5, 6), (0, 2), (3, 34), (34, 35), (0, 35)]:
            assert np.array_equal(engine(x[first:last].numpy()), expected[first:last])
