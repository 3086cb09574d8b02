"""Exporting in 8-bit integers: ranges, what stays in float32, and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from plan_networks import Gated, settle
from torch import Tensor, nn

import headgate as hg
from headgate.errors import ConfigError, DataError, DtypeError, ExportError, ShapeError
from headgate.exporting.int8 import Range

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def operators(path: Path) -> dict[str, dict[str, Any]]:
    with safetensors.safe_open(str(path), framework="pt") as file:
        return {op["name"]: op for op in json.loads(file.metadata()["headgate.plan"])["ops"]}


def export_int8(model: nn.Module, path: Path, calibration: Any = X) -> hg.ExportReport:
    return hg.export(model, path, example_input=X[:1], precision="int8", calibration=calibration)


def test_ranges_are_those_of_the_calibration_images(tmp_path: Path) -> None:
    model = settle(Gated(), X)
    seen: dict[str, list[Tensor]] = {"conv1": [], "conv2": []}
    for name, inputs in seen.items():
        hook = model.get_submodule(name).register_forward_pre_hook(lambda _, x, inputs=inputs: inputs.append(x[0]))
        with torch.no_grad():
            model(X)
        hook.remove()
    export_int8(model, tmp_path / "plan")
    described = operators(tmp_path / "plan")
    for name, (read,) in seen.items():
        assert described[name]["input_zero"] == 0, "behind a ReLU"
        assert described[name]["input_scale"] == pytest.approx(float(read.max()) / 255, rel=1e-6)
    assert "input_scale" not in described["stem"]
    assert "input_scale" not in described["fc"]


def test_ways_to_give_the_images(tmp_path: Path) -> None:
    model = settle(Gated(), X)
    export_int8(model, tmp_path / "tensor")
    export_int8(model, tmp_path / "batches", [X[:1], X[1:]])
    labelled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, torch.zeros(4)), batch_size=3)
    export_int8(model, tmp_path / "loader", labelled)
    expected = operators(tmp_path / "tensor")
    for other in ("batches", "loader"):
        for name in ("conv1", "conv2"):  # torch's sums may depend on the batch
            found = operators(tmp_path / other)[name]
            assert found["input_scale"] == pytest.approx(expected[name]["input_scale"], rel=1e-5)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_is_called_twice_has_two_ranges(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(10 * self.conv(self.stem(x))))

    export_int8(Twice().eval(), tmp_path / "plan")
    described = operators(tmp_path / "plan")
    assert described["conv#2"]["input_scale"] > 2 * described["conv"]["input_scale"]
    assert 0 < described["conv"]["input_zero"] < 255


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [(0.0, 51.0, 0.2, 0), (-1.0, 1.0, 2 / 255, 127), (-5.1, -1.0, 0.02, 255), (3.0, 5.1, 0.02, 0), (0.0, 0.0, 1.0, 0)],
)
def test_quantisation_of_a_range(low: float, high: float, scale: float, zero: int) -> None:
    found = Range(low, high).quantisation()
    assert found == (pytest.approx(scale, rel=1e-6), zero)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"granularity": "channel"}, "decides by channels"), ({"channel_bound": 0.2}, "channel_bound")],
)
def test_gates_over_whole_maps_stay_in_float32(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = Gated()
    hg.gate_(model, hg.GateConfig(groups=4, **options), example_input=X)
    report = export_int8(settle(model, X), tmp_path / "plan")
    # All convolutions but the first and the last are gated: nothing is left, and the report has no reasons to give.
    assert {layer.precision for layer in (*report.gated, *report.dense)} == {"float32"}
    mixed = nn.Sequential(model.stem, nn.Conv2d(16, 16, 1), model.conv1, nn.ReLU(), nn.Conv2d(32, 4, 1))
    report = export_int8(mixed.eval(), tmp_path / "plan")
    assert [layer.precision for layer in report.gated] == [f"float32: {reason}"]
    assert reason in str(report)


def test_the_report_and_the_file(tmp_path: Path) -> None:
    model = settle(Gated(), X)
    report = export_int8(model, tmp_path / "int8")
    assert {layer.name: layer.precision for layer in report.dense} == {
        "stem": "float32: reads the images",
        "conv1": "int8",
        "conv2": "int8",
        "fc": "float32: last layer",
    }
    plain = hg.export(model, tmp_path / "float32", example_input=X[:1])
    assert {layer.precision for layer in plain.dense} == {"float32"}
    assert [layer.weight_bytes for layer in report.dense] == [layer.weight_bytes for layer in plain.dense]
    first = (tmp_path / "int8").read_bytes()
    export_int8(model, tmp_path / "int8")
    assert (tmp_path / "int8").read_bytes() == first


@pytest.mark.usefixtures("unchecked_types")
def test_errors(tmp_path: Path) -> None:
    model, path = settle(Gated(), X), tmp_path / "plan"

    def refuse(error: type[Exception], message: str, precision: Any = "int8", calibration: Any = X) -> None:
        with pytest.raises(error, match=message):
            hg.export(model, path, example_input=X[:1], precision=precision, calibration=calibration)
        assert not any(module._forward_pre_hooks for module in model.modules())

    refuse(ConfigError, "precision must be one of float32, int8, bfloat16, got 'float16'", "float16")
    refuse(ConfigError, "calibration must be given for int8 .*got none for int8; give images", calibration=None)
    refuse(ConfigError, "got some for float32; leave it out", "float32")
    refuse(ConfigError, "calibration must hold images, got none", calibration=[])
    refuse(ConfigError, "calibration must hold images, got none", calibration=X[:0])
    refuse(DtypeError, "calibration must be images .*, got int", calibration=3)
    refuse(DtypeError, "calibration must be images .*, got str", calibration="images")
    refuse(DtypeError, "floating-point tensors .*, got torch.uint8", calibration=X.to(torch.uint8))
    refuse(DtypeError, "floating-point tensors .*, got list", calibration=[([1.0], 0)])
    refuse(ShapeError, r"images \(n, 3, 8, 8\), as example_input, got \(4, 3, 8, 7\)", calibration=X[..., :7])
    refuse(ShapeError, r"got \(3, 8, 8\)", calibration=[X[0]])
    for value in (math.nan, math.inf):
        refuse(DataError, "calibration must be finite", calibration=X + value)
    model.norm1.running_var.fill_(1e-38)
    model.norm1.eps = 0.0
    refuse(ExportError, "'conv2': its input is not finite on the calibration images", calibration=X * 1e30)
    assert not list(tmp_path.iterdir())
