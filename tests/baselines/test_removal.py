"""What removal leaves computes what was there, and is as small as it can be told by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from dead_channels import Separable, images, silence_, trained_
from torch import Tensor, nn

from headgate import GateConfig, count, export, gate_, load, save
from headgate.baselines.removal import Removal, remove
from headgate.errors import ModelError
from headgate.models.registry import create


def same(model: nn.Module, removal: Removal, x: Tensor) -> None:
    """In float64, up to the rounding of sums of a few thousand terms."""
    with torch.no_grad():
        expected, actual = model(x), removal.model(x)
    assert not torch.equal(expected[0], expected[1])  # a dead network would equal any other
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def macs(model: nn.Module, x: Tensor) -> dict[str, int]:
    return {layer.name: layer.dense_macs for layer in count(model, x).layers}


def test_filters_go_with_the_inputs_that_read_them(generator: torch.Generator) -> None:
    model, x = trained_(create("digits-cnn", width=4), generator), images(generator, 1)
    silence_(model, "features.0", "features.1", [0, 3])
    silence_(model, "features.7", "features.8", [1, 2, 5])
    removal = remove(model, x)
    same(model, removal, x)
    assert removal.channels == {
        "features.0": (4, 2), "features.3": (4, 4), "features.7": (8, 5), "features.10": (8, 8), "classifier": (10, 10)
    }  # fmt: skip
    assert macs(removal.model, x) == {
        "features.0": 1 * 2 * 9 * 64,
        "features.3": 2 * 4 * 9 * 64,
        "features.7": 4 * 5 * 9 * 16,
        "features.10": 5 * 8 * 9 * 16,
        "classifier": 8 * 10,
    }
    conv = removal.model.get_submodule("features.3")
    assert type(conv) is nn.Conv2d
    assert (conv.in_channels, conv.out_channels, conv.weight.shape) == (2, 4, (4, 2, 3, 3))
    assert removal.kept == {"classifier": "it is an output of the model"}
    assert "features.7: 8 → 5 channels" in str(removal)


def test_the_model_itself_is_left_as_it_is(generator: torch.Generator) -> None:
    model, x = trained_(create("digits-cnn", width=4), generator), images(generator, 1)
    silence_(model, "features.0", "features.1", [0, 3])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    removal = remove(model, x)
    with torch.no_grad():
        for parameter in removal.model.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["digits-cnn", "digits-resnet", "mobilenetv1-cifar"])
def test_a_network_without_dead_channels_stays(name: str, generator: torch.Generator) -> None:
    model = trained_(create(name, width=4, in_channels=3), generator)
    x = images(generator)
    removal = remove(model, x)
    same(model, removal, x)
    assert all(before == after for before, after in removal.channels.values())
    assert not removal.dropped


def test_a_constant_channel_goes_into_the_bias_where_nothing_is_padded(generator: torch.Generator) -> None:
    model, x = trained_(Separable(), generator), images(generator)
    silence_(model, "pointwise", None, [0, 6])  # its norm makes a constant of it, which `grouped` reads unpadded
    silence_(model, "stem", None, [2])  # here `depthwise` pads: its border would see where the constant ends
    with torch.no_grad():
        model.bn3.bias[[0, 6]] = 3.0
        model.bn1.bias[2] = 3.0
    removal = remove(model, x)
    same(model, removal, x)
    assert removal.channels["pointwise"] == (12, 10)
    assert removal.channels["stem"] == (8, 8)


def test_a_convolution_without_a_bias_gets_one_for_a_constant(generator: torch.Generator) -> None:
    model = trained_(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        ),
        generator,
    )  # fmt: skip
    x = images(generator)
    silence_(model, "0", "1", [1])  # sigmoid(0) is a half
    removal = remove(model, x)
    same(model, removal, x)
    assert removal.channels["0"] == (4, 3)
    assert removal.model.get_submodule("3").bias is not None


def test_a_channel_that_nothing_reads_goes(generator: torch.Generator) -> None:
    model, x = trained_(create("digits-cnn", width=4), generator), images(generator, 1)
    with torch.no_grad():
        model.get_submodule("features.3").weight[:, [1, 2]] = 0.0
    removal = remove(model, x)
    same(model, removal, x)
    assert removal.channels["features.0"] == (4, 2)


def test_what_leads_only_to_an_unread_channel_goes_with_it(generator: torch.Generator) -> None:
    model, x = trained_(Separable(), generator), images(generator)
    with torch.no_grad():
        model.pointwise.weight[:, [3, 4]] = 0.0
    removal = remove(model, x)
    same(model, removal, x)
    assert removal.channels["stem"] == removal.channels["depthwise"] == (8, 6)


def test_a_flattened_map_takes_all_its_features_along(generator: torch.Generator) -> None:
    model, x = trained_(create("alexnet-cifar", width=4, in_channels=3), generator), images(generator, size=32)
    silence_(model, "features.14", "features.15", [0, 5, 6])
    silence_(model, "classifier.1", None, [1])
    removal = remove(model, x)
    same(model, removal, x)
    assert removal.model.get_submodule("classifier.1").weight.shape == (63, 13 * 16)
    assert removal.model.get_submodule("classifier.4").weight.shape == (64, 63)


def test_a_residual_stream_loses_what_all_its_members_lack(generator: torch.Generator) -> None:
    model, x = trained_(create("resnet20", width=4), generator), images(generator)
    stream = [("conv1", "bn1"), *((f"layer1.{i}.conv2", f"layer1.{i}.bn2") for i in range(3))]
    for conv, norm in stream:
        silence_(model, conv, norm, [1])
    silence_(model, "layer1.0.conv2", "layer1.0.bn2", [1, 2])  # 2 alone is not enough
    silence_(model, "layer1.1.conv1", "layer1.1.bn1", [0, 3])
    removal = remove(model, x)
    same(model, removal, x)
    assert {removal.channels[conv] for conv, _ in stream} == {(4, 3)}
    assert removal.channels["layer1.1.conv1"] == (4, 2)
    assert removal.model.get_submodule("layer2.0.downsample.0").weight.shape == (8, 3, 1, 1)
    assert macs(removal.model, x)["layer1.1.conv2"] == 2 * 3 * 9 * 64


def test_a_branch_that_adds_nothing_is_dropped(generator: torch.Generator) -> None:
    model, x = trained_(create("digits-resnet", width=4, in_channels=3), generator), images(generator)
    silence_(model, "layer1.0.conv2", "layer1.0.bn2", [0, 1, 2, 3])
    silence_(model, "layer2.0.conv2", "layer2.0.bn2", list(range(8)))
    removal = remove(model, x)
    same(model, removal, x)
    assert set(removal.dropped) == {
        "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2"
    }  # fmt: skip
    assert macs(removal.model, x).keys() == {
        "conv1", "layer2.0.downsample.0", "layer3.0.conv1", "layer3.0.conv2", "layer3.0.downsample.0", "fc"
    }  # fmt: skip
    assert "layer1.0.conv1: dropped" in str(removal)


def test_torchvisions_sums_in_place(generator: torch.Generator) -> None:
    model, x = trained_(create("torchvision/resnet18"), generator), images(generator, size=32)
    silence_(model, "layer1.0.conv2", "layer1.0.bn2", list(range(64)))
    silence_(model, "layer1.1.conv1", "layer1.1.bn1", list(range(0, 64, 2)))
    silence_(model, "layer4.1.conv2", "layer4.1.bn2", list(range(511)))
    removal = remove(model, x)
    same(model, removal, x)
    assert removal.dropped == ("layer1.0.conv1", "layer1.0.conv2")
    assert removal.channels["layer1.1.conv1"] == (64, 32)


def test_depthwise_channels_go_with_what_they_read(generator: torch.Generator) -> None:
    model, x = trained_(Separable(), generator), images(generator)
    silence_(model, "stem", "bn1", [0, 1, 5])
    silence_(model, "depthwise", "bn2", [0, 5, 6])
    silence_(model, "bn2", None, [1])
    removal = remove(model, x)
    same(model, removal, x)
    depthwise = removal.model.get_submodule("depthwise")
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (4, 4, 4)  # 6: not read by `pointwise`
    assert macs(removal.model, x)["depthwise"] == 4 * 9 * 64
    assert macs(removal.model, x)["pointwise"] == 4 * 12 * 64


def test_groups_lose_equal_numbers(generator: torch.Generator) -> None:
    model, x = trained_(Separable(), generator), images(generator)
    silence_(model, "pointwise", "bn3", [0, 1, 2, 7])  # three of the first group, one of the second
    silence_(model, "grouped", None, [3, 6, 7])
    removal = remove(model, x)
    same(model, removal, x)
    grouped = removal.model.get_submodule("grouped")
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (10, 6, 2)
    assert macs(removal.model, x)["grouped"] == 6 * 5 * 9 * 36


def test_a_group_that_is_dead_on_both_sides_goes_whole(generator: torch.Generator) -> None:
    model, x = trained_(Separable(), generator), images(generator)
    silence_(model, "pointwise", "bn3", [0, 1, 2, 3, 4, 5])
    silence_(model, "grouped", None, [0, 1, 2, 3])
    removal = remove(model, x)
    same(model, removal, x)
    grouped = removal.model.get_submodule("grouped")
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (6, 4, 1)


def test_one_channel_stays(generator: torch.Generator) -> None:
    model, x = trained_(create("digits-cnn", width=4), generator), images(generator, 1)
    silence_(model, "features.0", "features.1", [0, 1, 2, 3])
    removal = remove(model, x)
    assert removal.channels["features.0"] == (4, 1)
    with torch.no_grad():
        torch.testing.assert_close(removal.model(x), model(x), rtol=0, atol=1e-13)


def test_what_is_not_understood_keeps_its_channels_and_is_named(generator: torch.Generator) -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.c = nn.Conv2d(8, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3))

    model, x = trained_(Mixer(), generator), images(generator)
    silence_(model, "a", None, [0, 1])
    removal = remove(model, x)
    same(model, removal, x)
    assert removal.channels["a"] == (4, 4)
    assert removal.kept["a"] == "cat (cat) may mix channels"
    assert "a: all channels stay, cat (cat) may mix channels" in str(removal)


def test_a_layer_that_runs_twice_keeps_its_channels(generator: torch.Generator) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(torch.relu(self.conv(self.stem(x)))).mean((2, 3)))

    model, x = trained_(Twice(), generator), images(generator)
    silence_(model, "stem", None, [0])
    removal = remove(model, x)
    same(model, removal, x)
    assert removal.kept["stem"] == "read by conv, which is called 2 times"


def test_the_smaller_network_trains(generator: torch.Generator) -> None:
    model, x = trained_(create("digits-resnet", width=4, in_channels=3), generator), images(generator)
    silence_(model, "layer1.0.conv1", "layer1.0.bn1", [0, 1])
    smaller = remove(model.train(), x).model
    assert smaller.training
    smaller(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())


def test_bad_input(generator: torch.Generator) -> None:
    model = create("digits-cnn", width=4)
    with pytest.raises(ModelError, match="example_input must fit the model"):
        remove(model, torch.zeros(1, 3, 8, 8))
    gate_(model, GateConfig(groups=2))
    with pytest.raises(ModelError, match="model must be dense, got a gated DigitsCNN"):
        remove(model, torch.zeros(1, 1, 8, 8))


def test_a_branch_stays_where_its_shortcut_is_read_later(generator: torch.Generator) -> None:
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = torch.relu_(x + self.conv(x))  # would write over x, were it x
            return self.fc((y * x).mean((2, 3)))

    model, x = trained_(Later(), generator), images(generator)
    silence_(model, "conv", None, [0, 1, 2, 3])
    removal = remove(model, x)
    same(model, removal, x)
    assert not removal.dropped


def test_the_smaller_network_is_exported_saved_and_loaded(tmp_path: Path, generator: torch.Generator) -> None:
    model, x = trained_(create("digits-resnet", width=4, in_channels=3), generator).float(), images(generator).float()
    silence_(model, "layer1.0.conv2", "layer1.0.bn2", [0, 1, 2, 3])
    silence_(model, "layer2.0.conv1", "layer2.0.bn1", [0, 5])
    smaller, again = remove(model, x).model, remove(model, x).model
    report = export(smaller, tmp_path / "plan.safetensors", example_input=x)
    assert [operator.kind for operator in report.operators].count("conv") == 8  # of nine and the head, two went
    with torch.no_grad():
        again.get_submodule("conv1").weight.zero_()
        save(smaller, tmp_path / "model.safetensors")
        load(tmp_path / "model.safetensors", model=again)
        assert torch.equal(again(x), smaller(x))
