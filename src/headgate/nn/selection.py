"""Which input channels are an output channel's base: grouping, first fraction, shuffle."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from headgate.errors import ShapeError


def dividing_groups(c_in: int, c_out: int, groups: int) -> int:
    """The largest number up to `groups` that divides the inputs and the outputs."""
    common = math.gcd(c_in, c_out)
    return max(d for d in range(1, min(groups, common) + 1) if common % d == 0)


def shuffle_permutation(channels: int, groups: int) -> Int[Tensor, " channels"]:
    """The channel that a channel shuffle moves to each position: position i·G + g holds channel g·(channels/G) + i."""
    return torch.arange(channels).view(groups, channels // groups).t().reshape(-1)


def shuffle_channels(x: Float[Tensor, "n c h w"], groups: int, conv_groups: int = 1) -> Float[Tensor, "n c h w"]:
    """Channel shuffle within each of `conv_groups` blocks of channels; the result is channels_last."""
    n, c, h, w = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(n, h, w, conv_groups, groups, c // (conv_groups * groups))
    return pixels.transpose(-1, -2).reshape(n, h, w, c).permute(0, 3, 1, 2)


def base_mask(
    c_out: int, c_in: int, groups: int, *, conv_groups: int = 1, grouped: bool = True, shuffle: bool = False
) -> Bool[Tensor, "c_out c_in_per_conv_group 1 1"]:
    """True where an output channel's weight belongs to its base path.

    A convolution with groups of its own is treated group by group.

    Args:
        c_out, c_in: channels of the whole convolution.
        groups: G; must divide the inputs and the outputs of each convolution group.
    Raises: ShapeError: it does not.
    """
    inputs, outputs = c_in // conv_groups, c_out // conv_groups
    if inputs % groups or outputs % groups:
        raise ShapeError(
            f"groups must divide the channels of each convolution group, got groups={groups} for "
            f"{inputs} input and {outputs} output channels; lower groups, or leave this layer dense"
        )
    if grouped:
        position_group = torch.arange(inputs) // (inputs // groups)
        input_group = torch.empty_like(position_group)
        input_group[shuffle_permutation(inputs, groups) if shuffle else torch.arange(inputs)] = position_group
        output_group = torch.arange(outputs) // (outputs // groups)
        mask = output_group[:, None] == input_group[None, :]
    else:
        mask = (torch.arange(inputs) < inputs // groups).expand(outputs, inputs)
    return mask.repeat(conv_groups, 1)[:, :, None, None]


def base_blocks(
    weight: Float[Tensor, "c_out c_in_per_conv_group kh kw"], groups: int, *, conv_groups: int, shuffle: bool
) -> Float[Tensor, "c_out base kh kw"]:
    """The base path's weights as those of a convolution with conv_groups · groups groups (grouped selection only).

    With `shuffle`, for an input that went through `shuffle_channels`.
    """
    c_out, inputs, kh, kw = weight.shape
    if shuffle:
        weight = weight[:, shuffle_permutation(inputs, groups).to(weight.device)]
    blocks = weight.reshape(conv_groups, groups, c_out // (conv_groups * groups), groups, inputs // groups, kh, kw)
    return blocks.diagonal(dim1=1, dim2=3).permute(0, 5, 1, 2, 3, 4).reshape(c_out, inputs // groups, kh, kw)
