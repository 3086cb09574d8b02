"""Plans in bfloat16: the engine against float64 sums of the same rounded numbers, torch, and float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact import Exact, agree, exact_images
from plan_interpreter import PlanInterpreter
from plan_networks import EveryOperator, settle
from torch import Tensor, nn

import headgate as hg
from headgate.train import DataConfig
from headgate.train.prepare import evaluation_batches


def export_bfloat16(model: nn.Module, x: Tensor, folder: Path) -> tuple[hg.ExportReport, Path]:
    path = folder / "bfloat16.hgplan"
    return hg.export(model, path, example_input=x[:1], precision="bfloat16"), path


@pytest.mark.parametrize("granularity", ["activation", "group"])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"grouped": False}], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(16, 24), (20, 12), (64, 64)])
def test_gated_convolutions(
    granularity: Any, options: dict[str, Any], inputs: int, outputs: int, isa: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    x = exact_images(3)
    model = Exact(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
    hg.gate_(model, hg.GateConfig(groups=4, granularity=granularity, **options), example_input=x)
    settle(model, x)
    report, path = export_bfloat16(model, x, tmp_path)
    assert [layer.precision for layer in report.gated] == ["bfloat16"]
    assert [layer.precision for layer in report.dense] == ["float32: reads the images", "float32: last layer"]
    agree(path, x)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 24, 3, padding=1),
        nn.Conv2d(16, 24, (3, 2), stride=(2, 1), padding=(0, 1), groups=2),
        nn.Conv2d(20, 10, 1, stride=2),
        nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardswish])
def test_dense_convolutions(conv: nn.Conv2d, act: type[nn.Module], isa: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    x = exact_images(2)
    _, path = export_bfloat16(settle(Exact(conv, relu=act is nn.ReLU6, act=act), x), x, tmp_path)
    agree(path, x)


@pytest.mark.parametrize("granularity", ["activation", "group"])
def test_threads_and_batches_give_the_same_bits(granularity: Any, isa: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    x = torch.randn(37, 3, 9, 11)
    model = Exact(nn.Conv2d(16, 24, 3, padding=1))
    hg.gate_(model, hg.GateConfig(groups=4, granularity=granularity), example_input=x)
    _, path = export_bfloat16(settle(model, x), x, tmp_path)
    expected = hg.Engine(path, threads=1)(x.numpy())
    for threads in (1, 2, 3):
        engine = hg.Engine(path, threads=threads)
        for first, last in [(0, 1), (5, 6), (0, 2), (3, 36), (36, 37), (0, 37)]:
            assert np.array_equal(engine(x[first:last].numpy()), expected[first:last])


def test_an_image_that_is_not_finite_leaves_the_others_alone(isa: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    x = torch.randn(5, 3, 9, 11)
    _, path = export_bfloat16(settle(Exact(nn.Conv2d(16, 24, 2)), x), x, tmp_path)
    engine = hg.Engine(path, threads=1)
    expected = engine(x.numpy())
    x[1], x[3] = float("nan"), float("inf")
    found = engine(x.numpy())
    assert np.array_equal(found[[0, 2, 4]], expected[[0, 2, 4]])
    assert np.isnan(found[1]).all()


def test_the_products_are_those_of_torch(isa: str, tmp_path: Path) -> None:
    """torch's own bfloat16 convolution of the same numbers, whose result alone is rounded once more."""
    torch.manual_seed(5)
    x = exact_images(4)
    model = settle(Exact(nn.Conv2d(32, 48, 3, padding=1), act=nn.Identity), x)
    _, path = export_bfloat16(model, x, tmp_path)
    conv = PlanInterpreter(path).ops[1]
    interpreter = PlanInterpreter(path)
    weight, bias = (interpreter.tensors[conv[name]] for name in ("weight", "bias"))
    read = interpreter.run(x).values[conv["inputs"][0]].float()
    summed = torch.conv2d(read.bfloat16(), weight.bfloat16(), padding=1).float() + bias.view(1, -1, 1, 1)
    head = model.head
    assert isinstance(head, nn.Conv2d)
    with torch.no_grad():
        expected = head(summed).numpy()
    difference = np.abs(hg.Engine(path, threads=1)(x.numpy()) - expected).max()
    assert difference <= 2**-8 * np.abs(expected).max()


def test_every_other_operator(isa: str, tmp_path: Path) -> None:
    """Maps between convolutions are float32, whose rounding may tip a bfloat16: outputs are near, not equal."""
    torch.manual_seed(6)
    x = torch.randn(8, 3, 17, 19)
    report, path = export_bfloat16(settle(EveryOperator(), x), x, tmp_path)
    assert {layer.name: layer.precision for layer in report.dense}["depthwise"] == "float32: depthwise"
    assert sum(layer.precision == "bfloat16" for layer in report.dense) == 4
    interpreter = PlanInterpreter(path)
    expected = interpreter.run(x).output
    output = torch.from_numpy(hg.Engine(path, threads=1)(x.numpy())).view_as(expected)
    assert (output - expected).abs().max() <= 0.002 * expected.abs().max()
    interpreter.ops = [{key: value for key, value in op.items() if key != "precision"} for op in interpreter.ops]
    exact = interpreter.run(x).output
    assert 0 < (output - exact).abs().max() <= 0.02 * exact.abs().max()


@pytest.mark.parametrize("name", ["resnet20-cifar10-dense", "resnet20-cifar10-group", "resnet20-cifar10-activation"])
def test_shipped_networks_keep_their_accuracy(name: str, cifar10: Path, tmp_path: Path) -> None:
    """On 1000 test images. Rounding tips decisions of gates, and with them some close calls; the accuracy stays."""
    model = hg.pretrained(name)
    batches = list(evaluation_batches(model, DataConfig(source=str(cifar10)), limit=1000))
    x = torch.cat([images for images, *_ in batches]).contiguous()
    labels = torch.cat([labels for _, labels, *_ in batches]).numpy()
    classes = {}
    for precision in ("float32", "bfloat16"):
        path = tmp_path / precision
        hg.export(model, path, example_input=x[:1], precision=precision)
        classes[precision] = hg.Engine(path)(x.numpy()).argmax(1)
    accuracy = {precision: float((found == labels).mean()) for precision, found in classes.items()}
    assert abs(accuracy["bfloat16"] - accuracy["float32"]) <= 0.01
    assert (classes["bfloat16"] == classes["float32"]).mean() >= (0.99 if "dense" in name else 0.97)
