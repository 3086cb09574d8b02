"""GatedConv2d against an oracle, at its limits, and in training."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gated_oracle import BAND, Oracle, array, sum_bound
from torch import nn

from headgate.errors import ConfigError, ShapeError
from headgate.nn import GateConfig, GatedConv2d, Observation, force_gates, observe

GEOMETRIES: dict[str, dict[str, Any]] = {
    "1x1": {"kernel_size": 1},
    "3x3": {"kernel_size": 3, "padding": 1},
    "5x3": {"kernel_size": (5, 3), "padding": (2, 1)},
    "5x3 padded on one axis": {"kernel_size": (5, 3), "padding": (0, 2)},
    "stride 2": {"kernel_size": 3, "padding": 1, "stride": 2},
    "stride 2×1": {"kernel_size": 3, "padding": 1, "stride": (2, 1)},
    "dilation 2": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "same, even kernel": {"kernel_size": (4, 2), "padding": "same"},
    "valid": {"kernel_size": 3, "padding": "valid"},
    "no bias": {"kernel_size": 3, "bias": False},
    "2 convolution groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "4 convolution groups": {"kernel_size": 3, "padding": 1, "groups": 4},
}
SELECTIONS: dict[str, dict[str, Any]] = {
    "G=1": {"groups": 1},
    "G=2": {"groups": 2},
    "G=4": {"groups": 4},
    "G=4, shuffle": {"groups": 4, "shuffle": True},
    "G=2, shuffle": {"groups": 2, "shuffle": True},
    "G=4, first fraction": {"groups": 4, "grouped": False},
}
PARTIAL_SUM = ("activation", "group", "channel")
GRANULARITIES = (*PARTIAL_SUM, "l1norm", "fc")
TOLERANCE = 1e-10  # float64, after a norm that divides by standard deviations above 0.1


def make(
    config: GateConfig,
    *,
    c_in: int = 16,
    c_out: int = 32,
    norm: bool = True,
    two_sided: bool = False,
    training: bool = False,
    dtype: torch.dtype = torch.float64,
    **geometry: Any,
) -> GatedConv2d:
    """A gated convolution with statistics and parameters that are all different."""
    conv = nn.Conv2d(c_in, c_out, **{"kernel_size": 3, "padding": 1, **geometry})
    bn = nn.BatchNorm2d(c_out) if norm else None
    layer = GatedConv2d(conv, bn, config, two_sided=two_sided).to(dtype)
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            if name.endswith(("running_var", "score_var")):
                value.uniform_(0.3, 2)
            elif name.endswith(("running_mean", "score_mean", "norm.weight", "norm.bias", "threshold", "offset")):
                value.add_(torch.randn_like(value) * 0.3)
    return layer.train(training)


def inputs(layer: GatedConv2d, n: int = 2, size: tuple[int, int] = (9, 7)) -> torch.Tensor:
    return torch.randn(n, layer.in_channels, *size, dtype=layer.weight.dtype)


def check(layer: GatedConv2d, x: torch.Tensor, *, residual: bool = False, relu: bool = False) -> None:
    """Outputs, decisions and counts are the oracle's, both with and without the decision maps."""
    shape = layer.final_sum(x).shape
    added = torch.randn(shape, dtype=x.dtype) if residual else None
    oracle = Oracle(layer, x, added, relu=relu)
    assert np.abs(oracle.margin).min() > BAND, "a score lies on its threshold: change the seed"
    for maps in (False, True):
        twin, seen = copy.deepcopy(layer), list[Observation]()
        with observe(nn.ModuleList([twin]), lambda _n, _l, o, seen=seen: seen.append(o), decisions=maps):
            output = twin(x, added, relu)
        np.testing.assert_allclose(array(output), oracle.output, rtol=0, atol=TOLERANCE * np.abs(oracle.output).max())
        np.testing.assert_array_equal(array(seen[0].open_counts), oracle.decision.sum((2, 3)))
        assert seen[0].in_size == tuple(x.shape[2:])
        assert seen[0].out_size == tuple(shape[2:])
        if maps:
            assert seen[0].decision is not None
            np.testing.assert_array_equal(array(seen[0].decision), oracle.decision)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_agrees_with_oracle_for_geometry_and_selection(geometry: str, selection: str) -> None:
    layer = make(GateConfig(**SELECTIONS[selection]), **GEOMETRIES[geometry])
    x = inputs(layer)
    oracle = Oracle(layer, x)
    np.testing.assert_allclose(array(layer.final_sum(x)), oracle.final, rtol=0, atol=sum_bound(layer, x))
    np.testing.assert_allclose(array(layer.partial_sum(x)), oracle.partial, rtol=0, atol=sum_bound(layer, x))
    check(layer, x)


@pytest.mark.parametrize("selection", ["G=4", "G=4, shuffle"])
@pytest.mark.parametrize("conv_groups", [1, 2])
def test_agrees_with_oracle_where_the_base_path_is_a_grouped_convolution(selection: str, conv_groups: int) -> None:
    layer = make(GateConfig(**SELECTIONS[selection]), c_in=64, c_out=32, groups=conv_groups)
    assert layer._base_is_grouped
    check(layer, inputs(layer))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("norm", ["separate", "shared", "none"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("two_sided", [False, True], ids=["one-sided", "two-sided"])
def test_agrees_with_oracle_for_gate_and_norm(granularity: Any, norm: Any, training: bool, two_sided: bool) -> None:
    config = GateConfig(groups=4, granularity=granularity, norm="separate" if norm == "none" else norm)
    layer = make(config, norm=norm != "none", training=training, two_sided=two_sided)
    check(layer, inputs(layer, n=4), residual=True, relu=True)


@pytest.mark.parametrize("granularity", ["activation", "group"])
@pytest.mark.parametrize("norm", ["separate", "shared"])
def test_agrees_with_oracle_with_a_channel_bound(granularity: Any, norm: Any) -> None:
    layer = make(GateConfig(groups=2, granularity=granularity, norm=norm, channel_bound=0.7), groups=4)
    x = inputs(layer, n=3)
    decision = Oracle(layer, x).decision
    fractions = decision.mean((2, 3))
    assert (fractions == 0).any(), "no channel was closed as a whole: the test tests nothing"
    assert ((fractions == 0) | (fractions > 0.7)).all()
    check(layer, x)


def test_a_bound_of_one_closes_everything() -> None:
    layer = make(GateConfig(groups=2, channel_bound=1.0))
    x = inputs(layer)
    with force_gates(nn.ModuleList([layer]), "closed"):
        closed = layer(x)
    assert torch.equal(layer(x), closed) or (layer(x) - closed).abs().max() < TOLERANCE


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_float32_agrees_outside_the_rounding_band(granularity: Any) -> None:
    layer = make(GateConfig(groups=4, granularity=granularity), dtype=torch.float32)
    x = inputs(layer, n=4)
    oracle = Oracle(layer, x)
    seen: list[Observation] = []
    with observe(nn.ModuleList([layer]), lambda _n, _l, o: seen.append(o), decisions=True):
        layer(x)
    assert seen[0].decision is not None
    outside = np.abs(oracle.margin) > 1e-5
    assert outside.mean() > 0.99
    np.testing.assert_array_equal(array(seen[0].decision)[outside], oracle.decision[outside])


@pytest.mark.parametrize("granularity", PARTIAL_SUM)
def test_a_training_step_updates_every_running_statistic(granularity: Any) -> None:
    layer = make(GateConfig(groups=2, granularity=granularity), training=True)
    assert layer.partial_norm is not None
    assert layer.final_norm is not None
    x = inputs(layer, n=4)
    oracle, before = Oracle(layer, x), copy.deepcopy(layer.state_dict())
    layer(x)
    for sums, norm, name in (
        (oracle.partial, layer.partial_norm, "partial"),
        (oracle.final, layer.final_norm, "final"),
    ):
        mean = 0.9 * array(before[f"{name}_norm.running_mean"]) + 0.1 * sums.mean((0, 2, 3))
        var = 0.9 * array(before[f"{name}_norm.running_var"]) + 0.1 * sums.var((0, 2, 3), ddof=1)
        np.testing.assert_allclose(array(norm.running_mean), mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(array(norm.running_var), var, rtol=1e-10)
    if granularity != "activation":
        changed = not torch.equal(layer.state_dict()["gate.score_var"], before["gate.score_var"])
        assert changed


# ---------------------------------------------------------------------------------------------------------- the limits


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("norm", ["separate", "shared"])
@pytest.mark.parametrize("geometry", ["3x3", "2 convolution groups"])
def test_open_equals_the_dense_convolution_and_norm(geometry: str, norm: Any, training: bool) -> None:
    conv = nn.Conv2d(16, 32, **GEOMETRIES[geometry]).double()
    bn = nn.BatchNorm2d(32).double()
    nn.init.normal_(bn.weight)
    bn.running_var.uniform_(0.5, 2)
    dense = nn.Sequential(copy.deepcopy(conv), bn).train(training)
    layer = GatedConv2d(conv, bn, GateConfig(groups=4, norm=norm)).train(training)
    x = inputs(layer)
    with force_gates(nn.ModuleList([layer]), "open"):
        difference = (layer(x) - dense(x)).abs().max()
    assert difference < TOLERANCE
    assert layer.final_norm is not None
    assert torch.allclose(layer.final_norm.running_var, bn.running_var, rtol=1e-12)


@pytest.mark.parametrize("granularity", PARTIAL_SUM)
def test_very_low_thresholds_equal_forced_open_and_very_high_ones_forced_closed(granularity: Any) -> None:
    layer = make(GateConfig(groups=4, granularity=granularity))
    x = inputs(layer)
    for state, threshold in (("open", -1e4), ("closed", 1e4)):
        nn.init.constant_(layer.gate.threshold, threshold)
        with force_gates(nn.ModuleList([layer]), state):  # type: ignore[arg-type]
            forced = layer(x)
        assert (layer(x) - forced).abs().max() < TOLERANCE


@pytest.mark.parametrize("shuffle", [False, True])
def test_closed_equals_a_grouped_convolution(shuffle: bool) -> None:
    groups = 4
    layer = make(GateConfig(groups=groups, shuffle=shuffle), c_in=16, c_out=32)
    x = inputs(layer)
    weight = torch.cat(
        [
            torch.cat([layer.weight[o : o + 1, c : c + 1] for c in base], dim=1)
            for o in range(32)
            for base in [
                [o // 8 * 4 + i if not shuffle else (o // 8 * 4 + i) % 4 * 4 + (o // 8 * 4 + i) // 4 for i in range(4)]
            ]
        ]
    )
    fed = x.view(2, groups, 4, 9, 7).transpose(1, 2).reshape(2, 16, 9, 7) if shuffle else x
    sums = F.conv2d(fed, weight, layer.bias, padding=1, groups=groups)
    norm = layer.partial_norm
    assert norm is not None
    expected = F.batch_norm(sums, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps)
    with force_gates(nn.ModuleList([layer]), "closed"):
        assert (layer(x) - expected).abs().max() < TOLERANCE


def test_shuffled_selection_equals_shuffling_the_channels() -> None:
    torch.manual_seed(1)
    shuffled = make(GateConfig(groups=4, shuffle=True))
    plain = make(GateConfig(groups=4))
    plain.load_state_dict(shuffled.state_dict())
    order = torch.arange(16).view(4, 4).t().reshape(-1)  # what nn.ChannelShuffle(4) does
    plain.weight = nn.Parameter(shuffled.weight[:, order].clone())
    x = inputs(shuffled)
    fed = nn.ChannelShuffle(4)(x)
    assert torch.equal(fed, x[:, order])
    assert (shuffled(x) - plain(fed)).abs().max() < TOLERANCE
    assert (shuffled.partial_sum(x) - plain.partial_sum(fed)).abs().max() < TOLERANCE


def test_one_group_has_no_conditional_path() -> None:
    layer = make(GateConfig(groups=1))
    x = inputs(layer)
    assert torch.equal(layer.partial_sum(x), layer.final_sum(x)) or (
        (layer.partial_sum(x) - layer.final_sum(x)).abs().max() < TOLERANCE
    )


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("norm", ["separate", "shared", "none"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_parameter_receives_a_gradient(granularity: Any, norm: Any) -> None:
    config = GateConfig(groups=4, granularity=granularity, norm="separate" if norm == "none" else norm)
    layer = make(config, norm=norm != "none", training=True)
    x = inputs(layer, n=4).requires_grad_()
    layer(x, None, True).square().sum().backward()
    assert x.grad is not None
    for name, parameter in layer.named_parameters():
        dead_bias = name == "bias" and norm != "none"  # a norm in training removes it
        assert parameter.grad is not None, name
        assert dead_bias or parameter.grad.abs().max() > 0, name
        assert torch.isfinite(parameter.grad).all(), name


def test_counts_carry_a_gradient_to_the_thresholds() -> None:
    layer = make(GateConfig(groups=4), training=True)
    seen: list[Observation] = []
    with observe(nn.ModuleList([layer]), lambda _n, _l, o: seen.append(o)):
        layer(inputs(layer))
    seen[0].open_counts.sum().backward()
    assert layer.gate.threshold.grad is not None
    assert (layer.gate.threshold.grad < 0).all()  # a higher threshold opens fewer


@pytest.mark.parametrize("norm", ["separate", "shared"])
def test_gradient_is_that_of_the_selected_sums_where_no_threshold_is_near(norm: Any) -> None:
    """With a slope of 1e-6 the surrogate vanishes, so away from steps the true gradient remains."""
    layer = make(GateConfig(groups=2, norm=norm, slope=1e-6), c_in=4, c_out=4, kernel_size=1, padding=0)
    x = inputs(layer, n=1, size=(3, 2)).requires_grad_()
    assert np.abs(Oracle(layer, x).margin).min() > 1e-4
    assert torch.autograd.gradcheck(layer, (x,), eps=1e-7, atol=1e-4)


def test_gates_forced_open_train_as_the_dense_layer_does() -> None:
    conv, bn = nn.Conv2d(8, 8, 3, padding=1).double(), nn.BatchNorm2d(8).double()
    dense = copy.deepcopy(nn.Sequential(conv, bn))
    layer = GatedConv2d(conv, bn, GateConfig(groups=2))
    x = inputs(layer)
    with force_gates(nn.ModuleList([layer]), "open"):
        layer(x).pow(3).sum().backward()
    dense(x).pow(3).sum().backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad - dense[0].weight.grad).abs().max() < 1e-9


# ------------------------------------------------------------------------------------------------------------- refusals


def test_refuses_groups_that_do_not_divide_the_channels() -> None:
    with pytest.raises(ShapeError, match=r"groups=8 for 12 input and 16 output channels; lower groups"):
        GatedConv2d(nn.Conv2d(12, 16, 3), None, GateConfig(groups=8))


def test_refuses_another_padding_mode() -> None:
    with pytest.raises(ShapeError, match="padding_mode must be 'zeros', got 'reflect'"):
        GatedConv2d(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), None, GateConfig(groups=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "groups must be an integer ≥ 1, got 0"),
        ({"groups": True}, "groups must be an integer"),
        ({"granularity": "pixel"}, "granularity must be one of activation, channel"),
        ({"norm": "none"}, "norm must be one of separate, shared"),
        ({"slope": 0.0}, "slope must be > 0"),
        ({"channel_bound": 1.5}, "channel_bound must be a fraction"),
        ({"shuffle": True, "grouped": False}, "needs grouped=True"),
        ({"include": "layer1.*"}, "include must be a tuple"),
    ],
)
def test_refuses_settings(unchecked_types: None, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GateConfig(**options)
