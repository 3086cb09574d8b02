"""A network's pruning as plain values, and the dense network that is pruned so: in place, whole or not at all."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from dead_channels import Separable, images, silence_, trained_
from torch import Tensor, fx, nn

from headgate.baselines import (
    apply_pruned_structure_,
    fbs_,
    perforate_,
    pruned_structure,
    remove,
    without_layers,
)
from headgate.errors import ConfigError, HeadgateError, ModelError, ShapeError
from headgate.models import create


def test_of_a_dense_network_there_is_none() -> None:
    assert pruned_structure(Separable()) is None
    assert pruned_structure(Separable(), Separable()) is None


def test_as_plain_values(generator: torch.Generator) -> None:
    dense, x = trained_(create("digits-resnet", width=4), generator), images(generator, 1)
    model = copy.deepcopy(dense)
    perforate_(model, {"conv1": 0.5, "layer3.0.conv2": 0.5}, x)
    fbs_(model, 0.5, exclude=("layer3.*", "layer1.*", "*.downsample.0"))
    model.fc = nn.Linear(16, 3, bias=False)
    assert pruned_structure(model, dense) == {
        "perforated": {"conv1": [8, 8], "layer3.0.conv2": [2, 2]},
        "fbs": {
            "layer2.0.conv1": {"norm": "layer2.0.bn1", "channels": 4},
            "layer2.0.conv2": {"norm": "layer2.0.bn2", "channels": 4},
        },
        "channels": {"fc": {"in_features": 16, "out_features": 3, "bias": False}},
    }
    assert pruned_structure(model).keys() == {"perforated", "fbs"}


def test_channels_of_a_smaller_network(generator: torch.Generator) -> None:
    dense, x = trained_(Separable(), generator), images(generator)
    silence_(dense, "stem", "bn1", [0, 1, 5])
    model = remove(dense, x).model
    conv = {"in_channels": 5, "out_channels": 5, "groups": 5, "bias": False}
    assert pruned_structure(model, dense) == {
        "channels": {
            "stem": conv | {"in_channels": 3, "groups": 1},
            "bn1": {"num_features": 5},
            "depthwise": conv,
            "bn2": {"num_features": 5},
            "pointwise": conv | {"out_channels": 12, "groups": 1, "bias": True},  # of what bn2 made of the zeros
        }
    }
    again = Separable().double()
    apply_pruned_structure_(again, pruned_structure(model, dense))
    again.load_state_dict(model.state_dict())
    assert repr(again) == repr(model)
    assert torch.equal(again.eval()(x), model(x))


def test_with_a_norm_of_fbs_that_is_gone() -> None:
    model = create("digits-cnn", width=4)
    fbs_(model)
    model.features[4] = nn.Identity()
    with pytest.raises(
        ModelError, match=r"must keep the place of the norm that 'features.3' took over, got it removed"
    ):
        pruned_structure(model)


CONV = {"in_channels": 3, "out_channels": 4, "groups": 1, "bias": False}


@pytest.mark.parametrize(
    ("structure", "error", "message"),
    [
        ({"gates": {}}, ConfigError, r"structure must be what pruned_structure returns, .*unknown entries \['gates'\]"),
        ({"channels": [4]}, ConfigError, "structure must be what pruned_structure returns"),
        ({"channels": {"stem": CONV | {"groups": 2}}}, ConfigError, "channels of 'stem' must be .* that fit together"),
        (
            {"channels": {"stem": CONV | {"out_channels": 0}}},
            ConfigError,
            "channels of 'stem' must be in_channels, out",
        ),
        ({"channels": {"stem": CONV | {"out_channels": 4.0}}}, ConfigError, "channels of 'stem' must be .*4.0"),
        ({"channels": {"bn1": CONV}}, ConfigError, "channels of 'bn1' must be num_features that fit together"),
        ({"channels": {"stm": CONV}}, ModelError, "batch norm named 'stm', got Separable without it; near it: 'stem'"),
        ({"channels": {"": CONV}}, ModelError, "'' must be a convolution, linear layer or batch norm, got Separable"),
        ({"perforated": {"stem": [8]}}, ConfigError, "structure must be what pruned_structure returns"),
        ({"perforated": {"stem": [8, "8"]}}, ConfigError, "expected an integer of at least 1, got '8'"),
        ({"perforated": {"fc": [8, 8]}}, ModelError, "'fc' must be a Conv2d, got Linear"),
        ({"perforated": {"grouped": [2, 2]}}, ShapeError, r"in_size must be at least the kernel's reach \(3, 3\), got"),
        ({"fbs": {"stem": {"norm": "bn1"}}}, ConfigError, "structure must be what pruned_structure returns"),
        (
            {"fbs": {"stem": {"norm": "bn1", "channels": 9}}},
            ConfigError,
            "'stem' must compute at most 8 channels, got 9",
        ),
        ({"fbs": {"stem": {"norm": "bn1", "channels": True}}}, ConfigError, "expected an integer .* got True"),
        ({"fbs": {"stem": {"norm": "bn1", "channels": 2, "forced": "ajar"}}}, ConfigError, "unknown forced state"),
        ({"fbs": {"stem": {"norm": "fc", "channels": 2}}}, ModelError, "'fc' must be a BatchNorm2d, got Linear"),
        (
            {"fbs": {"stem": {"norm": "bn3", "channels": 2}}},
            ShapeError,
            "norm must have the convolution's 8 channels, got",
        ),
        (
            {"fbs": {name: {"norm": "bn1", "channels": 2} for name in ("stem", "pointwise")}},
            ConfigError,
            "a layer that is taken over twice",
        ),
        (
            {"fbs": {"stem": {"norm": "bn1", "channels": 2}}, "perforated": {"stem": [8, 8]}},
            ConfigError,
            "a layer that is taken over twice",
        ),
        ({"dropped": ["fc"]}, ModelError, "must be without the 1 layers that were dropped, got a Separable with 'fc'"),
    ],
)
def test_structures_that_do_not_fit_leave_the_model_untouched(
    structure: dict[str, Any], error: type[HeadgateError], message: str
) -> None:
    model = Separable()
    modules, state = list(model.named_modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        apply_pruned_structure_(model, {"channels": {"depthwise": CONV | {"in_channels": 4, "groups": 4}}} | structure)
    assert list(model.named_modules()) == modules
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------------- branches


def test_without_a_residual_branch(generator: torch.Generator) -> None:
    model, x = trained_(create("resnet20", width=4), generator), images(generator)
    smaller = without_layers(model, ["layer1.1.conv2", "layer1.1.conv1", "layer2.0.downsample.0"])
    assert smaller.get_submodule("layer1.0.conv1") is model.layer1[0].conv1
    silence_(model, "layer1.1.conv2", "layer1.1.bn2", [*range(4)])
    silence_(model, "layer2.0.downsample.0", "layer2.0.downsample.1", [*range(8)])
    torch.testing.assert_close(smaller(x), model(x))
    assert not {name for name, _ in smaller.named_parameters() if name.startswith("layer1.1.")}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["layer1.1.conv1"],
            "must make up residual branches of ResNet to be dropped, got 'layer1.1.conv1' that does not",
        ),
        (["conv1"], "must make up residual branches of ResNet to be dropped, got 'conv1'"),
        (["layer1.1.conv9"], "must have a convolution or linear layer named 'layer1.1.conv9'.*near it"),
        (["layer1.1.bn1"], "'layer1.1.bn1' must be a convolution or linear layer, got BatchNorm2d"),
    ],
)
def test_what_is_no_residual_branch(names: list[str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        without_layers(create("resnet20", width=4), names)


# -------------------------------------------------------------------------------------------------- the network's class


@pytest.mark.parametrize("name", ["torchvision/resnet18", "mobilenetv1-cifar", "vgg16-cifar"])
def test_removal_keeps_class_and_architecture(name: str, generator: torch.Generator) -> None:
    dense, x = create(name, 7, width=None if "/" in name else 8).eval(), images(generator, size=32).float()
    convs = [name for name, module in dense.named_modules() if isinstance(module, nn.Conv2d)]
    silence_(dense, convs[0], None, [0, 1])
    removal = remove(dense, x)
    assert type(removal.model) is type(dense)
    assert removal.model.architecture == dense.architecture
    with torch.no_grad():
        torch.testing.assert_close(removal.model(x), dense(x))


class Counting(nn.Module):
    """Counts on its channels, or has a layer that runs in training only."""

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self.stem, self.bn, self.counts = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), counts
        self.auxiliary, self.fc = nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        if self.counts:
            x = x * 2 if x.shape[1] == 8 else x
            return self.fc(x.mean((2, 3))) + self.auxiliary(x.mean((2, 3)))
        x = x.mean((2, 3))
        return self.auxiliary(x) if self.training else self.fc(x)


@pytest.mark.parametrize("counts", [True, False])
def test_a_class_that_would_compute_something_else_is_left(counts: bool, generator: torch.Generator) -> None:
    dense, x = trained_(Counting(counts=counts), generator), images(generator)
    dense.architecture = create("digits-cnn").architecture  # whatever it is called
    silence_(dense, "stem", "bn", [0, 1])
    removal = remove(dense, x)
    assert removal.channels["stem"] == (8, 6)
    assert isinstance(removal.model, fx.GraphModule)
    assert not hasattr(removal.model, "architecture")
    torch.testing.assert_close(removal.model(x), dense(x))
