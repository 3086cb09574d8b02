"""Binary convolutions, plain and gated, against sums of signs that are written out."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headgate.nn import BinaryConv2d, GateConfig, GatedConv2d, Observation, force_gates, observe
from headgate.nn.selection import shuffle_channels

ROUNDED = 1e-12  # float64; sums of at most some hundred signs, times a mean


def signs(x: Tensor) -> Tensor:
    return (x >= 0).to(x.dtype) * 2 - 1


def scales(weight: Tensor) -> Tensor:
    return torch.stack([filters.abs().sum() / filters.numel() for filters in weight]).view(1, -1, 1, 1)


def layer(c_in: int = 8, c_out: int = 12, **options: Any) -> BinaryConv2d:
    conv = BinaryConv2d(c_in, c_out, **{"kernel_size": 3, "padding": 1, "bias": False, **options}).double()
    nn.init.uniform_(conv.weight, -1.5, 1.5)  # beyond where the sign's gradient stops, too
    return conv


def maps(c_in: int = 8, n: int = 3) -> Tensor:
    return torch.randn(n, c_in, 7, 5, dtype=torch.float64) * 1.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"kernel_size": 1, "padding": 0},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"bias": True},
        {"padding": "same"},
    ],
    ids=str,
)
def test_it_is_a_scaled_sum_of_signs(options: dict[str, Any]) -> None:
    conv, x = layer(**options), maps()
    sums = F.conv2d(signs(x), signs(conv.weight), None, conv.stride, conv.padding, conv.dilation, conv.groups)
    assert torch.equal(sums, sums.round())
    expected = sums * scales(conv.weight)
    if conv.bias is not None:
        expected = expected + conv.bias.view(1, -1, 1, 1)
    assert (conv(x) - expected).abs().max() < ROUNDED


def test_padding_adds_no_terms() -> None:
    conv = layer(c_in=1, c_out=1)
    nn.init.ones_(conv.weight)
    terms = conv(torch.ones(1, 1, 4, 4, dtype=torch.float64))[0, 0]
    assert terms[0].tolist() == [4, 6, 6, 4]
    assert terms[1].tolist() == [6, 9, 9, 6]


def test_the_gradient_reaches_the_weight_through_the_sign_and_through_the_scale() -> None:
    conv, x = layer(), maps().requires_grad_()
    upstream = torch.randn(3, 12, 7, 5, dtype=torch.float64)
    conv(x).backward(upstream)

    read, effective = signs(x.detach()).requires_grad_(), (scales(conv.weight).view(-1, 1, 1, 1) * signs(conv.weight))
    effective = effective.detach().requires_grad_()
    F.conv2d(read, effective, padding=1).backward(upstream)
    assert effective.grad is not None
    assert read.grad is not None
    weight = conv.weight.detach()
    alpha = scales(weight).view(-1, 1, 1, 1)
    through_sign = effective.grad * alpha * (weight.abs() <= 1)
    through_scale = (effective.grad * signs(weight)).sum((1, 2, 3), keepdim=True) / weight[0].numel() * weight.sign()
    assert conv.weight.grad is not None
    assert (conv.weight.grad - through_sign - through_scale).abs().max() < 1e-10
    assert x.grad is not None
    assert (x.grad - read.grad * (x.detach().abs() <= 1)).abs().max() < 1e-10


def test_signs_are_exact_under_autocast() -> None:
    conv = layer().float()
    nn.init.uniform_(conv.weight)
    conv.weight.data = signs(torch.randn_like(conv.weight)) * 0.25  # a scale that bfloat16 has
    x = maps().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        output = conv(x)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output.float(), conv(x))  # at most 72 signs: a whole number that bfloat16 has
    output.sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32
    assert conv.weight.grad.abs().max() > 0


# --------------------------------------------------------------------------------------------------------------- gated

GATES: dict[str, dict[str, Any]] = {
    "G=4": {"c_in": 16, "c_out": 8, "config": GateConfig(groups=4)},
    "G=4, shuffle": {"c_in": 16, "c_out": 8, "config": GateConfig(groups=4, shuffle=True)},
    "G=2, wide enough for a grouped base": {"c_in": 16, "c_out": 8, "config": GateConfig(groups=2)},
    "the same, shuffled": {"c_in": 16, "c_out": 8, "config": GateConfig(groups=2, shuffle=True)},
    "G=4, group": {"c_in": 16, "c_out": 8, "config": GateConfig(groups=4, granularity="group")},
    "G=4, shared norm": {"c_in": 16, "c_out": 8, "config": GateConfig(groups=4, norm="shared")},
}


def norm(channels: int) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels).double()
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.bias)
    assert bn.running_var is not None
    bn.running_var.uniform_(0.5, 2)
    return bn


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("case", GATES)
def test_gates_forced_open_are_the_dense_binary_layer(case: str, training: bool) -> None:
    options = dict(GATES[case])
    conv, bn = layer(options["c_in"], options["c_out"]), norm(options["c_out"])
    dense = nn.Sequential(copy.deepcopy(conv), copy.deepcopy(bn)).train(training)
    gated = GatedConv2d(conv, bn, options["config"]).train(training)
    assert gated.binary
    x, twin = maps(options["c_in"]).requires_grad_(), None
    twin = x.detach().clone().requires_grad_()
    with force_gates(nn.ModuleList([gated]), "open"):
        output = gated(x)
    expected = dense(twin)
    assert (output - expected).abs().max() < 1e-10
    output.pow(3).sum().backward()
    expected.pow(3).sum().backward()
    assert gated.weight.grad is not None
    assert (gated.weight.grad - dense[0].weight.grad).abs().max() < 1e-6
    assert x.grad is not None
    assert twin.grad is not None
    assert (x.grad - twin.grad).abs().max() < 1e-6


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("groups", [2, 4])
def test_gates_forced_closed_are_a_grouped_binary_layer(groups: int, shuffle: bool) -> None:
    """With the signs of its part of the weight, and the scaling factors of whole filters."""
    c_in, c_out = 16, 8
    conv = layer(c_in, c_out)
    gated = GatedConv2d(conv, norm(c_out), GateConfig(groups=groups, shuffle=shuffle)).eval()
    x = maps(c_in)
    fed, size = signs(x), c_in // groups
    weight = signs(conv.weight)
    if shuffle:
        fed = shuffle_channels(fed, groups)
        weight = shuffle_channels(weight, groups)
    own = [weight[o, o // (c_out // groups) * size :][:size] for o in range(c_out)]
    sums = F.conv2d(fed, torch.stack(own), padding=1, groups=groups) * scales(conv.weight)
    assert (gated.partial_sum(x) - sums).abs().max() < ROUNDED
    partial = gated.partial_norm
    assert partial is not None
    expected = F.batch_norm(sums, partial.running_mean, partial.running_var, partial.weight, partial.bias)
    with force_gates(nn.ModuleList([gated]), "closed"):
        assert (gated(x) - expected).abs().max() < 1e-10


def test_what_the_gate_skips_is_the_rest_of_the_same_sum() -> None:
    gated = GatedConv2d(layer(16, 8), norm(8), GateConfig(groups=4))
    x = maps(16)
    skipped = F.conv2d(
        signs(x), scales(gated.weight).view(-1, 1, 1, 1) * signs(gated.weight) * ~gated.base_mask, padding=1
    )
    assert (gated.partial_sum(x) + skipped - gated.final_sum(x)).abs().max() < ROUNDED


@pytest.mark.parametrize("granularity", ["activation", "group", "channel", "l1norm", "fc"])
@pytest.mark.parametrize("two_sided", [False, True], ids=["one-sided", "two-sided"])
def test_every_gate_trains_on_binary_sums(granularity: Any, two_sided: bool) -> None:
    config = GateConfig(groups=4, granularity=granularity)
    gated = GatedConv2d(layer(16, 8), norm(8), config, two_sided=two_sided).train()
    x = maps(16).requires_grad_()
    gated(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    for name, parameter in gated.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_an_input_that_an_l1norm_gate_closes_adds_nothing() -> None:
    gated = GatedConv2d(layer(8, 4), None, GateConfig(granularity="l1norm")).eval()
    with torch.no_grad():
        gated.gate.threshold[:3] = 1e6  # closed; the others are open
        gated.gate.threshold[3:] = -1e6
    x = maps(8)
    left = F.conv2d(signs(x)[:, 3:], signs(gated.weight)[:, 3:], padding=1) * scales(gated.weight)
    assert (gated(x) - left).abs().max() < ROUNDED


def test_no_input_of_a_binary_layer_is_dead() -> None:
    """A channel of zeros, as a closed fc gate leaves it, is a channel of +1."""
    gated = GatedConv2d(layer(8, 4), norm(4), GateConfig(granularity="fc")).eval()
    seen: list[Observation] = []
    x = maps(8)
    x[:, 2] = 0
    with observe(nn.ModuleList([gated]), lambda _n, _l, observation: seen.append(observation)):
        gated(x)
    assert seen[0].live_inputs is not None
    assert seen[0].live_inputs.tolist() == [[8], [8], [8]]


def test_a_gated_binary_layer_says_so() -> None:
    assert "binary" in repr(GatedConv2d(layer(), norm(12), GateConfig(groups=4)))
    assert "binary" not in repr(GatedConv2d(nn.Conv2d(8, 12, 3), None, GateConfig(groups=4)))
