"""Operators of layers with weights: convolutions, gated or not, linear layers, norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from headgate.exporting import windows
from headgate.exporting.builder import Builder
from headgate.exporting.elementwise import ACTIVATIONS
from headgate.exporting.fold import normalise
from headgate.exporting.gated import gated_operator, obstacle
from headgate.exporting.plan import Activate, Affine, Conv
from headgate.exporting.trace_graph import weights_of
from headgate.graph import module_operation, norm_activation
from headgate.nn.gated_conv import GatedConv2d


def _layer(builder: Builder, node: fx.Node, *known: type[nn.Module]) -> Any:
    """The module that a node calls, which computes what one of `known` does."""
    module = builder.traced.module(node)
    name = known[0].__name__
    if module is None:
        problem = "expected a module, got a function that is given its weights"
        raise builder.refuse(node, problem, f"make it an nn.{name} of the model")
    own_forward = not any(isinstance(module, kind) and type(module).forward is kind.forward for kind in known)
    if own_forward and not type(module).__module__.startswith(
        "timm.layers.linear"
    ):  # its Linear differs in scripts only
        problem = f"expected an nn.{name}, got a {type(module).__name__} that computes something of its own"
        raise builder.refuse(node, problem)
    return module


def _padding(builder: Builder, node: fx.Node, conv: nn.Conv2d | GatedConv2d) -> windows.Pair:
    padding = windows.symmetric_padding(conv)
    if padding is None:
        problem = f"expected the same padding on both sides, got 'same' for the even kernel {tuple(conv.kernel_size)}"
        raise builder.refuse(node, problem, "pad with numbers, or use an odd kernel")
    return padding


def _bias(bias: Tensor | None, channels: int) -> Tensor:
    return torch.zeros(channels, dtype=torch.float64) if bias is None else bias.detach().to("cpu", torch.float64)


def _conv(builder: Builder, node: fx.Node) -> None:
    conv = _layer(builder, node, nn.Conv2d)
    if type(conv)._conv_forward is not nn.Conv2d._conv_forward or conv.padding_mode != "zeros":
        raise builder.refuse(node, f"expected a padding with zeros, got padding_mode={conv.padding_mode!r}")
    builder.emit(
        node,
        Conv,
        builder.map(node),
        weight=weights_of(conv.weight),
        bias=_bias(conv.bias, conv.out_channels),
        groups=conv.groups,
        stride=windows.pair(conv.stride),
        padding=_padding(builder, node, conv),
        dilation=windows.pair(conv.dilation),
    )


def _gated(builder: Builder, node: fx.Node) -> None:
    layer = _layer(builder, node, GatedConv2d)
    problem = obstacle(layer)
    if problem is not None:
        name = builder.traced.where(node)
        raise builder.refuse(node, problem, f"leave the layer dense: GateConfig(exclude=({name!r},))")
    if len(node.args) != 1 or node.kwargs:
        problem = "expected a model as it was gated, got one that headgate.fuse rewrote for training"
        raise builder.refuse(node, problem, "export the model that was fused, which has the same weights")
    kind, attributes = gated_operator(layer, padding=_padding(builder, node, layer))
    builder.emit(node, kind, builder.map(node), **attributes)


def _linear(builder: Builder, node: fx.Node) -> None:
    """A convolution as large as its map: (o, c·h·w) weights are (o, c, h, w) ones."""
    linear = _layer(builder, node, nn.Linear)
    value, shape = builder.first(node)
    if len(shape) != 1:
        problem = f"expected a vector per image, got {shape}"
        raise builder.refuse(node, problem, "flatten in front of it, or use a 1×1 convolution")
    weight = weights_of(linear.weight).reshape(linear.out_features, *builder.values[value])
    builder.emit(node, Conv, value, weight=weight, bias=_bias(linear.bias, linear.out_features))


def _norm(builder: Builder, node: fx.Node) -> None:
    norm: Any = builder.traced.module(node)
    activation = norm_activation(norm)
    if activation is None and type(norm).__name__ != "FrozenBatchNorm2d":
        norm = _layer(builder, node, nn.BatchNorm2d, nn.BatchNorm1d, nn.SyncBatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        problem = "expected a norm with running statistics, got one that takes those of each batch"
        raise builder.refuse(node, problem, "build and train it with track_running_stats=True")
    scale, bias = normalise(norm)
    value = builder.map(node)
    builder.emit(node, Affine, value, shape=builder.values[value], scale=scale, bias=bias, fused=("norm",))
    name = "identity" if activation is None else module_operation(activation)
    if name in ACTIVATIONS:
        value = builder.items[node].value
        builder.emit(node, Activate, value, shape=builder.values[value], activation=ACTIVATIONS[name])
    elif name != "identity":
        raise builder.refuse(node, f"expected an activation that a plan has, got {name!r} inside the norm")


def layer_key(module: nn.Module) -> str | None:
    """The key in `HANDLERS` of a module of this file's kinds, or None."""
    if isinstance(module, _BatchNorm) or type(module).__name__ == "FrozenBatchNorm2d":
        return "norm"
    for kind, key in ((GatedConv2d, "gated"), (nn.Conv2d, "conv2d"), (nn.Linear, "linear")):
        if isinstance(module, kind):
            return key
    return None


HANDLERS: Final[Mapping[str, Callable[[Builder, fx.Node], None]]] = {
    "conv2d": _conv,
    "gated": _gated,
    "linear": _linear,
    "norm": _norm,
}
