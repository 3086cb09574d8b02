"""Dense networks: the interpreted plan computes what the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from plan_networks import EveryOperator, close, compare, exported, settle
from torch import Tensor, nn

import headgate as hg
from headgate import models
from headgate.errors import ExportError


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18-cifar", "resnet20", "resnet32", "resnet56", "vgg16-cifar", "mobilenetv1-cifar", "alexnet-cifar"),
        *("digits-cnn", "digits-resnet"),
    ],
)
def test_own_networks(name: str, tmp_path: Path) -> None:
    model = models.create(name, width=8)
    x = torch.randn(4, *model.architecture.input_shape())  # type: ignore[union-attr, operator]
    report, _ = compare(settle(model, x), x, tmp_path)
    assert not report.gated
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(report.dense) == len(layers)
    left = {operator.kind for operator in report.operators}
    assert left <= {"conv", "max_pool", "adaptive_avg_pool"}, "every norm, sum and activation is fused"


def shrunk(name: str) -> nn.Module:
    """A network of torchvision's, with a small classifier where its own has most of the weights."""
    options: dict[str, Any] = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=10, **options)
    if name in ("alexnet", "vgg16_bn"):
        features = 256 * 36 if name == "alexnet" else 512 * 49
        drops, act = nn.Dropout(), nn.ReLU(inplace=True)
        model.classifier = nn.Sequential(drops, nn.Linear(features, 16), act, nn.Linear(16, 10))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("resnet18", set()),
        ("resnet34", set()),
        ("resnet50", set()),
        ("vgg16_bn", set()),
        ("alexnet", set()),
        ("mobilenet_v2", set()),
        ("mobilenet_v3_large", {"mul"}),
        ("efficientnet_b0", {"mul"}),
        ("squeezenet1_1", {"concat"}),
        ("googlenet", {"concat"}),
        ("densenet121", {"concat", "affine", "avg_pool"}),
    ],
)
def test_torchvision(name: str, kinds: set[str], tmp_path: Path) -> None:
    size = 64 if name == "alexnet" else 40
    model, x = shrunk(name), torch.randn(2, 3, size, size)
    report, _ = compare(settle(model, x), x, tmp_path, dtypes=(torch.float64,))
    left = {operator.kind for operator in report.operators} - {"conv", "max_pool", "adaptive_avg_pool"}
    assert left == kinds


def test_every_operator(tmp_path: Path) -> None:
    model, x = EveryOperator(), torch.randn(3, 3, 27, 30)
    report, _ = compare(settle(model, x), x, tmp_path)
    kinds = {operator.kind for operator in report.operators}
    assert kinds == {
        "conv",
        "max_pool",
        "avg_pool",
        "adaptive_avg_pool",
        "add",
        "mul",
        "concat",
        "affine",
        "activation",
    }
    assert report.vanished == ("drop", "dropout")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_of_two_branches_the_later_convolution_takes_the_sum(name: str, tmp_path: Path) -> None:
    report, plan = exported(
        torchvision.models.get_model(name, weights=None).eval(), torch.zeros(1, 3, 32, 32), tmp_path
    )
    sums = [op for op in plan.ops if len(op["inputs"]) == 2]
    assert len(sums) == (8 if name == "resnet18" else 16)
    assert all(op["kind"] == "conv" and op["activation"] == "relu" for op in sums)
    assert "residual" in str(report)


class Sum(nn.Module):
    """A sum whose sides are read elsewhere too, or which come in another order."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        match self.case:
            case "both sides read again":
                a, b = self.a(x), self.b(x)
                return (a + b).relu() * a * b
            case "earlier convolution, later pool":
                a = self.a(x)
                return (F.max_pool2d(x, 3, 1, 1) + a).relu()
            case "norm behind the sum":
                return self.norm(self.a(x) + x).relu()
            case "activation before the sum":
                return self.norm(self.a(x)).relu() + x
            case "twice the same":
                a = self.a(x)
                return a + a
            case "unused branch":
                self.b(x)
                return self.a(x)
            case "norm behind two readers":
                a = self.a(x)
                return self.norm(a) * a
            case _:
                return self.a(self.a(x).relu()) + self.b(x)  # the same layer twice


@pytest.mark.parametrize(
    ("case", "kinds"),
    [
        ("both sides read again", ["conv", "conv", "add", "mul", "mul"]),
        ("earlier convolution, later pool", ["max_pool", "conv"]),
        ("norm behind the sum", ["conv", "affine"]),
        ("activation before the sum", ["conv", "add"]),
        ("twice the same", ["conv", "add"]),
        ("unused branch", ["conv"]),
        ("norm behind two readers", ["conv", "affine", "mul"]),
        ("shared layer", ["conv", "conv", "conv"]),
    ],
)
def test_fusion(case: str, kinds: list[str], tmp_path: Path) -> None:
    model, x = Sum(case), torch.randn(2, 3, 6, 5)
    report, _ = compare(settle(model, x), x, tmp_path)
    assert [operator.kind for operator in report.operators] == kinds


class InPlace(nn.Module):
    """Reads a tensor, under another name, after it was overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 3, 1), nn.Dropout()
        self.act = nn.Hardtanh(0, 6, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv(x)
        b = self.drop(a)
        c = F.relu(b, inplace=True)
        d = a.add_(c)  # twice relu(a)
        self.act(d)
        return a + self.conv(x).clamp_(0, 6) + F.relu6(x, True) + x


def test_operations_in_place_are_seen_by_every_later_reader(tmp_path: Path) -> None:
    model, x = InPlace(), 4 * torch.randn(2, 3, 6, 5)
    _, plan = exported(model.double(), x, tmp_path)
    with torch.no_grad():
        expected = model.eval()(x.double().clone())
    close(plan.run(x).output, expected, 1e-6)


def test_the_batch_of_the_example_does_not_matter(tmp_path: Path) -> None:
    model = settle(EveryOperator(), torch.randn(3, 3, 27, 30))
    files = []
    for batch in (1, 2, 5):
        hg.export(model, tmp_path / "model.hgplan", example_input=torch.randn(batch, 3, 27, 30))
        files.append((tmp_path / "model.hgplan").read_bytes())
    assert files[0] == files[1] == files[2]


class Branching(nn.Module):
    """Its control flow depends on shapes: it can be traced with an example only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] > 8:
            x = F.max_pool2d(x, x.shape[2] // 8)
        y = self.conv(x)
        return y.view(y.shape[0], 4, -1).mean(-1)


def test_control_flow_on_shapes_is_followed(tmp_path: Path) -> None:
    model, x = Branching().eval(), torch.randn(3, 3, 16, 16)
    report, _ = compare(model, x, tmp_path)
    assert [operator.kind for operator in report.operators] == ["max_pool", "conv", "adaptive_avg_pool"]


def test_dtypes(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 27, 30)
    model = settle(EveryOperator(), x)
    hg.export(model, tmp_path / "single.hgplan", example_input=x.half())
    hg.export(model.double(), tmp_path / "double.hgplan", example_input=x)
    assert (tmp_path / "single.hgplan").read_bytes() == (tmp_path / "double.hgplan").read_bytes()
    report, _ = exported(model.bfloat16(), x, tmp_path)
    assert report.bytes == (tmp_path / "single.hgplan").stat().st_size


class SpatialAttention(nn.Module):
    """A product with one number per pixel, as many as there are channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3))).sigmoid().view(-1, 1, 4, 4)


def test_a_product_over_pixels_is_not_taken_for_one_over_channels(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected a map"):
        hg.export(SpatialAttention().eval(), tmp_path / "m.hgplan", example_input=torch.zeros(1, 16, 4, 4))
    assert not list(tmp_path.iterdir())


def test_a_plan_of_nothing_but_an_idle_pool_has_an_operator(tmp_path: Path) -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(4)).eval()
    x = torch.randn(2, 3, 4, 4)
    _, plan = exported(model, x, tmp_path)
    assert [op["kind"] for op in plan.ops] == ["adaptive_avg_pool"]
    close(plan.run(x).output, x, 1e-6)
