"""Plans without gates, made of gated ones: the dense network, and one of grouped convolutions. All in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from headgate.exporting.fold import ChannelAffine, double, scaled
from headgate.exporting.plan import Conv, GatedConv, Operator, Plan
from headgate.nn.selection import dividing_groups, shuffle_permutation


def opened(plan: Plan) -> Plan:
    """The dense network: every gate held open."""
    return _ungated(plan, _open)


def grouped(plan: Plan, groups: int) -> Plan:
    """The network with a grouped convolution behind a channel shuffle in place of each gated one.

    With the base path's own groups and shuffle, that is the network with all gates held closed. With others it takes
    its weights from there as far as they go, and sums are scaled to the same spread: a network to be timed.

    Args:
        groups: of each; fewer where they do not divide its channels, as in `headgate.gate_`.
    """
    return _ungated(plan, lambda gated: _grouped(gated, groups))


def _ungated(plan: Plan, conv_of: Callable[[GatedConv], Conv]) -> Plan:
    def ungated(operator: Operator) -> Operator:
        conv = conv_of(operator) if isinstance(operator, GatedConv) else operator
        return replace(conv, input_scale=None, input_zero=None, precision=None) if isinstance(conv, Conv) else conv

    return replace(plan, operators=tuple(ungated(operator) for operator in plan.operators))


def _open(gated: GatedConv) -> Conv:
    final = ChannelAffine(double(gated.final_scale), double(gated.final_bias))
    return _conv(gated, final, weight=gated.weight)


def _grouped(gated: GatedConv, groups: int) -> Conv:
    outputs, channels = gated.weight.shape[:2]
    groups = dividing_groups(channels, outputs, groups)
    listed = shuffle_permutation(channels, groups).int().view(groups, -1)
    spread = math.sqrt(gated.base_inputs.shape[1] / listed.shape[1])
    partial = ChannelAffine(double(gated.partial_scale) * spread, double(gated.partial_bias))
    return _conv(gated, partial, **base_convolution(gated.weight, listed.long(), listed, in_channels=channels))


def _conv(gated: GatedConv, affine: ChannelAffine, *, weight: Float[Tensor, "o k kh kw"], **attributes: Any) -> Conv:
    """With the gated convolution's place and geometry."""
    return Conv(
        name=gated.name,
        inputs=gated.inputs,
        output=gated.output,
        weight=scaled(weight, affine.scale),
        bias=affine.bias,
        stride=gated.stride,
        padding=gated.padding,
        dilation=gated.dilation,
        activation=gated.activation,
        **attributes,
    )


def base_convolution(
    weight: Float[Tensor, "o i kh kw"],
    positions: Int64[Tensor, "b k"],
    listed: Int32[Tensor, "b k"],
    *,
    in_channels: int,
) -> dict[str, Any]:
    """A base path as attributes of a `Conv`: one group per block of outputs.

    Args:
        positions: along the weight's inputs, of what each block reads.
        listed: the same as channels of the map; they need not be adjacent.
        in_channels: of the map.
    """
    blocks = weight.chunk(len(positions))
    adjacent = torch.equal(listed.flatten(), torch.arange(in_channels, dtype=torch.int32))
    return {
        "weight": torch.cat([block[:, inputs] for block, inputs in zip(blocks, positions, strict=True)]),
        "groups": len(positions),
        "input_channels": None if adjacent else listed,
    }
