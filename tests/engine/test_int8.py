"""Plans in 8-bit integers: the engine against exact integer arithmetic, and against float32."""

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


def export_int8(model: nn.Module, x: Tensor, folder: Path) -> tuple[hg.ExportReport, Path]:
    path = folder / "int8.hgplan"
    return hg.export(model, path, example_input=x[:1], precision="int8", calibration=x), path


@pytest.mark.parametrize("granularity", ["activation", "group"])
@pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"grouped": False}], ids=str)
@pytest.mark.parametrize("relu", [True, False])
def test_gated_convolutions(granularity: Any, options: dict[str, Any], relu: bool, isa: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    x = exact_images(3)
    model = Exact(nn.Conv2d(16, 24, 3, padding=1, bias=False), relu=relu)
    config = hg.GateConfig(groups=4, granularity=granularity, **options)
    hg.gate_(model, config, example_input=x)
    settle(model, x)
    report, path = export_int8(model, x, tmp_path)
    assert [layer.precision for layer in report.gated] == ["int8"]
    assert [layer.precision for layer in report.dense] == ["float32: reads the images", "float32: last layer"]
    agree(path, x)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(16, 24, 3, padding=1),
        nn.Conv2d(16, 24, (3, 2), stride=(2, 1), padding=(0, 1), groups=2),
        nn.Conv2d(20, 10, 1, stride=2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardswish])
def test_dense_convolutions(conv: nn.Conv2d, act: type[nn.Module], isa: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    x = exact_images(2)
    _, path = export_int8(settle(Exact(conv, relu=act is nn.ReLU6, act=act), x), x, tmp_path)
    agree(path, x)


def test_instruction_sets_and_batches_give_the_same_bits(isa: str, tmp_path: Path) -> None:
    """The integer part alone: what its sums become is the same, too, as nothing in it is fused."""
    torch.manual_seed(3)
    x = exact_images(37)
    model = Exact(nn.Conv2d(16, 24, 3, padding=1))
    hg.gate_(model, hg.GateConfig(groups=4, granularity="group"), example_input=x)
    _, path = export_int8(settle(model, x), x, tmp_path)
    expected = hg.Engine(path, threads=1)(x.numpy())
    for threads in (1, 2, 3):
        engine = hg.Engine(path, threads=threads)
        for first, last in [(0, 1), (5, 6), (0, 2), (3, 36), (36, 37), (0, 37)]:
            assert np.array_equal(engine(x[first:last].numpy()), expected[first:last])


def test_every_other_operator(isa: str, tmp_path: Path) -> None:
    """Maps between integer convolutions are float32, whose rounding may tip an integer: outputs are near, not equal."""
    torch.manual_seed(4)
    x = torch.randn(8, 3, 17, 19)
    report, path = export_int8(settle(EveryOperator(), x), x, tmp_path)
    assert {layer.name: layer.precision for layer in report.dense}["depthwise"] == "float32: depthwise"
    assert sum(layer.precision == "int8" for layer in report.dense) == 4
    expected = PlanInterpreter(path).run(x).output
    output = torch.from_numpy(hg.Engine(path, threads=1)(x.numpy())).view_as(expected)
    assert (output - expected).abs().max() <= 0.02 * expected.abs().max()
    exact = without_int8(path, x)
    assert 0 < (output - exact).abs().max() <= 0.1 * exact.abs().max()


def without_int8(path: Path, x: Tensor) -> Tensor:
    """What the plan computes in float64 without its 8-bit attributes."""
    interpreter = PlanInterpreter(path)
    int8 = ("input_scale", "input_zero")
    interpreter.ops = [{key: value for key, value in op.items() if key not in int8} for op in interpreter.ops]
    return interpreter.run(x).output


@pytest.mark.parametrize("name", ["resnet20-cifar10-dense", "resnet20-cifar10-group", "resnet20-cifar10-activation"])
def test_shipped_networks_keep_their_accuracy(name: str, cifar10: Path, tmp_path: Path) -> None:
    """On 1000 test images. Rounding tips decisions of gates, and with them some close calls; the accuracy stays."""
    model = hg.pretrained(name)
    batches = list(evaluation_batches(model, DataConfig(source=str(cifar10)), limit=1000))
    x = torch.cat([images for images, *_ in batches]).contiguous()
    labels = torch.cat([labels for _, labels, *_ in batches]).numpy()
    classes = {}
    for precision, options in (("float32", {}), ("int8", {"precision": "int8", "calibration": x[:256]})):
        path = tmp_path / precision
        hg.export(model, path, example_input=x[:1], **options)  # type: ignore[arg-type]
        classes[precision] = hg.Engine(path)(x.numpy()).argmax(1)
    accuracy = {precision: float((found == labels).mean()) for precision, found in classes.items()}
    assert abs(accuracy["int8"] - accuracy["float32"]) <= 0.01
    assert (classes["int8"] == classes["float32"]).mean() >= (0.985 if "dense" in name else 0.95)
