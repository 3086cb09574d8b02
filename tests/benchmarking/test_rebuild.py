"""Networks rebuilt from plan files compute what the engine does, in layers that libraries know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from plan_interpreter import PlanInterpreter
from plan_networks import EveryOperator, settle
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

import headgate as hg
from headgate.benchmarking.plain import ChannelShuffle
from headgate.benchmarking.rebuild import ChannelSelection, layer_of, rebuild
from headgate.errors import ModelError
from headgate.exporting.plan import AvgPool, Conv, MaxPool, read, write
from headgate.exporting.static import grouped, opened
from headgate.models import create
from headgate.nn import GateConfig, force_gates, gated_layers

ROUNDING = 1e-4
"""Relative to the largest output: float32 sums, Winograd's among them, in another order through a deep network."""


@torch.no_grad()
def agree(network: nn.Module, path: Path, x: Tensor) -> None:
    """A network computes what the engine makes of a plan file."""
    expected = torch.from_numpy(hg.Engine(path, threads=1)(x.numpy()))
    output = network(x.clone())
    assert output.shape == expected.shape
    assert (output - expected).abs().max() <= ROUNDING * expected.abs().max()


def torchvision_network(name: str, **options: Any) -> nn.Module:
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    if name in ("alexnet", "vgg16_bn"):  # a small classifier, where its own has most of the weights
        features = 256 * 36 if name == "alexnet" else 512 * 49
        network.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(features, 16), nn.ReLU(inplace=True), nn.Linear(16, 10)
        )
    return network


@pytest.mark.parametrize("name", ["resnet20-cifar10-activation", "resnet20-cifar10-group"])
def test_trained_networks(name: str, tmp_path: Path) -> None:
    model, x = hg.pretrained(name), torch.randn(2, 3, 32, 32)
    hg.export(model, tmp_path / "gated.hgplan", example_input=x)
    with force_gates(model, "open"):
        hg.export(model, tmp_path / "open.hgplan", example_input=x)
    agree(rebuild(opened(read(tmp_path / "gated.hgplan"))), tmp_path / "open.hgplan", x)


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: create("resnet18-cifar", width=8), 16),
        (lambda: create("digits-cnn"), 8),
        (lambda: torchvision_network("alexnet"), 64),
        (lambda: torchvision_network("mobilenet_v2", width_mult=0.25), 64),
        (lambda: torchvision_network("squeezenet1_1"), 64),
        (lambda: torchvision_network("mobilenet_v3_small", width_mult=0.5), 64),
        pytest.param(lambda: torchvision_network("vgg16_bn"), 32, marks=pytest.mark.slow),
        pytest.param(lambda: torchvision_network("densenet121"), 32, marks=pytest.mark.slow),
    ],
    ids=["resnet18", "digits-cnn", "alexnet", "mobilenet_v2", "squeezenet", "mobilenet_v3", "vgg16_bn", "densenet"],
)
def test_gated_networks(build: Callable[[], nn.Module], size: int, tmp_path: Path) -> None:
    model = build()
    x = torch.randn(4, 1 if size == 8 else 3, size, size)
    hg.gate_(model, GateConfig(groups=4, granularity="group"), example_input=x[:1])
    assert gated_layers(model)
    settle(model, x)
    hg.export(model, tmp_path / "gated.hgplan", example_input=x)
    with force_gates(model, "open"):
        hg.export(model, tmp_path / "open.hgplan", example_input=x)
    network = rebuild(opened(read(tmp_path / "gated.hgplan")))
    agree(network, tmp_path / "open.hgplan", x)
    agree(fuse(network), tmp_path / "open.hgplan", x)  # as PyTorch is timed
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert len([m for m in network.modules() if isinstance(m, nn.Linear)]) == len(linear)


def test_every_operator(tmp_path: Path) -> None:
    """Exported again, it is the same plan: the layers have the attributes that they had."""
    model, x = EveryOperator(), torch.randn(3, 3, 27, 30)
    hg.export(settle(model, x), tmp_path / "a.hgplan", example_input=x)
    plan = read(tmp_path / "a.hgplan")
    network = rebuild(plan)
    agree(network, tmp_path / "a.hgplan", x)
    hg.export(network, tmp_path / "b.hgplan", example_input=x)
    again = read(tmp_path / "b.hgplan")
    assert again.values == plan.values
    for one, other in zip(again.operators, plan.operators, strict=True):
        for key, value in vars(other).items():
            mine = getattr(one, key)
            assert key == "name" or (torch.equal(mine, value) if isinstance(value, Tensor) else mine == value), key


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"shuffle": True}, ChannelShuffle), ({}, None), ({"grouped": False}, ChannelSelection)],
)
def test_listed_channels(options: dict[str, Any], kind: type[nn.Module] | None, tmp_path: Path) -> None:
    """Gates that were held closed when the plan was exported."""
    model, x = create("resnet20", width=8), torch.randn(4, 3, 16, 16)
    hg.gate_(model, GateConfig(**{"groups": 4} | options), example_input=x[:1])
    settle(model, x)
    with force_gates(model, "closed"):
        hg.export(model, tmp_path / "m.hgplan", example_input=x)
    network = rebuild(read(tmp_path / "m.hgplan"))
    agree(network, tmp_path / "m.hgplan", x)
    found = {type(m) for m in network.modules()} & {ChannelShuffle, ChannelSelection}
    assert found == ({kind} if kind else set())


def test_grouped_networks(tmp_path: Path) -> None:
    model, x = create("resnet20", width=8), torch.randn(4, 3, 16, 16)
    hg.gate_(model, GateConfig(groups=4), example_input=x[:1])
    hg.export(settle(model, x), tmp_path / "m.hgplan", example_input=x)
    plan = grouped(read(tmp_path / "m.hgplan"), 2)
    write(plan, tmp_path / "grouped.hgplan")
    agree(rebuild(plan), tmp_path / "grouped.hgplan", x)


def test_the_dense_network_is_the_interpreters_with_open_gates(tmp_path: Path) -> None:
    """With no code of headgate's on the other side."""
    model, x = create("resnet20", width=8), torch.randn(3, 3, 16, 16)
    hg.gate_(model, GateConfig(groups=4, granularity="group"), example_input=x[:1])
    hg.export(settle(model, x), tmp_path / "m.hgplan", example_input=x)
    interpreter = PlanInterpreter(tmp_path / "m.hgplan")
    opens = {name: torch.ones_like(gate.own) for name, gate in interpreter.run(x).gates.items()}
    expected = interpreter.run(x, decisions=opens).output.flatten(1)
    with torch.no_grad():
        output = rebuild(opened(read(tmp_path / "m.hgplan")))(x)
    assert (output - expected).abs().max() <= ROUNDING * expected.abs().max()


class Vectors(nn.Module):
    """1×1 maps on every way: into sums, norms and products, and out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3 * 8 * 8, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.side = nn.Conv2d(3, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x.flatten(1)).sigmoid()
        z = self.norm(self.second(y) + y) + y
        w = (self.side(x) * self.third(y)[:, :, None, None]).mean((2, 3))
        return torch.tanh(z + w)


def test_vectors(tmp_path: Path) -> None:
    model, x = Vectors(), torch.randn(4, 3, 8, 8)
    hg.export(settle(model, x), tmp_path / "m.hgplan", example_input=x)
    network = rebuild(read(tmp_path / "m.hgplan"))
    agree(network, tmp_path / "m.hgplan", x)


def test_a_map_is_a_map_and_a_1x1_image_is_no_vector(tmp_path: Path) -> None:
    for model, x in (
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6()), torch.randn(2, 3, 6, 5)),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(4, 2)), torch.randn(2, 3, 1, 1)),
        (nn.Sequential(nn.SiLU(), nn.Conv2d(3, 4, 1)), torch.randn(2, 3, 1, 1)),
    ):
        hg.export(model.eval(), tmp_path / "m.hgplan", example_input=x)
        agree(rebuild(read(tmp_path / "m.hgplan")), tmp_path / "m.hgplan", x)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size", [7, 8, 9, 10])
def test_pools_have_torchs_sizes(size: int, ceil: bool, tmp_path: Path) -> None:
    pools = (nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=ceil), nn.AvgPool2d(2, 3, 1, ceil_mode=ceil))
    x = torch.randn(2, 3, size, size + 1)
    for pool in pools:
        hg.export(nn.Sequential(nn.Conv2d(3, 3, 1), pool).eval(), tmp_path / "m.hgplan", example_input=x)
        agree(rebuild(read(tmp_path / "m.hgplan")), tmp_path / "m.hgplan", x)


def test_images_are_not_written_over(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 4, 4)
    hg.export(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()).eval(), tmp_path / "m.hgplan", example_input=x)
    before = x.clone()
    rebuild(read(tmp_path / "m.hgplan"))(x)
    assert torch.equal(x, before)


def test_layers_are_found_and_what_torch_has_not_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.AvgPool2d(2))
    hg.export(model.eval(), tmp_path / "m.hgplan", example_input=torch.zeros(1, 3, 10, 10))
    plan = read(tmp_path / "m.hgplan")
    conv = plan.operators[0]
    assert isinstance(conv, Conv)
    layer: Any = layer_of(rebuild(plan), conv)
    assert torch.equal(layer.weight, conv.weight)
    for kind, name in ((MaxPool, "1"), (AvgPool, "2")):
        odd = tuple(replace(o, stride=(1, 7)) if isinstance(o, kind) else o for o in plan.operators)  # type: ignore[call-arg]
        with pytest.raises(ModelError, match=f"'{name}' must pool"):
            rebuild(replace(plan, operators=odd))
    model = create("resnet20", width=8)
    hg.gate_(model, GateConfig(groups=4), example_input=torch.zeros(1, 3, 8, 8))
    hg.export(model.eval(), tmp_path / "m.hgplan", example_input=torch.zeros(1, 3, 8, 8))
    with pytest.raises(ModelError, match=r"operators that torch has, got 'gated_conv' at 'layer1\.0\.conv1'"):
        rebuild(read(tmp_path / "m.hgplan"))
