"""headgate's own networks: shapes, parameter names, and that a graph can be taken of them."""

from __future__ import annotations

import pytest
import torch
import torch.fx
import torchvision
from torch import nn

from headgate import models

OWN = [name for name in models.names() if "/" not in name]
PARAMETERS = {  # counted by hand or published
    "resnet18-cifar": 11_173_962,
    "resnet20": 272_474,
    "resnet32": 466_906,
    "resnet56": 855_770,
    "vgg16-cifar": 14_724_042,
    "mobilenetv1-cifar": 3_217_226,
    "binary-resnet20": 269_850,
    "binary-vgg-small": 4_660_106,
}


def test_every_own_model_is_here() -> None:
    assert set(OWN) == {*PARAMETERS, "alexnet-cifar", "digits-cnn", "digits-resnet", "digits-binary-resnet"}


@pytest.mark.parametrize("name", OWN)
def test_output_has_one_logit_per_class(name: str) -> None:
    model = models.create(name, 7, width=8).eval()
    assert isinstance(model.architecture, models.Architecture)
    x = torch.randn(3, *model.architecture.input_shape())
    assert model(x).shape == (3, 7)


@pytest.mark.parametrize("name", OWN)
def test_graph_computes_the_same(name: str) -> None:
    model = models.create(name, width=8).eval()
    assert isinstance(model.architecture, models.Architecture)
    x = torch.randn(2, *model.architecture.input_shape())
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", OWN)
def test_convolutions_are_followed_by_batch_norm_and_have_no_bias(name: str) -> None:
    graph = torch.fx.symbolic_trace(models.create(name, width=8))
    module_of = dict(graph.named_modules())
    convolutions = [n for n in graph.graph.nodes if isinstance(module_of.get(str(n.target)), nn.Conv2d)]
    assert convolutions
    for node in convolutions:
        layer = module_of[str(node.target)]
        (user,) = node.users
        assert isinstance(module_of[str(user.target)], nn.BatchNorm2d)
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is None


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_number_of_parameters(name: str, count: int) -> None:
    with torch.device("meta"):
        model = models.create(name)
    assert sum(p.numel() for p in model.parameters()) == count


def test_resnet18_has_torchvisions_names_and_shapes() -> None:
    with torch.device("meta"):
        ours = models.create("resnet18-cifar", 1000).state_dict()
        theirs = torchvision.models.resnet18().state_dict()
    assert list(ours) == list(theirs)
    assert {k for k in ours if ours[k].shape != theirs[k].shape} == {"conv1.weight"}


def test_vgg16_numbers_its_features_as_torchvision() -> None:
    with torch.device("meta"):
        ours = models.create("vgg16-cifar", 1000)
        theirs = torchvision.models.vgg16_bn()
    assert [type(m) for m in ours.get_submodule("features").children()] == [type(m) for m in theirs.features]


@pytest.mark.parametrize("name", OWN)
def test_width_scales_the_channels(name: str) -> None:
    def widest(width: int) -> int:
        return max(m.out_channels for m in models.create(name, width=width).modules() if isinstance(m, nn.Conv2d))

    assert widest(16) == 2 * widest(8)


@pytest.mark.parametrize("name", ["resnet20", "vgg16-cifar", "mobilenetv1-cifar"])
def test_activations_keep_their_scale_at_initialisation(name: str) -> None:
    model = models.create(name)
    logits = model(torch.randn(8, 3, 32, 32))
    assert torch.isfinite(logits).all()
    assert 0.01 < logits.std() < 10
