"""Architectures by name, to and from JSON, and found again from a model."""

from __future__ import annotations

import copy
import json
import sys

import pytest
import torch
import torchvision
from torch import nn

from headgate import models
from headgate.errors import ModelError
from headgate.models import Architecture


def test_names_hold_own_and_torchvision() -> None:
    assert {"resnet20", "digits-cnn", "torchvision/resnet18", "torchvision/vgg16_bn"} <= set(models.names())
    assert not any("quantized" in n or "fcn" in n or "rcnn" in n for n in models.names())


@pytest.mark.parametrize("name", ["resnet20", "digits-cnn", "torchvision/squeezenet1_1"])
def test_a_built_model_can_be_built_again_from_json(name: str) -> None:
    with torch.device("meta"):
        model = models.create(name, 6)
        text = json.dumps(model.architecture.to_dict())  # type: ignore[operator, union-attr]
        again = Architecture.from_dict(json.loads(text)).build()
    assert again.architecture == model.architecture
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_defaults_are_filled_in() -> None:
    full = Architecture(name="digits-cnn", num_classes=10, width=32, in_channels=1)
    assert models.create("digits-cnn").architecture == Architecture(name="digits-cnn") == full
    imagenet = Architecture(name="torchvision/resnet18")
    assert (imagenet.num_classes, imagenet.in_channels, imagenet.width) == (1000, 3, None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet21", "did you mean .*'resnet20'"),
        ("torchvision/resnet19", "did you mean .*'torchvision/resnet18'"),
        ("torchvision/fcn_resnet50", "got 'torchvision/fcn_resnet50'"),
        ("qqqq", r"models.names\(\) lists them"),
        ("torchvision/", "expected the name of a model"),
    ],
)
def test_unknown_name_lists_near_matches(name: str, hint: str) -> None:
    with pytest.raises(ModelError, match=hint):
        models.create(name)


def test_unusable_options_are_refused() -> None:
    with pytest.raises(ModelError, match="only headgate's own models have one"):
        models.create("torchvision/resnet18", width=8)
    with pytest.raises(ModelError, match="expected in_channels=3, got 1; use the model from timm"):
        models.create("torchvision/resnet18", in_channels=1)
    with pytest.raises(ModelError, match="expected width to be a positive integer, got 0"):
        Architecture(name="resnet20", width=0)
    with pytest.raises(ModelError, match="expected num_classes to be a positive integer, got -1"):
        Architecture(name="resnet20", num_classes=-1)


@pytest.mark.parametrize("values", [{}, {"name": 3}, {"name": "resnet20", "depth": 4}])
def test_foreign_dictionaries_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="expected an architecture with a name"):
        Architecture.from_dict(values)


@pytest.mark.parametrize("builder", ["resnet18", "vgg11_bn", "squeezenet1_1", "mobilenet_v3_small", "densenet121"])
def test_identify_finds_a_torchvision_builder(builder: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model_builder(builder)(num_classes=12)
    assert models.identify(model) == Architecture(name=f"torchvision/{builder}", num_classes=12, in_channels=3)


@pytest.mark.parametrize("builder", ["googlenet", "inception_v3"])
def test_models_with_auxiliary_outputs_are_built_without(builder: str) -> None:
    with torch.device("meta"):
        model = models.create(f"torchvision/{builder}")
    assert not any("aux" in name and p.numel() for name, p in model.named_parameters())


def test_identify_reads_the_attribute_also_of_a_copy() -> None:
    model = models.create("resnet20", width=8)
    assert models.identify(copy.deepcopy(model)) == model.architecture


def test_identify_never_names_an_edited_or_foreign_model() -> None:
    with torch.device("meta"):
        edited = torchvision.models.resnet18()
        edited.layer2[0].conv1.stride = (1, 1)  # same shapes, another function
        grown = torchvision.models.resnet18()
        grown.fc = nn.Sequential(nn.Linear(512, 100), nn.Linear(100, 10))
    assert models.identify(edited) is None
    assert models.identify(grown) is None
    assert models.identify(nn.Linear(2, 2)) is None


def test_timm_models_are_built_and_identified() -> None:
    timm = pytest.importorskip("timm", reason="timm is an optional dependency")
    with torch.device("meta"):
        model = timm.create_model("resnet10t", num_classes=5, in_chans=1)
    expected = Architecture(name="timm/resnet10t", num_classes=5, in_channels=1)
    assert models.identify(model) == expected
    assert models.identify(models.create("timm/resnet10t", 5, in_channels=1)) == expected
    assert expected.input_shape()[0] == 1
    with pytest.raises(ModelError, match=r"did you mean .*timm/resnet10t"):
        models.create("timm/resnet10tt")


def test_without_timm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"pip install 'headgate\[timm\]'"):
        models.create("timm/resnet10t")


def test_input_shapes() -> None:
    assert Architecture(name="digits-cnn").input_shape() == (1, 8, 8)
    assert Architecture(name="resnet20", in_channels=1).input_shape() == (1, 32, 32)
    assert Architecture(name="torchvision/resnet18").input_shape() == (3, 224, 224)
    with pytest.raises(ModelError, match="expected the name of a model"):
        Architecture(name="torchvision/nothing-like-it").input_shape()
