"""Exporting in bfloat16: what the file and the report say, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from plan_networks import Gated, settle
from torch import nn

import headgate as hg
from headgate.errors import ConfigError, PlanError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def described(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(str(path), framework="pt") as file:
        plan: dict[str, Any] = json.loads(file.metadata()["headgate.plan"])
    return plan


def test_the_file_is_that_of_float32_but_for_one_attribute(tmp_path: Path) -> None:
    model = settle(Gated(), X)
    for precision in ("float32", "bfloat16"):
        hg.export(model, tmp_path / precision, example_input=X[:1], precision=precision)
    plain, rounded = (described(tmp_path / precision) for precision in ("float32", "bfloat16"))
    assert {op["name"]: op.pop("precision", "") for op in rounded["ops"] if "weight" in op} == {
        "stem": "",
        "conv1": "bfloat16",
        "conv2": "bfloat16",
        "fc": "",
    }
    assert rounded == plain
    tensors = [safetensors.torch.load_file(tmp_path / precision) for precision in ("float32", "bfloat16")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_the_report(tmp_path: Path) -> None:
    model = settle(Gated(), X)
    report = hg.export(model, tmp_path / "plan", example_input=X[:1], precision="bfloat16")
    assert {layer.name: layer.precision for layer in report.dense} == {
        "stem": "float32: reads the images",
        "conv1": "bfloat16",
        "conv2": "bfloat16",
        "fc": "float32: last layer",
    }
    assert "bfloat16" in str(report)
    first = (tmp_path / "plan").read_bytes()
    hg.export(model, tmp_path / "plan", example_input=X[:1], precision="bfloat16")
    assert (tmp_path / "plan").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"granularity": "channel"}, "decides by channels"), ({"channel_bound": 0.2}, "channel_bound")],
)
def test_gates_over_whole_maps_stay_in_float32(options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = Gated()
    hg.gate_(model, hg.GateConfig(groups=4, **options), example_input=X)
    settle(model, X)
    mixed = nn.Sequential(model.stem, nn.Conv2d(16, 16, 1), model.conv1, nn.ReLU(), nn.Conv2d(32, 4, 1))
    report = hg.export(mixed.eval(), tmp_path / "plan", example_input=X, precision="bfloat16")
    assert [layer.precision for layer in report.gated] == [f"float32: {reason}"]


def test_sums_of_any_length_are_rounded(tmp_path: Path) -> None:
    """There is no limit as for integers."""
    model = nn.Sequential(nn.Conv2d(3, 1100, 1), nn.Conv2d(1100, 2, 8), nn.Conv2d(2, 2, 1)).eval()
    report = hg.export(model, tmp_path / "plan", example_input=X, precision="bfloat16")
    assert report.dense[1].precision == "bfloat16"
    found = hg.Engine(tmp_path / "plan", threads=1)(X.numpy())
    with torch.no_grad():
        expected = model(X).flatten(1).numpy()
    assert abs(found - expected).max() <= 0.02 * abs(expected).max()


def test_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got some for bfloat16; leave it out"):
        hg.export(Gated(), tmp_path / "plan", example_input=X, precision="bfloat16", calibration=X)
    assert not list(tmp_path.iterdir())


def test_a_reader_refuses_other_precisions_by_name(tmp_path: Path) -> None:
    path = tmp_path / "plan"
    hg.export(settle(Gated(), X), path, example_input=X, precision="bfloat16")
    content = path.read_bytes()
    path.write_bytes(content.replace(b"bfloat16", b"bfloat17"))
    with pytest.raises(PlanError, match='precision must be one of bfloat16, got "bfloat17"'):
        hg.Engine(path)
    path.write_bytes(content.replace(b"precision", b"prevision"))
    with pytest.raises(PlanError, match='unknown attribute "prevision"'):
        hg.Engine(path)
