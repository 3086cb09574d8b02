"""The file and the report; and what an export refuses."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from plan_networks import Gated, exported, settle
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import headgate as hg
from headgate import models
from headgate.errors import CheckpointError, DtypeError, ExportError, ModelError, ShapeError
from headgate.nn import GateConfig, gated_layers

X = torch.zeros(1, 3, 8, 8)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = models.create("resnet20")
    hg.gate_(model, GateConfig(groups=4, shuffle=True))
    files = []
    for i, copy in enumerate((model, model, hg.load(saved(model, tmp_path)))):
        hg.export(copy, tmp_path / f"{i}.hgplan", example_input=torch.randn(2, 3, 32, 32))
        files.append((tmp_path / f"{i}.hgplan").read_bytes())
    assert files[0] == files[1] == files[2]


def saved(model: nn.Module, folder: Path) -> Path:
    hg.save(model, folder / "model.safetensors")
    return folder / "model.safetensors"


def test_weights_are_in_the_file_once(tmp_path: Path) -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), conv, nn.ReLU(), conv, nn.ReLU())
    report, plan = exported(model, X, tmp_path)
    assert [op["name"] for op in plan.ops] == ["0", "1", "1#2"]
    assert plan.ops[1]["weight"] == plan.ops[2]["weight"]
    weights = sum(p.numel() for p in model.parameters())
    assert sum(tensor.numel() for tensor in plan.tensors.values()) == weights
    assert report.bytes < 4 * weights + 3000


def test_metadata_holds_the_description_alone(tmp_path: Path) -> None:
    hg.export(Gated().eval(), tmp_path / "model.hgplan", example_input=X)
    with safetensors.safe_open(tmp_path / "model.hgplan", framework="np") as file:
        assert list(file.metadata()) == ["headgate.plan"]
        plan = json.loads(file.metadata()["headgate.plan"])
        assert {file.get_tensor(name).dtype.str for name in file.keys()} <= {"<f4", "<i4"}  # noqa: SIM118
    assert plan["version"] == 1
    assert plan["producer"].startswith("headgate")
    assert plan["values"][plan["output"]] == {"shape": [5, 1, 1]}


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = settle(Gated(), torch.randn(2, 3, 8, 8)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    attributes = set(vars(model))
    hg.export(model, tmp_path / "model.hgplan", example_input=X)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert set(vars(model)) == attributes


def test_report(tmp_path: Path) -> None:
    model = Gated()
    hg.gate_(model, GateConfig(groups=4, granularity="group"))
    path = tmp_path / "model.hgplan"
    report = hg.export(model, path, example_input=X)
    lines = str(report).splitlines()
    assert lines[0] == f"Gated → {path}: 5 operators, 2 gated and 2 dense convolutions"
    cells = [line.split() for line in lines[1:]]
    assert cells[0] == ["operator", "kind", "size", "output", "gate", "precision", "fused", "MACs", "bytes"]
    assert cells[1][:8] == ["stem", "conv", "3→16", "3×3", "16×8×8", "dense", "float32", "relu"]
    assert cells[2][:7] == ["conv1", "gated_conv", "16→32", "3×3", "/2", "32×4×4", "group"]
    stem, conv1, conv2, fc = 16 * 64 * 27, 32 * 16 * 16 * 9, 32 * 16 * 32 * 3, 5 * 32
    assert report.macs == stem + conv1 + conv2 + fc
    assert report.base_macs == stem + (conv1 + conv2) // 4 + fc
    assert report.bytes == path.stat().st_size
    assert report.in_shape == (3, 8, 8)
    assert report.out_shape == (5, 1, 1)
    assert json.loads(json.dumps(report.to_dict()))["macs"] == report.macs
    assert report.operators[2].weight_bytes == 4 * (32 * 32 * 3 + 4 * 8 + 2 * 4 + 6 * 32)


# -------------------------------------------------------------------------------------------------------------- errors


class Function(nn.Module):
    """A convolution, then a function of its output and its input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 1), function
        self.norm, self.fc = nn.BatchNorm2d(4, track_running_stats=False), nn.Linear(8, 2)
        self.table = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x), x)  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[Any, str]] = {
    "function": (lambda m, y, x: torch.fft.rfft(y).real, r"'fft_rfft' \(fft_rfft"),
    "transpose": (lambda m, y, x: y.permute(0, 2, 3, 1), r"'permute' .* an operator that a plan has, got 'permute'"),
    "gelu": (lambda m, y, x: nn.functional.gelu(y), "got 'gelu'; replace it"),
    "mean over the batch": (lambda m, y, x: y.mean(0, keepdim=True), "per image, got .1, 4, 8, 8. for a batch of 2"),
    "mean over all": (lambda m, y, x: y - y.mean(), "expected one result per image"),
    "mean over channels": (lambda m, y, x: y.mean(1), r"mean over height, width or both, got dim=1"),
    "batch in a view": (lambda m, y, x: y.view(-1, 4), r"got \(128, 4\) for a batch of 2 images"),
    "batch in a concat": (lambda m, y, x: torch.cat([y, y]), r"got \(4, 4, 8, 8\) for a batch"),
    "concat of rows": (lambda m, y, x: torch.cat([y, y], 2), "a concatenation of channels"),
    "batch in arithmetic": (lambda m, y, x: y / y.size(0), "computed from the images, got 'size'"),
    "parameter": (lambda m, y, x: y * m.table, "computed from the images, got 'table'"),
    "broadcast sum": (lambda m, y, x: y + y.mean((2, 3), keepdim=True), "a sum or product of equal shapes"),
    "scaled sum": (lambda m, y, x: torch.add(y, y, alpha=2), "no options, got alpha=2"),
    "division": (lambda m, y, x: 1 / y, "expected a division by a number"),
    "clamp": (lambda m, y, x: y.clamp(-1, 1), "clamp to 0 … 6 or 0 … ∞, got -1 … 1"),
    "hardtanh": (lambda m, y, x: nn.functional.hardtanh(y, 0, 4), "got 0 … 4"),
    "always dropped": (lambda m, y, x: nn.functional.dropout(y), "a dropout that rests in evaluation"),
    "batch statistics": (lambda m, y, x: m.norm(y), "'norm' .*track_running_stats=True"),
    "function with weights": (lambda m, y, x: nn.functional.conv2d(x, m.conv.weight), "given its weights"),
    "linear on a map": (lambda m, y, x: m.fc(y), r"'fc' .*expected a vector per image, got \(4, 8, 8\)"),
    "reshaped map": (lambda m, y, x: m.conv(y.reshape(-1, 16, 4, 4)[:, :3]), "expected an index"),
    "reshaped output": (lambda m, y, x: y.flatten(1), r"a map or a vector as the output, got \(256,\)"),
    "regrouped": (lambda m, y, x: nn.functional.max_pool2d(y.view(-1, 2, 16, 8), 2), "got .2, 16, 8. made from a map"),
    "indices": (lambda m, y, x: nn.functional.max_pool2d(y, 2, return_indices=True)[0], "cannot export"),
    "divisor": (lambda m, y, x: nn.functional.avg_pool2d(y, 2, divisor_override=1), "got divisor_override=1"),
    "uneven windows": (lambda m, y, x: nn.functional.adaptive_max_pool2d(y, 3), "windows of one size"),
    "several outputs": (lambda m, y, x: (y, x), "returns one tensor, got a tuple of 2; wrap the model"),
    "parts": (lambda m, y, x: y.chunk(2, 1)[0], "'chunk'"),
    "input": (lambda m, y, x: x, "one that returns its input"),
    "constant": (lambda m, y, x: m.table, "expected operands that are computed from the images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_a_plan_cannot_express(case: str, tmp_path: Path) -> None:
    function, message = REFUSED[case]
    with pytest.raises(ExportError, match=message):
        hg.export(Function(function), tmp_path / "model.hgplan", example_input=X)
    assert not list(tmp_path.iterdir())


class OwnConv(nn.Conv2d):
    """Computes something of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).abs()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), "padding with zeros, got padding_mode='reflect'"),
        (nn.Conv2d(3, 4, (3, 4), padding="same"), r"got 'same' for the even kernel \(3, 4\); pad with numbers"),
        (nn.ConvTranspose2d(3, 4, 3), "'0' .*ConvTranspose2d"),
        (nn.GroupNorm(3, 3), "'0' .GroupNorm, node '_0' of Sequential.: .* got 'groupnorm'; replace it"),
        (nn.PReLU(), "got 'prelu'"),
        (nn.Upsample(scale_factor=2), "got 'upsample'"),
        (OwnConv(3, 4, 1), "got a OwnConv that computes something of its own"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_refuses_layers_and_names_them(layer: nn.Module, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        hg.export(nn.Sequential(layer, nn.ReLU()), tmp_path / "model.hgplan", example_input=X)


def test_refuses_hooks(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    handle = model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ExportError, match="without hooks, got forward hooks"):
        hg.export(model, tmp_path / "model.hgplan", example_input=X)
    handle.remove()
    weight_norm(model[0])  # a parametrisation is computed once, at export
    report = hg.export(model.eval(), tmp_path / "model.hgplan", example_input=X)
    assert len(report.operators) == 1


@pytest.mark.parametrize("granularity", ["l1norm", "fc"])
def test_refuses_gates_that_decide_from_the_input(granularity: Any, tmp_path: Path) -> None:
    model = Gated()
    hg.gate_(model, GateConfig(groups=4, granularity=granularity))
    remedy = r"leave the layer dense: GateConfig\(exclude=\('conv1',\)\)"
    with pytest.raises(ExportError, match=f"'conv1' .*granularity '{granularity}' decides from its input.*{remedy}"):
        hg.export(model, tmp_path / "model.hgplan", example_input=X)


def test_refuses_gated_convolution_groups(tmp_path: Path) -> None:
    model = Gated()
    model.conv2 = nn.Conv2d(32, 32, 1, groups=2)
    hg.gate_(model, GateConfig(groups=4))
    with pytest.raises(ExportError, match=r"'conv2' .*of 2 convolution groups, of which the engine takes one; leave"):
        hg.export(model, tmp_path / "model.hgplan", example_input=X)


def test_refuses_a_fused_model(tmp_path: Path) -> None:
    model = Gated()
    hg.gate_(model, GateConfig(groups=4))
    with pytest.raises((ExportError, ModelError), match=r"export the model that was fused|norm_act|must be traceable"):
        hg.export(hg.fuse(model.eval()), tmp_path / "model.hgplan", example_input=X)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_weights_that_are_not_finite(value: float, tmp_path: Path) -> None:
    model = Gated()
    model.conv1.weight.data[0, 0, 0, 0] = value
    with pytest.raises(ExportError, match=r"'conv1.weight': expected finite numbers"):
        hg.export(model, tmp_path / "model.hgplan", example_input=X)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unchecked_types")
def test_refuses_inputs_that_are_not_images(tmp_path: Path) -> None:
    model, path = Gated(), tmp_path / "model.hgplan"
    for wrong, got in (([1], "list"), (X.to(torch.uint8), "torch.uint8"), ((X,), "tuple")):
        with pytest.raises(DtypeError, match=f"floating-point tensor .n, c, h, w., got {got}"):
            hg.export(model, path, example_input=wrong)  # type: ignore[arg-type]
    for shape in ((3, 8, 8), (0, 3, 8, 8)):
        with pytest.raises(ShapeError, match=r"example_input must be images \(n, c, h, w\), got the shape"):
            hg.export(model, path, example_input=torch.zeros(shape))
    with pytest.raises(ModelError, match=r"example_input must fit Gated, got \(2, 4, 8, 8\) that fails with"):
        hg.export(model, path, example_input=torch.zeros(1, 4, 8, 8))
    assert not list(tmp_path.iterdir())


class Untraceable(nn.Module):
    """Branches on values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y[torch.nonzero(y.sum((1, 2, 3)) > 0)[:, 0].tolist()] if self.training else self.fail(y)

    def fail(self, y: Tensor) -> Tensor:
        raise RuntimeError("for training only")


def test_refuses_models_that_do_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.hgplan"
    with pytest.raises(ModelError, match="for training only"):
        hg.export(Untraceable(), path, example_input=X)
    with pytest.raises(ModelError, match="must be the plain module, got it inside DataParallel"):
        hg.export(nn.DataParallel(Gated()), path, example_input=X)
    with pytest.raises(ModelError, match=r"got the lazy '0\.weight'"):
        hg.export(nn.Sequential(nn.LazyConv2d(3, 1)), path, example_input=X)
    with pytest.raises(ModelError, match=r"'stem\.weight' on the meta device"):
        hg.export(Gated().to("meta"), path, example_input=X)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    model = Gated().eval()
    with pytest.raises(CheckpointError, match=r"cannot write .*model\.hgplan: .*; what was there before is unchanged"):
        hg.export(model, tmp_path / "missing" / "model.hgplan", example_input=X)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        hg.export(model, folder, example_input=X)
    assert list(tmp_path.iterdir()) == [folder]
    old = tmp_path / "model.hgplan"
    old.write_text("old")
    hg.gate_(model, GateConfig(groups=4, granularity="fc"))
    with pytest.raises(ExportError):
        hg.export(model, os.fspath(old), example_input=X)
    assert old.read_text() == "old"
    assert len(gated_layers(model)) == 2
