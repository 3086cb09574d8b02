"""Models without weights: to try a change before it is made, and to recognise what a model was before one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from headgate.baselines import PerforatedConv2d, perforated_layers
from headgate.errors import HeadgateError
from headgate.models import Architecture, identify
from headgate.nn import BinaryConv2d, GatedConv2d, gated_layers


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside distribution and torch.compile."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def skeleton(model: nn.Module) -> nn.Module:
    """A copy without weights: the same modules, with parameters and buffers on the meta device."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def identify_dense(model: nn.Module) -> Architecture | None:
    """Name the architecture that a model was before it was gated or perforated, or None where it cannot be told."""
    if not (gated_layers(model) or perforated_layers(model)):
        return None
    try:
        dense = skeleton(model)
    except (TypeError, RuntimeError):  # something in it cannot be copied: then it is not as a builder made it
        return None
    places = {id(module): name for name, module in dense.named_modules()}
    for name, layer in gated_layers(dense).items():
        dense.set_submodule(name, _conv(layer, layer, layer.conv_groups))
        place = places.get(id(layer.absorbed[0])) if layer.absorbed else None
        if place is not None and layer.final_norm is not None:
            norm = layer.final_norm
            affine = norm.weight is not None
            batch_norm = nn.BatchNorm2d(layer.out_channels, norm.eps, norm.momentum, affine, device="meta")
            dense.set_submodule(place, batch_norm)
    for name, perforated in perforated_layers(dense).items():
        dense.set_submodule(name, _conv(perforated.conv, perforated, perforated.conv.groups))
    return identify(dense)


def _conv(layer: nn.Conv2d | GatedConv2d, moves: nn.Conv2d | GatedConv2d | PerforatedConv2d, groups: int) -> nn.Conv2d:
    """A dense convolution of a layer's weights that moves over the map as `moves` does."""
    kind = BinaryConv2d if isinstance(layer, GatedConv2d) and layer.binary else nn.Conv2d
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # (height, width)
        moves.stride,  # type: ignore[arg-type]
        moves.padding,  # type: ignore[arg-type]
        moves.dilation,  # type: ignore[arg-type]
        groups,
        bias=layer.bias is not None,
        device="meta",
    )


def blank(architecture: Architecture) -> nn.Module | None:
    """An architecture's network, for its shapes: without weights where that can be; None where it cannot be built."""
    try:
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    return architecture.build()
            except RuntimeError:  # a constructor that computes with its weights cannot be built without them
                return architecture.build()
    except (HeadgateError, TypeError, AttributeError):  # as for `load`
        return None
