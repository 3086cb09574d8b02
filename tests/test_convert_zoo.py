"""`gate_` on other people's networks: how many layers it gates, and that open gates change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from headgate.convert import apply_structure_, gate_, gated_structure
from headgate.fusion import fuse
from headgate.nn import GateConfig, GatedConv2d, force_gates

TOLERANCE = 1e-10
"""Relative to the largest output, in float64: two orders of the same sums, through at most 120 normalised layers."""

TORCHVISION: dict[str, tuple[int, int, int]] = {
    # name: (gated, all convolutions, image size)
    "resnet18": (19, 20, 40),
    "resnet50": (52, 53, 40),
    "resnext50_32x4d": (52, 53, 40),
    "vgg16_bn": (12, 13, 32),
    "alexnet": (4, 5, 64),
    "mobilenet_v2": (16 + 1, 52, 40),  # the expansions and the head
    "mobilenet_v3_large": (14 + 1, 62, 40),
    "densenet121": (6 + 12 + 24 + 16, 120, 40),  # the bottleneck of each dense layer
    "googlenet": (2 + 9 * 6, 59, 40),
    "shufflenet_v2_x1_0": (16 * 2 + 3 + 1, 56, 40),
    "regnet_y_400mf": (16 * 3 + 4, 85, 40),
    "efficientnet_b0": (15 + 1, 81, 40),
    "squeezenet1_1": (8 * 3 + 1, 26, 40),
    "convnext_tiny": (0, 22, 40),
    "inception_v3": (93, 96, 80),
}
TIMM: dict[str, tuple[int, int, int]] = {
    "resnet18": (19, 20, 40),
    "efficientnet_lite0": (15 + 1, 49, 40),
    "mobilenetv3_large_100": (14 + 1, 63, 40),
    "regnetx_002": (13 * 3 + 4, 44, 40),
}


def materialise(build: Callable[[], nn.Module], device: str = "meta") -> nn.Module:
    """The model in float64 and evaluation mode, with random parameters and statistics that keep its outputs sane.

    Built on the meta device where the model allows it: the models' own initialisations take seconds each.
    """
    with torch.device(device):
        model = build()
    for name in ("classifier", "fc"):  # VGG's has 124 million weights and nothing to gate
        head = getattr(model, name, None)
        if isinstance(head, (nn.Linear, nn.Sequential)) and not any(isinstance(m, nn.Conv2d) for m in head.modules()):
            setattr(model, name, nn.Identity())
    model = model.to_empty(device="cpu").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.normal_(0, (2 / fan_in) ** 0.5)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(0, 0.3)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
                module.weight.uniform_(0.5, 1)
                module.num_batches_tracked.zero_()  # type: ignore[union-attr]
    return model


def check(model: nn.Module, gated: int, convolutions: int, size: int) -> None:
    dense, image = copy.deepcopy(model), torch.randn(1, 3, size, size, dtype=torch.float64)
    report = gate_(model, GateConfig(groups=4), example_input=image)
    assert (len(report.gated), len(report.layers)) == (gated, convolutions), str(report)
    assert {r.name for r in report.gated} == {n for n, m in model.named_modules() if isinstance(m, GatedConv2d)}
    assert all(layer.reason for layer in report.dense)
    assert not model.training
    without_example = gate_(copy.deepcopy(dense), GateConfig(groups=4))
    assert [(x.name, x.groups) for x in without_example.layers] == [(x.name, x.groups) for x in report.layers]
    if not report.gated:
        assert "nothing to gate, the model is unchanged" in str(report)
        assert [type(m) for m in model.modules()] == [type(m) for m in dense.modules()]
        return
    with torch.no_grad():
        expected, plain = dense(image), model(image)
        with force_gates(model, "open"):
            opened, fused = model(image), fuse(model)(image)
        bound = TOLERANCE * expected.abs().max().item()
        assert expected.abs().max() > 0
        assert (opened - expected).abs().max() <= bound
        assert (fused - expected).abs().max() <= bound
        assert torch.isfinite(plain).all()
        again = copy.deepcopy(dense)
        apply_structure_(again, gated_structure(model))
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(image), plain)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    device = "cpu" if name.startswith("regnet") else "meta"  # computes its widths with tensors
    model = materialise(lambda: getattr(torchvision.models, name)(weights=None, **options), device)
    check(model, *TORCHVISION[name])


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    check(materialise(lambda: timm.create_model(name)), *TIMM[name])
