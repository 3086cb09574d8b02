"""A gated convolution as an operator of a plan; as a plain convolution where its gates are held."""

from __future__ import annotations

from typing import Any, Final

import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from headgate.exporting import windows
from headgate.exporting.fold import ChannelAffine, double, normalise, scaled, standardise
from headgate.exporting.plan import Conv, GatedConv, Pair
from headgate.exporting.static import base_convolution
from headgate.exporting.trace_graph import weights_of
from headgate.nn.gated_conv import GatedConv2d
from headgate.nn.gates import MEAN_ABS_NORMAL, MEDIAN_ABS_NORMAL
from headgate.nn.sum_norm import SumNorm
from headgate.ops.decision import SCORE_EPS

INFINITE: Final = torch.finfo(torch.float32).max
"""An infinite threshold in a plan, where numbers are finite: no score is above it, and each is above −∞'s."""
LARGEST_BOUND: Final = 1 - 2.0**-25
"""From here on a channel bound is 1 in float32: no map has a larger fraction of open decisions."""


def held_state(layer: GatedConv2d) -> str | None:
    """ "open" or "closed" where that is the state of all gates whatever the image, else None."""
    never_opens = layer.gate.per_pixel and layer.config.channel_bound >= LARGEST_BOUND
    return layer.gate.forced or ("closed" if never_opens else None)


def obstacle(layer: GatedConv2d) -> str | None:
    """Why the plan format cannot express this layer, or None."""
    granularity, held = layer.config.granularity, held_state(layer)
    if layer.gate.statistic == "input":
        if held == "open":
            return None
        return f"a gate of granularity {granularity!r} decides from its input, which the engine does not do"
    if layer.conv_groups > 1 and held is None:
        return f"a gated convolution of {layer.conv_groups} convolution groups, of which the engine takes one"
    return None


def gated_operator(layer: GatedConv2d, *, padding: Pair) -> tuple[type[GatedConv | Conv], dict[str, Any]]:
    """The layer with its norm, as a kind of operator and its attributes; activation and residual stand behind it.

    P and F of a plan are without the convolution's bias: it goes into every affine of them.
    """
    geometry: dict[str, Any] = {"stride": windows.pair(layer.stride), "padding": padding}
    geometry["dilation"] = windows.pair(layer.dilation)
    fused = ("norm",) if layer.final_norm is not None else ()
    final = _affine(layer, layer.final_norm)
    partial = _affine(layer, layer.partial_norm if layer.separate else layer.final_norm)
    state = held_state(layer)
    if state is not None:
        held = _held_open(layer) if state == "open" else _held_closed(layer)
        scale, bias = final if state == "open" else partial
        weight = scaled(held.pop("weight"), scale)
        return Conv, {"weight": weight, "bias": bias, "fused": (f"gate held {state}", *fused), **held, **geometry}
    assert layer.partial_norm is not None
    score = standardise(layer.partial_norm).of_biased(layer.bias)
    averaged = layer.config.granularity != "activation"
    center = MEAN_ABS_NORMAL if averaged else MEDIAN_ABS_NORMAL
    return GatedConv, {
        "weight": weights_of(layer.weight),
        "base_inputs": base_inputs(layer),
        "granularity": layer.config.granularity,
        "decisions": layer.gate.decisions,
        "two_sided": layer.two_sided,
        "center": center if layer.two_sided else None,
        "channel_bound": float(layer.config.channel_bound) if layer.gate.per_pixel else 0.0,
        "threshold": (double(layer.gate.threshold) + double(layer.gate.offset)).clamp(-INFINITE, INFINITE),
        "group_scale": torch.rsqrt(double(_score_var(layer)) + SCORE_EPS) if averaged else None,
        "score_scale": score.scale,
        "score_bias": score.bias,
        "partial_scale": partial.scale,
        "partial_bias": partial.bias,
        "final_scale": final.scale,
        "final_bias": final.bias,
        "fused": fused,
        **geometry,
    }


def _affine(layer: GatedConv2d, norm: SumNorm | None) -> ChannelAffine:
    """From a sum without the convolution's bias to what the layer makes of it."""
    affine = ChannelAffine.identity(layer.out_channels) if norm is None else normalise(norm)
    return affine.of_biased(layer.bias)


def _score_var(layer: GatedConv2d) -> Tensor:
    running = layer.gate.score_var
    assert isinstance(running, Tensor)
    return running


def base_inputs(layer: GatedConv2d) -> Int32[Tensor, "b k"]:
    """The input channels that each block of adjacent outputs reads in the base path, ascending.

    As many blocks as output groups; in each convolution group only one where the base is the same for all outputs.
    """
    per_group = layer.in_channels // layer.conv_groups
    within = _base_positions(layer)
    start = torch.arange(len(within)) // (len(within) // layer.conv_groups) * per_group
    return (within + start[:, None]).int()


def _base_positions(layer: GatedConv2d) -> Int64[Tensor, "b k"]:
    """The same, counted from the start of the block's convolution group."""
    blocks = layer.conv_groups * (layer.config.groups if layer.config.grouped else 1)
    mask = layer.base_mask.cpu().view(blocks, layer.out_channels // blocks, -1)[:, 0]
    return mask.nonzero()[:, 1].view(blocks, -1)


def _held_open(layer: GatedConv2d) -> dict[str, Any]:
    """The full convolution."""
    return {"weight": weights_of(layer.weight), "groups": layer.conv_groups}


def _held_closed(layer: GatedConv2d) -> dict[str, Any]:
    """The base path alone: a convolution with one group per block, of input channels that need not be adjacent."""
    positions, listed = _base_positions(layer), base_inputs(layer)
    return base_convolution(weights_of(layer.weight), positions, listed, in_channels=layer.in_channels)
