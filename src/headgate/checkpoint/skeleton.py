"""Models without weights: to try a change before it is made, and to recognise what a gated model was."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from headgate.models import Architecture, identify
from headgate.nn import BinaryConv2d, gated_layers


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


def identify_dense(model: nn.Module, structure: Mapping[str, Any]) -> Architecture | None:
    """Name the architecture that a gated model was before it was gated, or None where it cannot be told."""
    try:
        dense = skeleton(model)
    except (TypeError, RuntimeError):  # something in it cannot be copied: then it is not as a builder made it
        return None
    for name, layer in gated_layers(dense).items():
        kind = BinaryConv2d if layer.binary else nn.Conv2d
        conv = kind(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]  # (height, width)
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            layer.dilation,  # type: ignore[arg-type]
            layer.conv_groups,
            bias=layer.bias is not None,
            device="meta",
        )
        dense.set_submodule(name, conv)
        place = structure["layers"][name]["norm"]
        if place is not None and layer.final_norm is not None:
            norm = layer.final_norm
            affine = norm.weight is not None
            batch_norm = nn.BatchNorm2d(layer.out_channels, norm.eps, norm.momentum, affine, device="meta")
            dense.set_submodule(place, batch_norm)
    return identify(dense)
