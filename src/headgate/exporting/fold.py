"""Norms as affines per channel, and affines folded into the operator before them; in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from headgate.exporting.plan import Affine, Conv, GatedConv


@runtime_checkable
class Norm(Protocol):
    """A batch norm, whatever its class. Vectors of one value per channel; weight and bias None where it has none."""

    eps: float

    @property
    def weight(self) -> Tensor | None: ...
    @property
    def bias(self) -> Tensor | None: ...
    @property
    def running_mean(self) -> Tensor | None: ...
    @property
    def running_var(self) -> Tensor | None: ...


class ChannelAffine(NamedTuple):
    """x · scale + bias, per channel."""

    scale: Float64[Tensor, " c"]
    bias: Float64[Tensor, " c"]

    @classmethod
    def identity(cls, channels: int) -> ChannelAffine:
        """x."""
        return cls(torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64))

    def of_biased(self, bias: Tensor | None) -> ChannelAffine:
        """The affine of x that gives this one of x + bias: a convolution's bias moves into what follows."""
        return self if bias is None else ChannelAffine(self.scale, self.bias + self.scale * double(bias))


def double(tensor: Tensor) -> Tensor:
    """On the CPU, in float64, without gradients."""
    return tensor.detach().to("cpu", torch.float64)


def scaled(weight: Float[Tensor, "o k kh kw"], scale: Float64[Tensor, " o"]) -> Float[Tensor, "o k kh kw"]:
    """The weight of a convolution whose outputs are multiplied by `scale`; in the weight's dtype."""
    return (double(weight) * scale.view(-1, 1, 1, 1)).to(weight.dtype)


def standardise(norm: Norm) -> ChannelAffine:
    """A batch norm by its running statistics, without its weight and bias."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(double(norm.running_var) + norm.eps)
    return ChannelAffine(scale, -double(norm.running_mean) * scale)


def normalise(norm: Norm) -> ChannelAffine:
    """A batch norm by its running statistics, whole."""
    scale, bias = standardise(norm)
    if norm.weight is not None:
        scale, bias = scale * double(norm.weight), bias * double(norm.weight)
    return ChannelAffine(scale, bias if norm.bias is None else bias + double(norm.bias))


def absorb_affine(operator: Conv | GatedConv | Affine, affine: Affine) -> Conv | GatedConv | Affine:
    """The operator that computes `affine` of `operator`, which has no residual and no activation."""
    scale, bias = affine.scale, affine.bias
    common: dict[str, Any] = {"output": affine.output, "fused": (*operator.fused, *affine.fused)}
    if isinstance(operator, Affine):
        return replace(operator, scale=operator.scale * scale, bias=operator.bias * scale + bias, **common)
    if isinstance(operator, Conv):
        return replace(operator, weight=scaled(operator.weight, scale), bias=operator.bias * scale + bias, **common)
    return replace(
        operator,
        partial_scale=operator.partial_scale * scale,
        partial_bias=operator.partial_bias * scale + bias,
        final_scale=operator.final_scale * scale,
        final_bias=operator.final_bias * scale + bias,
        **common,
    )
