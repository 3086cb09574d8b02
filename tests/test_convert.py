"""The rules of `gate_`, and its report."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from convert_networks import Net, net
from torch import Tensor, nn

from headgate.convert import GateReport, LayerReport, gate_, gated_structure
from headgate.errors import ConfigError, ModelError
from headgate.nn import GateConfig, force_gates, gated_layers


def layer(report: GateReport, name: str) -> LayerReport:
    return {x.name: x for x in report.layers}[name]


IMAGE = torch.zeros(1, 3, 9, 9, dtype=torch.float64)
GATED = ["block.conv1", "block.conv2", "tail", "head"]


@pytest.mark.parametrize("example", [None, IMAGE], ids=["graph", "example"])
def test_gates_what_an_activation_follows(example: Tensor | None) -> None:
    model = net()
    dense, x = copy.deepcopy(model), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    report = gate_(model, GateConfig(groups=4), example_input=example)
    assert [x.name for x in report.gated] == GATED == list(gated_layers(model))
    assert {x.name: x.reason for x in report.dense} == {
        "stem.0": "first convolution",
        "block.depthwise": "depthwise: one input channel per group cannot be split",
        "block.linear": "no activation follows, but mean",
        "block.squeeze": "works on a 1×1 map, as in squeeze and excite",
        "block.excite": "works on a 1×1 map, as in squeeze and excite",
    }
    with force_gates(model, "open"):
        assert (model(x) - dense(x)).abs().max() < 1e-12
    assert model(x).shape == dense(x).shape
    assert type(model) is Net
    assert [type(m) for m in (model.block.bn1, model.norm, model.block.bn3)] == [
        nn.Identity,
        nn.Identity,
        nn.BatchNorm2d,
    ]


def test_the_models_own_parameters_are_trained() -> None:
    model = net()
    weights = {name: model.get_parameter(f"{name}.weight") for name in GATED}
    gate_(model)
    for name, weight in weights.items():
        assert model.get_parameter(f"{name}.weight") is weight


def test_report_says_what_was_done() -> None:
    report = gate_(net(), GateConfig(groups=4), example_input=IMAGE)
    assert layer(report, "block.conv2") == LayerReport(
        name="block.conv2",
        gated=True,
        groups=4,
        lowered_from=None,
        reason="",
        activation="relu",
        two_sided=False,
        residual=True,
        c_in=16,
        c_out=16,
        kernel=(3, 3),
        stride=(1, 1),
        conv_groups=1,
        out_size=(9, 9),
    )
    assert layer(report, "tail").shape == "16→12 3×3 /2×1"
    assert layer(report, "head").two_sided
    assert layer(report, "block.depthwise").shape == "16→16 3×3 g16"
    assert len(report.gated) + len(report.dense) == len(report.layers) == 9


def test_report_is_a_table() -> None:
    lines = str(gate_(net(), GateConfig(groups=8))).splitlines()
    assert lines[0] == "Net: 4 of 9 convolutions gated"
    assert lines[1].split() == ["layer", "convolution", "gate", "activation", "note"]
    assert len(lines) == 11
    starts = {line.index(cell) for line, cell in zip(lines[3:5], ("16→16", "16→16"), strict=True)}
    assert starts == {lines[1].index("convolution")}
    assert any(line.startswith("tail") and line.endswith("lowered from 8") for line in lines)
    assert any(line.startswith("head") and line.endswith("lowered from 8, two-sided") for line in lines)
    assert all(line == line.rstrip() for line in lines)


def test_report_is_json() -> None:
    report = gate_(net(), GateConfig(groups=4, exclude=("tail",)))
    values = json.loads(json.dumps(report.to_dict()))
    assert values["model"] == "Net"
    assert values["config"]["exclude"] == ["tail"]
    assert values["layers"][0]["name"] == "stem.0"
    assert values["layers"][0]["shape"] == "3→16 3×3"


@pytest.mark.parametrize("training", [False, True])
def test_modes_are_kept(training: bool) -> None:
    model = net().train(training)
    model.norm.train(not training)
    model.block.conv1.eval()
    gate_(model, GateConfig(groups=4), example_input=IMAGE)
    gated = gated_layers(model)
    assert model.training == gated["tail"].training == training
    assert gated["head"].final_norm is not None
    assert gated["head"].final_norm.training != training
    assert not gated["block.conv1"].gate.training


def test_random_state_is_kept() -> None:
    model, random = net(), torch.get_rng_state()
    gate_(model, GateConfig(groups=4), example_input=IMAGE)
    assert torch.equal(torch.get_rng_state(), random)


# ------------------------------------------------------------------------------------------------- groups and patterns


def test_groups_that_do_not_divide_are_lowered_and_reported() -> None:
    report = gate_(net(), GateConfig(groups=8))
    assert [(x.name, x.groups, x.lowered_from) for x in report.gated] == [
        ("block.conv1", 8, None),
        ("block.conv2", 8, None),
        ("tail", 4, 8),
        ("head", 4, 8),
    ]


@pytest.mark.parametrize(
    ("c_in", "c_out", "conv_groups", "asked", "expected"),
    [(64, 96, 1, 7, 4), (12, 18, 1, 8, 6), (12, 18, 3, 8, 2), (9, 16, 1, 8, 1), (32, 32, 8, 8, 4), (32, 32, 1, 32, 32)],
)
def test_lowers_to_the_largest_divisor(c_in: int, c_out: int, conv_groups: int, asked: int, expected: int) -> None:
    conv = nn.Conv2d(c_in, c_out, 1, groups=conv_groups)
    model = nn.Sequential(
        nn.Conv2d(3, c_in, 1), conv, nn.ReLU(), nn.Conv2d(c_out, 64, 1), nn.Conv2d(64, 64, 1), nn.ReLU()
    )
    found = layer(gate_(model, GateConfig(groups=asked)), "1")
    assert found.groups == expected
    assert found.gated == (expected > 1)
    if not found.gated:
        assert found.reason == f"no number up to groups={asked} but 1 divides its {c_in} inputs and {c_out} outputs"


@pytest.mark.parametrize("granularity", ["l1norm", "fc"])
def test_gates_that_decide_from_the_input_need_no_divisor(granularity: Any) -> None:
    report = gate_(net(), GateConfig(groups=7, granularity=granularity))
    assert [(x.name, x.groups, x.lowered_from) for x in report.gated] == [(name, 7, None) for name in GATED]


def test_groups_above_every_layers_channels_are_refused() -> None:
    model = net()
    with pytest.raises(ConfigError, match=r"groups=17 where the widest layer that can be gated has 16 per conv"):
        gate_(model, GateConfig(groups=17))
    assert not gated_layers(model)


def test_exclude_wins_over_include() -> None:
    config = GateConfig(groups=4, include=("block.*",), exclude=("*.conv2", "tail", "block.squeeze"))
    report = gate_(net(), config)
    assert [x.name for x in report.gated] == ["block.conv1", "block.linear", "block.excite", "head"]
    assert layer(report, "tail").reason == layer(report, "block.conv2").reason == "excluded"


def test_include_gates_a_first_convolution_and_one_without_activation() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    report = gate_(model, GateConfig(groups=2, include=("0", "3")))
    assert len(report.gated) == 2
    assert isinstance(model[4], nn.Identity)
    assert layer(report, "3").activation is None


def test_include_cannot_gate_what_cannot_be_gated() -> None:
    report = gate_(net(), GateConfig(groups=4, include=("block.depthwise", "stem.0")))
    assert layer(report, "block.depthwise").reason.startswith("depthwise")
    assert layer(report, "stem.0").reason == "no number up to groups=4 but 1 divides its 3 inputs and 16 outputs"


def test_include_leaves_a_foreign_norm_in_place() -> None:
    norm = nn.GroupNorm(2, 8)
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), norm, nn.ReLU())
    assert layer(gate_(copy.deepcopy(model)), "1").reason == "followed by GroupNorm, not by BatchNorm2d"
    gate_(model, GateConfig(include=("1",)))
    assert model[2] is norm
    assert gated_layers(model)["1"].final_norm is None


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("block.conv3", "near it: 'block.conv"),
        ("block", r"it holds convolutions: write 'block\.\*'"),
        ("zzz*", r"convolutions are named like 'stem\.0', 'block\.conv1', 'block\.conv2'"),
    ],
)
def test_patterns_that_match_nothing_are_refused(option: str, pattern: str, hint: str) -> None:
    model = net()
    with pytest.raises(ConfigError, match=rf"{option} must name convolutions of Net, got .* matches none; {hint}"):
        gate_(model, GateConfig(**{option: ("tail", pattern)}))
    assert not gated_layers(model)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_refuses_a_gated_model() -> None:
    model = net()
    gate_(model)
    with pytest.raises(ModelError, match=r"Net with 4 gated layers \(first: 'block.conv1'\)"):
        gate_(model)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(3, 3)), "model must have a Conv2d to gate, got Sequential with none"),
        (nn.Conv2d(3, 3, 1), "got a bare Conv2d; wrap it in a module"),
        (nn.Sequential(nn.LazyConv2d(3, 1)), "got a lazy module; run one forward pass first"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_refuses_models_without_convolutions_of_their_own(model: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        gate_(model)


def test_a_model_that_cannot_be_traced_is_left_untouched() -> None:
    class Loops(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    model = Loops()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ModelError, match=r"got Loops, which fails in the model's own forward with TraceError"):
        gate_(model)
    assert not gated_layers(model)
    assert state.keys() == model.state_dict().keys()
    gate_(model.block)
    assert list(gated_layers(model)) == ["block.conv2"]
    assert len(gated_structure(model)["layers"]) == 1


def test_a_model_with_nothing_to_gate_is_unchanged_and_says_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    report = gate_(model)
    assert not report.gated
    assert str(report).startswith("Sequential: 0 of 1 convolutions gated; nothing to gate, the model is unchanged")
    assert type(model[0]) is nn.Conv2d
