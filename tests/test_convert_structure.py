"""Modules that need care, rebuilding a gated model by name, and the page about gating."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from convert_networks import net
from torch import nn

from headgate.convert import GateReport, LayerReport, apply_structure_, gate_, gated_structure
from headgate.errors import ConfigError, ModelError, ShapeError
from headgate.nn import GateConfig, GatedConv2d, force_gates, gated_layers


def layer(report: GateReport, name: str) -> LayerReport:
    return {x.name: x for x in report.layers}[name]


# ----------------------------------------------------------------------------------------------------- special modules


def test_aliases_are_all_replaced() -> None:
    model = net()
    model.alias, model.norms = model.block.conv1, nn.ModuleList([model.block.bn1])
    gate_(model)
    assert model.alias is model.block.conv1
    assert isinstance(model.alias, GatedConv2d)
    assert model.norms[0] is model.block.bn1
    assert isinstance(model.norms[0], nn.Identity)


def test_synchronised_norms_stay_synchronised() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(net())
    gate_(model, GateConfig(groups=4))
    gated = gated_layers(model)
    assert gated["tail"].final_norm is None
    head = gated["head"]
    assert head.final_norm is not None
    assert head.partial_norm is not None
    assert head.final_norm.sync
    assert head.partial_norm.sync
    assert head.gate.sync


def test_frozen_norms_stay_frozen() -> None:
    model = net()
    model.norm.requires_grad_(False)
    gate_(model, GateConfig(groups=4))
    head = gated_layers(model)["head"]
    frozen = {name for name, p in head.named_parameters() if not p.requires_grad}
    assert frozen == {f"{norm}_norm.{p}" for norm in ("final", "partial") for p in ("weight", "bias")}


def test_a_detectors_backbone_can_be_gated_alone() -> None:
    detection = torchvision.models.detection
    with torch.device("meta"):
        model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    with pytest.raises(ModelError, match=r"got FasterRCNN, which fails in .*or gate a submodule"):
        gate_(model)
    assert len(gate_(model.backbone).gated) == 52
    assert "backbone.body.layer1.0.conv1" in gated_structure(model)["layers"]


def test_the_activation_inside_timms_norm_survives() -> None:
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), layers.BatchNormAct2d(8, act_layer=nn.PReLU), nn.Conv2d(8, 8, 1)
    )
    dense, x = copy.deepcopy(model).eval(), torch.randn(1, 3, 5, 5)
    report = gate_(model.eval(), GateConfig(groups=2))
    assert layer(report, "1").activation == "prelu"
    assert model[2].act.weight.requires_grad
    assert "2.act.weight" in model.state_dict()
    with force_gates(model, "open"):
        torch.testing.assert_close(model(x), dense(x))


# ----------------------------------------------------------------------------------------------------------- structure


def test_structure_rebuilds_a_model_by_name() -> None:
    model = net()
    gate_(model, GateConfig(groups=8, norm="shared", slope=3.0, exclude=("block.conv2",)))
    structure = json.loads(json.dumps(gated_structure(model)))
    assert structure["config"]["exclude"] == ["block.conv2"]
    assert structure["layers"] == {
        "block.conv1": {"groups": 8, "two_sided": False, "norm": "block.bn1"},
        "tail": {"groups": 4, "two_sided": False, "norm": None},
        "head": {"groups": 4, "two_sided": True, "norm": "norm"},
    }
    again = net()
    apply_structure_(again, structure)
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert torch.equal(again(x), model(x))
    assert gated_structure(again) == structure
    assert [x.config for x in gated_layers(again).values()] == [x.config for x in gated_layers(model).values()]


def test_structure_of_a_copied_or_wrapped_or_partly_gated_model() -> None:
    model = nn.ModuleDict({"a": net(), "b": net()})
    gate_(model["a"], GateConfig(groups=4))
    gate_(model["b"], GateConfig(groups=4, granularity="channel"))
    structure = gated_structure(copy.deepcopy(model))
    assert structure["layers"]["a.head"] == {"groups": 4, "two_sided": True, "norm": "a.norm"}
    assert structure["layers"]["b.head"]["config"] == {"granularity": "channel"}
    again = nn.ModuleDict({"a": net(), "b": net()})
    apply_structure_(again, structure)
    assert gated_structure(again) == structure


def test_structure_of_a_dense_model_is_refused() -> None:
    with pytest.raises(ModelError, match="call gate_ first"):
        gated_structure(net())


def edit(**layers: Any) -> dict[str, Any]:
    model = net()
    gate_(model, GateConfig(groups=4))
    structure = gated_structure(model)
    structure["layers"] |= {name.replace("_", "."): entry for name, entry in layers.items()}
    return structure


@pytest.mark.parametrize(
    ("structure", "error", "message"),
    [
        ({"layers": {}}, ConfigError, "structure must be what gated_structure returns"),
        ({"config": {"colour": 1}, "layers": {"tail": {"groups": 1}}}, ConfigError, "colour"),
        (edit(block_conv9={"groups": 4, "two_sided": False, "norm": None}), ModelError, "named 'block.conv9'.*near it"),
        (
            edit(norm={"groups": 4, "two_sided": False, "norm": None}),
            ModelError,
            "'norm' must be a Conv2d, got BatchNo",
        ),
        (edit(tail={"groups": 4, "two_sided": False, "norm": "fc"}), ModelError, "'fc' must be a BatchNorm2d, got Lin"),
        (edit(tail={"groups": 5, "two_sided": False, "norm": None}), ShapeError, "groups=5 for 16 input"),
    ],
)
def test_structures_that_do_not_fit_leave_the_model_untouched(
    structure: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = net()
    with pytest.raises(error, match=message):
        apply_structure_(model, structure)
    assert not gated_layers(model)
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_the_page_about_gating_runs() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "gate.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) > 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)


def test_held_gates_are_part_of_the_structure() -> None:
    model = net()
    gate_(model, GateConfig(groups=4))
    assert "forced" not in str(gated_structure(model))
    for layer in gated_layers(model).values():
        layer.gate.forced = "closed"
    structure = gated_structure(model)
    again = net()
    apply_structure_(again, structure)
    assert {layer.gate.forced for layer in gated_layers(again).values()} == {"closed"}

    next(iter(structure["layers"].values()))["forced"] = "ajar"
    dense = net()
    with pytest.raises(ConfigError, match="ajar"):
        apply_structure_(dense, structure)
    assert not gated_layers(dense)
