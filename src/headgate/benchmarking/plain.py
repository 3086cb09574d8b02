"""A gated network whose gates are held, as a network of plain layers that any library can run."""

from __future__ import annotations

import copy
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from headgate.errors import ModelError
from headgate.nn.control import gated_layers
from headgate.nn.gated_conv import GatedConv2d
from headgate.nn.selection import base_blocks
from headgate.nn.sum_norm import SumNorm

__all__ = ["ChannelShuffle", "plain"]


class ChannelShuffle(nn.Module):
    """ShuffleNet's channel shuffle: position i·G + g of the result is channel g·(c/G) + i.

    Written with views and a transposition, which every library's converter knows.
    """

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Shuffle."""
        n, c, h, w = x.shape
        return x.reshape(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def plain(model: nn.Module, state: Literal["open", "closed"]) -> nn.Module:
    """A copy of a gated model with its gates held in one state, without gates: the inverse of `gate_`.

    Open: the dense network, with the names that it had before it was gated. Closed: each gated convolution becomes a
    grouped one, behind a channel shuffle where its base is shuffled.

    Raises: ModelError: a layer is binary, for which libraries have no layer; its norm has no place in the model; or,
        closed, its base is not grouped.
    """
    model = copy.deepcopy(model)
    swap: dict[nn.Module, nn.Module] = {}
    for name, layer in gated_layers(model).items():
        if layer.binary:
            raise ModelError(
                f"{name!r} must have weights and inputs in numbers for libraries to run it, got binary ones"
            )
        norm = layer.partial_norm if state == "closed" and layer.separate else layer.final_norm
        swap[layer] = _opened(layer) if state == "open" else _closed(name, layer)
        if norm is None:
            continue
        if not layer.absorbed:
            raise ModelError(f"model must keep the place of the norm that {name!r} took over, got it removed")
        place = layer.absorbed[0]
        batch_norm = _batch_norm(norm)
        swap[place] = batch_norm if isinstance(place, nn.Identity) else nn.Sequential(batch_norm, *place.children())
    for parent in list(model.modules()):
        if parent not in swap:
            for name, child in list(parent._modules.items()):
                if child in swap:
                    parent._modules[name] = swap[child]
    return model.eval()


def _opened(layer: GatedConv2d) -> nn.Conv2d:
    conv = _conv(layer, layer.conv_groups)
    conv.weight, conv.bias = layer.weight, layer.bias
    return conv


def _closed(name: str, layer: GatedConv2d) -> nn.Module:
    if not layer.config.grouped:
        raise ModelError(f"{name!r} must have a grouped base to run as a grouped convolution, got a first fraction")
    groups, shuffle = layer.config.groups, layer.config.shuffle
    conv = _conv(layer, layer.conv_groups * groups)
    weight = base_blocks(layer.weight, groups, conv_groups=layer.conv_groups, shuffle=shuffle)
    conv.weight, conv.bias = nn.Parameter(weight.detach().clone()), layer.bias
    if not shuffle:
        return conv
    if layer.conv_groups != 1:
        raise ModelError(f"{name!r} must have one convolution group to be shuffled, got {layer.conv_groups}")
    return nn.Sequential(ChannelShuffle(groups), conv)


def _conv(layer: GatedConv2d, groups: int) -> nn.Conv2d:
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # pairs, as nn.Conv2d keeps them
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        groups,
        bias=layer.bias is not None,
    )


def _batch_norm(norm: SumNorm) -> nn.BatchNorm2d:
    batch_norm = nn.BatchNorm2d(
        len(norm.running_mean), eps=norm.eps, momentum=norm.momentum, affine=norm.weight is not None
    )
    batch_norm.load_state_dict(norm.state_dict(), strict=False)  # all but the number of batches seen
    return batch_norm
