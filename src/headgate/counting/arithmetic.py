"""From open decisions to work: how many multiply-accumulates, weights and channels they stand for.

All integers. One multiply-accumulate is one MAC, taps on the padding included, biases and norms not: twice our MACs
are the FLOPs of `torch.utils.flop_counter`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from headgate.workload import LayerShape


class Work(NamedTuple):
    """What each image's open decisions make one layer do.

    Attributes:
        conditional_macs: MACs of the conditional path.
        conditional_weights: weights of the conditional path that at least one open decision uses.
        input_channels: input channels that any path reads.
        output_channels: output channels that are computed at all.
    """

    conditional_macs: Int64[Tensor, " n"]
    conditional_weights: Int64[Tensor, " n"]
    input_channels: Int64[Tensor, " n"]
    output_channels: Int64[Tensor, " n"]


def base_inputs(shape: LayerShape) -> int:
    """Input channels in the base path of one output channel; 0 for gates that have no base path."""
    match shape.granularity:
        case "activation" | "group" | "channel":
            return shape.c_in // (shape.conv_groups * shape.groups)
        case "dense":
            return shape.c_in // shape.conv_groups
        case _:
            return 0


def base_macs(shape: LayerShape) -> int:
    """MACs of the base path per image; all of a dense layer's."""
    return shape.out_size[0] * shape.out_size[1] * base_weights(shape)


def base_weights(shape: LayerShape) -> int:
    """Weights of the base path; all of a dense layer's."""
    return shape.c_out * base_inputs(shape) * shape.kernel[0] * shape.kernel[1]


def macs_per_open(shape: LayerShape) -> int:
    """MACs of the conditional path that one open decision executes, per image.

    activation: one output activation, (c_in/conv_groups − base) · kh · kw. group: that times the channels of an output
    group. channel: times the output pixels. l1norm: one input channel, (c_out/conv_groups) · kh · kw · output pixels.
    fc: one output channel *and one live input channel*, kh · kw · output pixels; see `work`.
    """
    taps, pixels = shape.kernel[0] * shape.kernel[1], shape.out_size[0] * shape.out_size[1]
    conditional = (shape.c_in // shape.conv_groups - base_inputs(shape)) * taps
    match shape.granularity:
        case "activation":
            return conditional
        case "group":
            return conditional * (shape.c_out // shape.decisions)
        case "channel":
            return conditional * pixels
        case "l1norm":
            return shape.c_out // shape.conv_groups * taps * pixels
        case "fc":
            return taps * pixels
        case _:
            return 0


def work(
    shape: LayerShape, open_counts: Int64[Tensor, "n d"], live_inputs: Int64[Tensor, "n conv_groups"] | None
) -> Work:
    """What the open decisions of each image make a gated layer do.

    Args:
        open_counts: open decisions, 0 … pixels of a decision map.
        live_inputs: for the "fc" granularity: input channels of each convolution group that are not all zero. It
            computes open output channels × live input channels, in each convolution group.
    """
    taps, cg = shape.kernel[0] * shape.kernel[1], shape.conv_groups
    inputs, outputs, base = shape.c_in // cg, shape.c_out // cg, base_inputs(shape)
    touched = open_counts > 0

    def all_images(value: int) -> Tensor:
        return torch.full_like(open_counts[:, :1], value).sum(1)

    if shape.granularity == "fc":
        assert live_inputs is not None
        open_outputs = touched.view(-1, cg, outputs).sum(2)
        pairs = (open_outputs * live_inputs).sum(1)
        read = (live_inputs * (open_outputs > 0)).sum(1)
        return Work(pairs * macs_per_open(shape), pairs * taps, read, open_outputs.sum(1))
    macs = open_counts.sum(1) * macs_per_open(shape)
    if shape.granularity == "l1norm":
        open_inputs = touched.sum(1)
        return Work(macs, open_inputs * outputs * taps, open_inputs, all_images(shape.c_out))
    weights = touched.sum(1) * ((shape.c_out // shape.decisions) * (inputs - base) * taps)
    if shape.grouped:  # every input channel is the base of some output group
        read = all_images(shape.c_in)
    else:
        read = base * cg + touched.view(len(touched), cg, -1).any(2).sum(1) * (inputs - base)
    return Work(macs, weights, read, all_images(shape.c_out))
