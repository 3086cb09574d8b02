"""Settings of convolutions and pools, read from a module's attributes or a function's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from headgate.exporting.plan import Pair
from headgate.nn.gated_conv import GatedConv2d

MAX_POOL: Mapping[str, Any] = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
    "return_indices": False,
}
"""Arguments of torch's max_pool2d behind its input, in order, with their defaults; and so on."""
AVG_POOL: Mapping[str, Any] = {
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}
ADAPTIVE_AVG_POOL: Mapping[str, Any] = {"output_size": None}
ADAPTIVE_MAX_POOL: Mapping[str, Any] = {"output_size": None, "return_indices": False}
MEAN: Mapping[str, Any] = {"dim": None, "keepdim": False, "dtype": None}
CONCAT: Mapping[str, Any] = {"dim": 0}
DROPOUT: Mapping[str, Any] = {"p": 0.5, "training": True, "inplace": False}
STOCHASTIC_DEPTH: Mapping[str, Any] = {"p": None, "mode": None, "training": True}
CLAMP: Mapping[str, Any] = {"min": None, "max": None}
CLAMP_MIN: Mapping[str, Any] = {"min": None}
HARDTANH: Mapping[str, Any] = {"min_val": -1.0, "max_val": 1.0, "inplace": False}


def pair(value: Any) -> Pair:
    """torch's sizes: a number stands for both sides."""
    sides = [value] if isinstance(value, int) else list(value)
    return (int(sides[0]), int(sides[-1]))


def window(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Kernel, stride and padding of a pool; its stride is the kernel where it is not given."""
    kernel = pair(settings["kernel_size"])
    stride = settings["stride"]
    return {
        "kernel": kernel,
        "stride": kernel if stride is None or stride == [] else pair(stride),
        "padding": pair(settings["padding"]),
    }


def symmetric_padding(conv: nn.Conv2d | GatedConv2d) -> Pair | None:
    """Padding on each side, in pixels (height, width); None for "same" that pads one pixel more behind."""
    if conv.padding == "valid":
        return (0, 0)
    if conv.padding != "same":
        return pair(conv.padding)
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    return None if any(side % 2 for side in total) else (total[0] // 2, total[1] // 2)
