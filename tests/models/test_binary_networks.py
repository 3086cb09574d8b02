"""Binary networks: which of their layers are binary, and that all of those can be gated, trained fused, and saved."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from headgate import models
from headgate.checkpoint import load, save
from headgate.checkpoint.skeleton import identify_dense
from headgate.convert import apply_structure_, gate_, gated_structure
from headgate.errors import CheckpointError, ModelError
from headgate.fusion import fuse
from headgate.models.binary import HalvedShortcut
from headgate.nn import BinaryConv2d, GateConfig, force_gates, gated_layers

BINARY = [name for name in models.names() if "binary" in name]
CONFIG = GateConfig(groups=4, shuffle=True)


def create(name: str = "digits-binary-resnet", width: int = 16) -> tuple[nn.Module, Tensor]:
    """A network, and images for it."""
    model = models.create(name, width=width)
    assert isinstance(model.architecture, models.Architecture)
    return model, torch.randn(4, *model.architecture.input_shape())


def settled(model: nn.Module, x: Tensor) -> nn.Module:
    """Statistics and thresholds that are not the initial ones, in evaluation mode."""
    with torch.no_grad():
        for _ in range(3):
            model.train()(x)
        for layer in gated_layers(model).values():
            layer.gate.threshold.normal_(0, 0.3)
    return model.eval()


@pytest.mark.parametrize("name", BINARY)
def test_all_but_the_first_and_the_last_layer_is_binary(name: str) -> None:
    model, _ = create(name)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [isinstance(layer, BinaryConv2d) for layer in layers] == [False] + [True] * (len(layers) - 2) + [False]


@pytest.mark.parametrize("name", BINARY)
def test_every_binary_layer_is_gated_by_its_saturating_activation(name: str) -> None:
    model, x = create(name)
    report = gate_(model, CONFIG, example_input=x)
    assert [(layer.name, layer.reason) for layer in report.dense] == [(report.layers[0].name, "first convolution")]
    assert {(layer.activation, layer.two_sided, layer.groups) for layer in report.gated} == {("hardtanh", True, 4)}
    assert {layer.residual for layer in report.gated} == {"resnet" in name}
    assert all(layer.binary for layer in gated_layers(model).values())


@pytest.mark.parametrize("name", BINARY)
def test_gates_forced_open_change_nothing(name: str) -> None:
    model, x = create(name)
    dense = settled(model, x)
    gated = copy.deepcopy(dense)
    gate_(gated, CONFIG)
    with torch.no_grad(), force_gates(gated, "open"):
        torch.testing.assert_close(gated(x), dense(x), rtol=1e-4, atol=1e-4)


def test_a_shortcut_keeps_signs_and_makes_room_for_channels() -> None:
    x = torch.arange(1.0, 19.0).view(1, 2, 3, 3)
    y = HalvedShortcut(2, 4)(x)
    assert y[0, 0].tolist() == [[3.0, 4.5], [7.5, 9.0]]  # an odd map shrinks as under a convolution of stride 2
    assert y.shape == (1, 4, 2, 2)
    assert not y[0, 2:].any()


@pytest.mark.parametrize("granularity", [None, "activation", "group", "fc"])
def test_it_trains_the_same_fused(granularity: Any) -> None:
    model, x = create(width=8)
    model, x = model.double(), x.double()
    if granularity is not None:
        gate_(model, GateConfig(groups=2, granularity=granularity))
    model.train()
    twin = copy.deepcopy(model)
    fused = fuse(model)(x)
    plain = twin(x)
    assert (fused - plain).abs().max() < 1e-9
    fused.square().sum().backward()
    plain.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        assert (a.grad - b.grad).abs().max() <= 1e-8 * max(1.0, b.grad.abs().max().item()), name
        assert b.grad.abs().max() > 0, name


# --------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("config", [None, CONFIG, GateConfig(groups=2, granularity="group", norm="shared")], ids=str)
def test_a_checkpoint_gives_the_network_back(config: GateConfig | None, tmp_path: Path) -> None:
    model, x = create(width=8)
    if config is not None:
        gate_(model, config)
    settled(model, x)
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert torch.equal(again(x), model(x))
    assert repr(again) == repr(model)
    into, _ = create(width=8)
    assert torch.equal(load(tmp_path / "model.safetensors", model=into.eval())(x), model(x))


def test_a_gated_binary_network_is_no_other(tmp_path: Path) -> None:
    model, x = create(width=8)
    plain = copy.deepcopy(model)
    for block in [module for module in plain.modules() if hasattr(module, "conv")]:
        conv = block.conv
        block.conv = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, bias=False)
    gate_(model, CONFIG)
    settled(model, x)
    save(model, tmp_path / "model.safetensors")
    structure = gated_structure(model)
    assert all(layer["binary"] for layer in structure["layers"].values())
    with pytest.raises(ModelError, match=r"'stages\.0\.0\.conv' must be a BinaryConv2d, got Conv2d"):
        apply_structure_(plain, structure)
    with pytest.raises(CheckpointError, match="must be a BinaryConv2d, got Conv2d"):
        load(tmp_path / "model.safetensors", model=plain)

    gate_(plain, CONFIG)
    structure = gated_structure(plain)
    assert not any("binary" in layer for layer in structure["layers"].values())
    with pytest.raises(ModelError, match="must be a Conv2d that is not binary, got BinaryConv2d"):
        apply_structure_(create(width=8)[0], structure)


def test_a_torchvision_network_made_binary_is_not_named_as_torchvisions() -> None:
    with torch.device("meta"):
        model = torchvision.models.alexnet(num_classes=10)
        binary = copy.deepcopy(model)
        binary.features[3] = BinaryConv2d(64, 192, 5, padding=2)
    for network in (model, binary):
        gate_(network, GateConfig(groups=4))
    named = identify_dense(model)
    assert named is not None
    assert named.name == "torchvision/alexnet"
    assert identify_dense(binary) is None


def test_a_subclass_with_a_forward_of_its_own_stays_dense() -> None:
    class Doubled(BinaryConv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Doubled(8, 8, 3), nn.BatchNorm2d(8), nn.Hardtanh())
    (layer,) = [layer for layer in gate_(model, GateConfig(groups=2)).dense if layer.name == "1"]
    assert layer.reason == "Doubled computes something of its own"
